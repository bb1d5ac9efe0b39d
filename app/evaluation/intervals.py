"""How sure a mean is, and the difference of two: bootstrap intervals and a randomisation test over the questions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4_000
SEED = 20
CHUNK = 200
"""Resamples at once, which bounds memory: 200 x 10,000 questions are 16 MB."""
TIE = 1e-12

Values = NDArray[np.float64]
"""float64 (questions, metrics); NaN where a metric does not apply to a question."""


@dataclass(frozen=True)
class Estimate:
    """A mean over those questions to which a metric applies, with its 95 % interval."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Difference:
    """B minus A, with its 95 % interval; `p` is the chance of one as large if A and B were the same system."""

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    count: int
    """Questions to which the metric applies in A or B."""
    better: int
    worse: int


def estimates(values: Values, *, resamples: int = RESAMPLES) -> list[Estimate | None]:
    """One of each metric; None where it applies to no question. Percentile bootstrap: Efron 1979."""
    present = ~np.isnan(values)
    filled = np.where(present, values, 0.0)
    weighted = [_ratio(weights @ filled, weights @ present) for weights in _bootstrap(len(values), resamples)]
    means, counts = _ratio(filled.sum(0), present.sum(0)), present.sum(0)
    bounds = _bounds(np.concatenate(weighted))
    return [
        Estimate(float(mean), float(low), float(high), int(count)) if count else None
        for mean, (low, high), count in zip(means, bounds, counts, strict=True)
    ]


def differences(a: Values, b: Values, *, resamples: int = RESAMPLES) -> list[Difference | None]:
    """One of each metric, over the same questions in the same order; None where it applies to none in A or in B.

    Both are resampled together, which is what makes it paired. p by Fisher's randomisation test, two-sided:
    Smucker, Allan and Carterette 2007. A metric may apply to a question in one run only, such as a precision of
    refusals: then its two means are over different questions.
    """
    has_a, has_b = ~np.isnan(a), ~np.isnan(b)
    filled_a, filled_b = np.where(has_a, a, 0.0), np.where(has_b, b, 0.0)
    sums, counts = (filled_a.sum(0), filled_b.sum(0)), (has_a.sum(0), has_b.sum(0))
    means = _ratio(sums[0], counts[0]), _ratio(sums[1], counts[1])
    drawn = np.concatenate(
        [
            _ratio(weights @ filled_b, weights @ has_b) - _ratio(weights @ filled_a, weights @ has_a)
            for weights in _bootstrap(len(a), resamples)
        ]
    )
    observed = means[1] - means[0]
    extreme = np.zeros(a.shape[1], np.int64)
    for swaps in _swaps(len(a), resamples):
        moved, moved_counts = swaps @ (filled_b - filled_a), swaps @ (has_b.astype(float) - has_a)
        shuffled = _ratio(sums[1] - moved, counts[1] - moved_counts) - _ratio(
            sums[0] + moved, counts[0] + moved_counts
        )
        # A shuffle that leaves a mean over nothing tells nothing against the null hypothesis.
        extreme += (np.isnan(shuffled) | (np.abs(shuffled) >= np.abs(observed) - TIE)).sum(0)
    return [
        Difference(
            a=float(means[0][metric]),
            b=float(means[1][metric]),
            difference=float(observed[metric]),
            low=low,
            high=high,
            p=float((extreme[metric] + 1) / (resamples + 1)),
            count=int((has_a[:, metric] | has_b[:, metric]).sum()),
            better=int((b[:, metric] > a[:, metric] + TIE).sum()),
            worse=int((b[:, metric] < a[:, metric] - TIE).sum()),
        )
        if counts[0][metric] and counts[1][metric]
        else None
        for metric, (low, high) in enumerate(_bounds(drawn))
    ]


def matrix(rows: Sequence[Sequence[float | None]]) -> Values:
    """(questions, metrics) from lists with None where a metric does not apply."""
    return np.array([[np.nan if value is None else value for value in row] for row in rows], np.float64)


def _bootstrap(questions: int, resamples: int) -> Iterator[Values]:
    """How often each question is drawn: (resamples of a chunk, questions)."""
    chance = np.random.default_rng(SEED)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        yield chance.multinomial(questions, np.full(questions, 1 / questions), size=rows).astype(float)


def _swaps(questions: int, resamples: int) -> Iterator[Values]:
    """1 where A and B change places: (resamples of a chunk, questions)."""
    chance = np.random.default_rng(SEED)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        yield chance.integers(0, 2, size=(rows, questions)).astype(float)


def _ratio(sums: Values, counts: NDArray[np.generic]) -> Values:
    """NaN where nothing was counted."""
    whole = np.asarray(counts, np.float64)
    ratios: Values = np.full(np.shape(sums), np.nan)
    np.divide(sums, whole, out=ratios, where=whole > 0)
    return ratios


def _bounds(drawn: Values) -> list[tuple[float, float]]:
    """2.5th and 97.5th percentile of each column, of those resamples where it has a value."""
    bounds = []
    for column in drawn.T:
        known = column[~np.isnan(column)]
        low, high = np.percentile(known, (2.5, 97.5)) if known.size else (np.nan, np.nan)
        bounds.append((float(low), float(high)))
    return bounds
