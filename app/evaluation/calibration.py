"""Calibrates refusals: weighs the signals of evidence by questions that the documents answer, and by others.

Half of the questions fit the weights and the threshold; the other half tell how good they are.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from app.answers.calibration import HeldOut, Interval
from app.answers.chat import SEARCH_DEPTH
from app.commands.remote import Remote, RemoteRefused
from app.evaluation.asking import QuestionRefused, in_parallel, patiently, shown_progress
from app.evaluation.lines import EvaluationRefused
from app.evaluation.questions import QuestionFile
from retrieval.evidence import SHIPPED, Weighing

LEAST = 20
"""Questions of each kind: fewer say nothing of a threshold."""
SEED = 20
RESAMPLES = 2_000
PULL = 2.0
"""How strongly weights are held to those that they start from: with a hundred questions they stay near them."""
FREE = 1e-6
"""The same of the intercept: next to nothing."""
STEPS = 50
CONVERGED = 1e-8
BODY = {"max_num_results": SEARCH_DEPTH, "include": ["scores"]}
"""A search as a chat makes it, and told how."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """A question's signals by name, and whether the documents answer it."""

    signals: Mapping[str, float]
    is_covered: bool


@dataclass(frozen=True)
class Calibrated:
    """What came of it. `shipped`: the same figures of the weights that come with the code."""

    weighing: Weighing
    held_out: HeldOut
    shipped: HeldOut
    failed: int
    """Questions that could not be asked, and were left out."""

    @property
    def is_reranked(self) -> bool:
        return "relevance" in self.weighing.weights


async def calibrate(
    remote: Remote, asked: QuestionFile, collection_id: str, *, at_once: int, console: Console
) -> Calibrated:
    """Searches for each question and fits on half of them. Raises EvaluationRefused and RemoteRefused."""
    check_questions(asked)
    samples: dict[str, Sample] = {}
    with shown_progress(console) as progress:
        bar = progress.add_task("searches", total=len(asked.questions))

        async def ask(question_id: str) -> None:
            question = asked.questions[question_id]
            body = {"query": question.question, **BODY}
            try:
                page, _ = await patiently(lambda: remote.search(collection_id, body))
            except QuestionRefused:
                pass
            else:
                samples[question_id] = Sample(page["evidence"]["signals"], question.is_answerable)
            progress.advance(bar)

        await in_parallel(ask, asked.questions, at_once=at_once)
    in_order = [samples[each] for each in asked.questions if each in samples]
    if len({frozenset(each.signals) for each in in_order}) > 1:
        raise RemoteRefused("The server's reranker came or went meanwhile. Run it again.")
    fit_on, held_out = split(in_order)
    start = SHIPPED.reranked if "relevance" in fit_on[0].signals else SHIPPED.plain
    weighing = fit(fit_on, start)
    return Calibrated(
        weighing=weighing,
        held_out=measured(weighing, held_out),
        shipped=measured(start, held_out),
        failed=len(asked.questions) - len(in_order),
    )


def check_questions(asked: QuestionFile) -> None:
    """Raises EvaluationRefused when there are too few of a kind."""
    covered = sum(question.is_answerable for question in asked.questions.values())
    for count, kind in ((covered, "answerable"), (len(asked.questions) - covered, "unanswerable")):
        if count < LEAST:
            raise EvaluationRefused(
                f"{asked.name} has {count} {kind} questions; a calibration needs {LEAST} of each kind at least. "
                'An unanswerable one is {"question": …, "answerable": false}.'
            )


def split(samples: Sequence[Sample], *, seed: int = SEED) -> tuple[list[Sample], list[Sample]]:
    """Two halves with as many of each kind, the same for the same samples."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    halves: tuple[list[Sample], list[Sample]] = [], []
    for kind in (True, False):
        members = [each for each in samples if each.is_covered is kind]
        chance.shuffle(members)
        middle = len(members) // 2
        halves[0].extend(members[:middle])
        halves[1].extend(members[middle:])
    return halves


def fit(samples: Sequence[Sample], start: Weighing) -> Weighing:
    """Logistic regression in which both kinds weigh the same, held to the weights of `start`; then the threshold of the
    best balanced accuracy on the same samples.

    No weight gets below 0: every signal speaks for a question or says nothing, whatever a few questions suggest.
    """
    names = sorted(start.weights)
    covered = _covered(samples)
    kept = names
    while True:
        weighing = _fitted(samples, covered, start, kept)
        against = [name for name in kept if weighing.weights[name] < 0]
        if not against:
            break
        kept = [name for name in kept if name not in against]
    weights = {name: round(weighing.weights.get(name, 0.0), 4) for name in names}
    fitted = Weighing(round(weighing.intercept, 4), weights, threshold=0.5)
    return replace(fitted, threshold=best_threshold(scored(fitted, samples), covered))


def _fitted(
    samples: Sequence[Sample], covered: NDArray[np.bool_], start: Weighing, names: Sequence[str]
) -> Weighing:
    """By Newton's method, with the other signals left out."""
    rows = np.array([[1.0, *(each.signals[name] for name in names)] for each in samples])
    shares = np.where(covered, 0.5 / covered.sum(), 0.5 / (~covered).sum()) * len(samples)
    origin = np.array([start.intercept, *(start.weights[name] for name in names)])
    pull = np.diag([FREE, *([PULL] * len(names))])
    weights = origin.copy()
    for _ in range(STEPS):
        likely = _logistic(rows @ weights)
        slope = rows.T @ (shares * (likely - covered)) + pull @ (weights - origin)
        bend = (rows * (shares * likely * (1 - likely))[:, None]).T @ rows + pull
        step = np.linalg.solve(bend, slope)
        weights -= step
        if float(np.abs(step).max()) < CONVERGED:
            break
    return Weighing(
        float(weights[0]), dict(zip(names, map(float, weights[1:]), strict=True)), start.threshold
    )


def scored(weighing: Weighing, samples: Sequence[Sample]) -> Values:
    names = sorted(weighing.weights)
    rows = np.array([[each.signals[name] for name in names] for each in samples])
    return _logistic(weighing.intercept + rows @ np.array([weighing.weights[name] for name in names]))


def best_threshold(scores: Values, covered: NDArray[np.bool_]) -> float:
    """In the middle between two scores, where balanced accuracy is best; of equals the one nearest to 0.5."""
    ordered = np.unique(scores)
    between = [0.5, *((ordered[1:] + ordered[:-1]) / 2)]
    best = max(between, key=lambda each: (round(_balanced(scores, covered, each), 9), -abs(each - 0.5)))
    return round(float(best), 4)


def measured(weighing: Weighing, samples: Sequence[Sample], *, resamples: int = RESAMPLES) -> HeldOut:
    """Figures of these samples. Intervals by a percentile bootstrap within each kind: Efron 1979."""
    scores, covered = scored(weighing, samples), _covered(samples)
    drawn = [_figures(scores[each], covered[each], weighing.threshold) for each in _drawn(covered, resamples)]
    values = _figures(scores, covered, weighing.threshold)
    low, high = np.nanpercentile(np.array(drawn), (2.5, 97.5), axis=0)
    precision, recall, balanced, auc = (
        Interval(value=round(value, 4), low=round(float(bottom), 4), high=round(float(top), 4))
        for value, bottom, top in zip(values, low, high, strict=True)
    )
    return HeldOut(
        answerable=int(covered.sum()),
        unanswerable=int((~covered).sum()),
        refusal_precision=precision,
        refusal_recall=recall,
        balanced_accuracy=balanced,
        auc=auc,
    )


def auc_of(scores: Values, covered: NDArray[np.bool_]) -> float:
    """How likely a covered question scores higher than another; ties count half. Source: Mann and Whitney, 1947."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    ones, zeros = int(covered.sum()), int((~covered).sum())
    return float((ranks[covered].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def _figures(
    scores: Values, covered: NDArray[np.bool_], threshold: float
) -> tuple[float, float, float, float]:
    """Precision and recall of refusals, balanced accuracy, AUC. Precision is 1 where nothing was refused."""
    refused = scores < threshold
    right = float((refused & ~covered).sum())
    precision = right / float(refused.sum()) if refused.any() else 1.0
    return (
        precision,
        right / float((~covered).sum()),
        _balanced(scores, covered, threshold),
        auc_of(scores, covered),
    )


def _balanced(scores: Values, covered: NDArray[np.bool_], threshold: float) -> float:
    taken = scores >= threshold
    return float((taken[covered].mean() + (~taken[~covered]).mean()) / 2)


def _drawn(covered: NDArray[np.bool_], resamples: int) -> list[NDArray[np.int64]]:
    """Indexes of samples, drawn with replacement within each kind."""
    chance = np.random.default_rng(SEED)
    kinds = [np.flatnonzero(covered), np.flatnonzero(~covered)]
    return [np.concatenate([chance.choice(kind, size=len(kind)) for kind in kinds]) for _ in range(resamples)]


def _covered(samples: Sequence[Sample]) -> NDArray[np.bool_]:
    return np.array([each.is_covered for each in samples])


def _logistic(values: Values) -> Values:
    likely: Values = 1 / (1 + np.exp(-np.clip(values, -30, 30)))
    return likely
