"""Shows runs and comparisons in the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table

from app.evaluation.calibration import Calibrated
from app.evaluation.compare import Comparison
from app.evaluation.intervals import Difference
from app.evaluation.runs import Run

CHANGES_SHOWN = 10
SURE = 0.05


def show_run(console: Console, run: Run) -> None:
    metrics = list(dict.fromkeys(each.metric for each in run.summaries))
    if len(run.variants) == 1:
        _show_one(console, run)
    else:
        numbers = [Column(metric, justify="right") for metric in metrics]
        table = Table(
            "stage",
            *numbers,
            Column("p50 ms", justify="right"),
            Column("p95 ms", justify="right"),
            title=run.name,
        )
        found = {(each.variant, each.metric): each for each in run.summaries}
        times = {each.variant: (f"{each.p50_ms:.1f}", f"{each.p95_ms:.1f}") for each in run.timings}
        for variant in run.variants:
            cells = [
                f"{each.mean:.4f}\n[dim]{_short(each.low)}–{_short(each.high)}[/dim]" if each else ""
                for each in (found.get((variant, metric)) for metric in metrics)
            ]
            table.add_row(variant, *cells, *times.get(variant, ("", "")))
        console.print(table)
    for note in run.notes:
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)


def show_comparison(console: Console, comparison: Comparison) -> None:
    a, b = comparison.variant_a, comparison.variant_b
    names = ("A", "B", "B - A, 95 %", "p", "better", "worse", "n")
    numbers = [Column(name, justify="right") for name in names]
    title = f"B: {b}, A: {a}, {comparison.questions} questions"
    table = Table("metric", *numbers, title=title)
    for metric, each in comparison.metrics.items():
        table.add_row(metric, *_cells(each), style="bold" if each.p < SURE else "")
    console.print(table)
    if comparison.left_out:
        console.print(
            f"{comparison.left_out} questions are left out: not in both runs, or not in the same words."
        )
    _show_changes(console, comparison)


def show_calibration(console: Console, found: Calibrated) -> None:
    held_out = found.held_out
    numbers = [Column(name, justify="right") for name in ("as shipped", "calibrated", "95 %")]
    table = Table(
        "figure",
        *numbers,
        title=f"Held out: {held_out.answerable} answerable and {held_out.unanswerable} unanswerable questions",
    )
    for name in ("refusal_precision", "refusal_recall", "balanced_accuracy", "auc"):
        before, now = (getattr(each, name) for each in (found.shipped, held_out))
        table.add_row(
            name.replace("_", " "),
            f"{before.value:.3f}",
            f"{now.value:.3f}",
            f"{now.low:.3f} to {now.high:.3f}",
        )
    console.print(table)
    console.print(f"A question is refused below an evidence score of {found.weighing.threshold:.3f}.")
    if found.failed:
        console.print(f"{found.failed} questions could not be asked and were left out.", style="yellow")


def show_dropped(console: Console, dropped: Sequence[tuple[str, int]]) -> None:
    for reason, count in dropped:
        console.print(f"  {count} dropped: {reason}", style="dim", markup=False, highlight=False)


def _show_one(console: Console, run: Run) -> None:
    numbers = [Column(name, justify="right") for name in ("mean", "95 %", "questions")]
    table = Table("metric", *numbers, title=run.name)
    for each in run.summaries:
        table.add_row(each.metric, f"{each.mean:.4f}", f"{each.low:.3f} to {each.high:.3f}", str(each.count))
    for timing in run.timings:
        table.add_row("time, p50", f"{timing.p50_ms:.0f} ms", "", "")
        table.add_row("time, p95", f"{timing.p95_ms:.0f} ms", "", "")
    console.print(table)


def _short(share: float) -> str:
    """.931 for 0.931: five columns are to fit into 80 characters."""
    return f"{share:.3f}".removeprefix("0")


def _cells(each: Difference) -> list[str]:
    return [
        f"{each.a:.4f}",
        f"{each.b:.4f}",
        f"{each.difference:+.4f}\n{each.low:+.4f} to {each.high:+.4f}",
        f"{each.p:.4f}",
        str(each.better),
        str(each.worse),
        str(each.count),
    ]


def _show_changes(console: Console, comparison: Comparison) -> None:
    if not comparison.changes:
        console.print(f"No question changed in {comparison.main_metric}.")
        return
    table = Table(
        Column("change", justify="right"), "question", title=f"Most changed in {comparison.main_metric}"
    )
    for each in comparison.changes[:CHANGES_SHOWN]:
        before, after = (outcome.metrics[comparison.main_metric] for outcome in (each.a, each.b))
        table.add_row(f"{before:.3f} -> {after:.3f}", f"{each.a.question}\n({each.a.id})")
    console.print(table, markup=False)
