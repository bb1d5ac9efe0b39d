"""Compares two finished runs question by question: which is better, how surely, and what changed most."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.evaluation.intervals import Difference, differences, matrix
from app.evaluation.lines import EvaluationRefused
from app.evaluation.runs import Outcome, Run


@dataclass(frozen=True)
class Change:
    """One question in both runs; `change` is B minus A of the main metric."""

    a: Outcome
    b: Outcome
    change: float


@dataclass(frozen=True)
class Comparison:
    """A variant of run A with one of run B, over the questions that both have."""

    variant_a: str
    variant_b: str
    main_metric: str
    metrics: dict[str, Difference]
    changes: tuple[Change, ...]
    """Those that changed, the most first."""
    questions: int
    left_out: int
    """Questions that only one of the runs has, or has with other words."""


def compare(a: Run, b: Run, *, variants: tuple[str, str] | None = None) -> list[Comparison]:
    """Each variant that both have, or the two named. Raises EvaluationRefused when there is nothing to compare."""
    if a.kind is not b.kind:
        raise EvaluationRefused(f"A run of {a.kind} does not compare with one of {b.kind}.")
    if variants is not None:
        pairs = [variants]
    else:
        pairs = [(variant, variant) for variant in a.variants if variant in b.variants]
    if not pairs:
        raise EvaluationRefused(
            f"The runs share no stage: A has {', '.join(a.variants)}, B has {', '.join(b.variants)}. "
            "Name one of each with --stages A,B."
        )
    for run, variant in [(run, pair[place]) for pair in pairs for place, run in enumerate((a, b))]:
        if variant not in run.variants:
            raise EvaluationRefused(f"{run.name} has no stage '{variant}', but {', '.join(run.variants)}.")
    return [_compared(a, b, *pair) for pair in pairs]


def _compared(a: Run, b: Run, variant_a: str, variant_b: str) -> Comparison:
    of_a, of_b = a.of(variant_a), b.of(variant_b)
    shared = [
        (outcome, of_b[question_id])
        for question_id, outcome in of_a.items()
        if question_id in of_b and of_b[question_id].question == outcome.question
    ]
    if not shared:
        raise EvaluationRefused("The runs have no question in common.")
    names = list(dict.fromkeys(metric for pair in shared for outcome in pair for metric in outcome.metrics))
    values_a, values_b = (
        matrix([[outcome.metrics.get(name) for name in names] for outcome in column])
        for column in zip(*shared, strict=True)
    )
    found = zip(names, differences(values_a, values_b), strict=True)
    main = a.main_metric
    return Comparison(
        variant_a=variant_a,
        variant_b=variant_b,
        main_metric=main,
        metrics={name: difference for name, difference in found if difference is not None},
        changes=tuple(_changes(shared, main)),
        questions=len(shared),
        left_out=len(set(of_a) | set(of_b)) - len(shared),
    )


def _changes(shared: Sequence[tuple[Outcome, Outcome]], metric: str) -> list[Change]:
    changes = []
    for a, b in shared:
        before, after = a.metrics.get(metric), b.metrics.get(metric)
        if before is not None and after is not None and before != after:
            changes.append(Change(a, b, after - before))
    return sorted(changes, key=lambda each: -abs(each.change))
