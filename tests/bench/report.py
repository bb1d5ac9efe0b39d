"""Shows figures as tables, and writes them as JSON and as SVG plots of their samples."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from tests.bench.figures import Figure, Outcome, Samples

COLOURS = ("#1f6feb", "#d9480f", "#2b8a3e")
WIDTH, HEIGHT, MARGIN = 640, 320, 48


def show(console: Console, machine: dict[str, Any], figures: Sequence[Figure]) -> None:
    described = "{processor}, {cores} cores, {accelerator}, load {load_before} before the start".format(
        **machine
    )
    console.print(described, highlight=False, markup=False)
    console.print(_figures_table(figures))
    console.print(_samples_table(figures))
    for figure in figures:
        for name, fact in figure.facts.items():
            console.print(f"{figure.name}: {name}: {fact}", highlight=False, markup=False)


def write(folder: Path, machine: dict[str, Any], figures: Sequence[Figure]) -> list[Path]:
    """Writes results.json and a plot for each figure with samples. Returns what was written."""
    folder.mkdir(exist_ok=True)
    results = folder / "results.json"
    content = {"machine": machine, "figures": [figure.to_json() for figure in figures]}
    results.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    plots = [(folder / f"{figure.name}.svg", figure) for figure in figures if figure.samples]
    for path, figure in plots:
        path.write_text(plot(figure))
    return [results, *(path for path, _ in plots)]


def plot(figure: Figure) -> str:
    """SVG: for each series, the share of samples at or below a value, between the outermost p1 and p99."""
    low = min(0.0, *(each.percentile(1) for each in figure.samples.values()))
    high = max(each.percentile(99) for each in figure.samples.values())
    unit = next(iter(figure.samples.values())).unit
    lines = [
        _curve(each, low, high, COLOURS[index % 3]) for index, each in enumerate(figure.samples.values())
    ]
    legend = [
        _text(MARGIN + 8, MARGIN + 16 * index, f"{name} (n = {len(each.values)})", COLOURS[index % 3])
        for index, (name, each) in enumerate(figure.samples.items())
    ]
    axis = [
        f'<path d="M{MARGIN} {MARGIN} V{HEIGHT - MARGIN} H{WIDTH - MARGIN}" fill="none" stroke="#333"/>',
        _text(MARGIN, HEIGHT - MARGIN + 18, f"{low:.3g}", "#333"),
        _text(WIDTH - MARGIN - 40, HEIGHT - MARGIN + 18, f"{high:.3g} {unit}", "#333"),
        _text(8, MARGIN, "100 %", "#333"),
        _text(8, HEIGHT - MARGIN, "0 %", "#333"),
        _text(MARGIN, 24, figure.says, "#333"),
    ]
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="#fff"/>',
            *axis,
            *lines,
            *legend,
            "</svg>\n",
        ]
    )


def _figures_table(figures: Sequence[Figure]) -> Table:
    table = Table("figure", "measured", "must reach", "ok", title="Strongroom, measured")
    for figure in figures:
        bound = f"{figure.bound} {figure.unit}".strip() if figure.bound else ""
        ok = {True: "[green]yes[/green]", False: "[red]no[/red]", None: figure.reason or "-"}[figure.is_ok]
        table.add_row(figure.says, _measured(figure), bound, ok if figure.measured is not None else "-")
    return table


def _measured(figure: Figure) -> str:
    if figure.outcome is not Outcome.MEASURED:
        return f"{figure.outcome.value}: {figure.reason}"
    return f"{figure.measured:g} {figure.unit}".strip()


def _samples_table(figures: Sequence[Figure]) -> Table:
    table = Table("figure", "samples", "n", "p50", "p95", "p99", "unit")
    for figure in figures:
        for name, each in figure.samples.items():
            percentiles = [f"{each.percentile(percent):.3g}" for percent in (50, 95, 99)]
            table.add_row(figure.name, name, str(len(each.values)), *percentiles, each.unit)
    return table


def _curve(samples: Samples, low: float, high: float, colour: str) -> str:
    ordered = sorted(samples.values)
    points = []
    for rank, value in enumerate(ordered, 1):
        if low <= value <= high:
            x = MARGIN + (WIDTH - 2 * MARGIN) * (value - low) / (high - low)
            y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * rank / len(ordered)
            points.append(f"{x:.1f},{y:.1f}")
    return f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _text(x: int, y: int, text: str, colour: str) -> str:
    return f'<text x="{x}" y="{y}" fill="{colour}">{escape(text)}</text>'
