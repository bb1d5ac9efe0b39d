"""The report of a run: one HTML page that holds all that it shows, with the questions that went worst."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from app.evaluation.plots import bars, shares, title_of
from app.evaluation.runs import Cited, Kind, Outcome, Run

WORST = 25
FOUND_SHOWN = 5
_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parents[1] / "pages"),
    autoescape=select_autoescape(),
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Shown:
    """A document or an answer; `told` says where it stands."""

    name: str
    text: str
    told: str = ""
    is_right: bool = False


@dataclass(frozen=True)
class Worst:
    """One of the questions that went worst."""

    question: str
    id: str
    value: float
    wanted: Sequence[Shown]
    found: Sequence[Shown]
    citations: Sequence[Cited]
    remarks: Sequence[str]


def write_report(path: Path, run: Run, excerpt: Callable[[str], str] | None = None) -> None:
    """`excerpt` gives the beginning of a document by its id."""
    path.write_text(render(run, excerpt), "utf-8")


def render(run: Run, excerpt: Callable[[str], str] | None = None) -> str:
    return _templates.get_template("evaluation.html").render(
        run=run,
        metrics=list(dict.fromkeys(each.metric for each in run.summaries)),
        summary_of={(each.variant, each.metric): each for each in run.summaries},
        questions=len({outcome.id for outcome in run.outcomes}),
        plots=[(title_of(plot), Markup(plot)) for plot in plots_of(run)],  # noqa: S704 - plots escapes its texts
        worst_variant=run.variants[-1],
        worst=worst(run, excerpt),
    )


def plots_of(run: Run) -> list[str]:
    by_variant = {variant: list(run.of(variant).values()) for variant in run.variants}
    return [
        bars(run.summaries),
        shares(
            {name: _values(members, run.main_metric) for name, members in by_variant.items()},
            title=f"Share of questions with at most so much {run.main_metric}",
        ),
        shares(
            {
                name: [each.seconds * 1000 for each in members if each.error is None]
                for name, members in by_variant.items()
            },
            title="Share of questions answered within so many milliseconds",
            unit="ms",
            cut=99,
        ),
    ]


def worst(run: Run, excerpt: Callable[[str], str] | None = None) -> list[Worst]:
    """Of the last variant, by the run's main metric."""
    outcomes = [
        outcome
        for outcome in run.of(run.variants[-1]).values()
        if outcome.metrics.get(run.main_metric) is not None
    ]
    ordered = sorted(outcomes, key=lambda outcome: outcome.metrics[run.main_metric] or 0.0)
    show = _retrieved if run.kind is Kind.RETRIEVAL else _answered
    return [show(outcome, run.main_metric, excerpt or str) for outcome in ordered[:WORST]]


def _retrieved(outcome: Outcome, metric: str, excerpt: Callable[[str], str]) -> Worst:
    ranks = {document_id: rank for rank, document_id in enumerate(outcome.found, 1)}
    wanted = [
        Shown(each, excerpt(each), told=f"found at {ranks[each]}" if each in ranks else "not found")
        for each in outcome.wanted[:FOUND_SHOWN]
    ]
    found = [
        Shown(each, excerpt(each), told=str(rank), is_right=each in outcome.wanted)
        for rank, each in enumerate(outcome.found[:FOUND_SHOWN], 1)
    ]
    return _worst(outcome, metric, wanted, found, [])


def _answered(outcome: Outcome, metric: str, _: Callable[[str], str]) -> Worst:
    wanted = [Shown("", each) for each in outcome.wanted]
    wanted += [Shown(each, "", told="document") for each in outcome.wanted_documents]
    remarks = []
    if outcome.answerable is False:
        remarks.append("The documents do not answer it: it should have been refused.")
    if outcome.answerable and outcome.grounded is False:
        remarks.append("It was refused, or nothing supported its answer.")
    return _worst(outcome, metric, wanted, [Shown("", each) for each in outcome.found], remarks)


def _worst(
    outcome: Outcome, metric: str, wanted: Sequence[Shown], found: Sequence[Shown], remarks: Sequence[str]
) -> Worst:
    return Worst(
        question=outcome.question,
        id=outcome.id,
        value=outcome.metrics[metric] or 0.0,
        wanted=wanted,
        found=found,
        citations=outcome.citations,
        remarks=[*remarks, *([f"It failed: {outcome.error}"] if outcome.error is not None else [])],
    )


def _values(members: Sequence[Outcome], metric: str) -> list[float]:
    return [value for each in members if (value := each.metrics.get(metric)) is not None]
