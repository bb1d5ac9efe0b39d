"""Draws plots as SVG that stands in a page as it is: no script, no address, every text escaped."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from markupsafe import Markup

from app.evaluation.runs import Summary

COLOURS = ("#1f6feb", "#d9480f", "#2b8a3e", "#8250df", "#b08800")
WIDTH, LABELS, MARGIN = 720, 150, 40
BAR, GAP = 14, 18
CURVE_HEIGHT = 280
POINTS = 200
"""Of a curve: more would not be seen."""


def bars(summaries: Sequence[Summary]) -> str:
    """A group of each metric, a bar of each variant in it from 0 to 1, with its 95 % interval."""
    metrics = list(dict.fromkeys(each.metric for each in summaries))
    variants = list(dict.fromkeys(each.variant for each in summaries))
    across = WIDTH - LABELS - 2 * MARGIN
    parts, y = [], 30
    for metric in metrics:
        members = [each for each in summaries if each.metric == metric]
        parts.append(_text(LABELS - 8, y + len(members) * BAR / 2 + 4, metric, anchor="end"))
        for each in members:
            colour = COLOURS[variants.index(each.variant) % len(COLOURS)]
            middle = y + BAR / 2 - 1
            parts.append(
                f'<rect x="{LABELS}" y="{y}" width="{across * each.mean:.1f}" height="{BAR - 2}" fill="{colour}"/>'
                f'<path d="M{LABELS + across * each.low:.1f} {middle} H{LABELS + across * each.high:.1f}" '
                'stroke="currentColor" stroke-width="1.5"/>'
            )
            parts.append(
                _text(LABELS + across * max(each.high, each.mean) + 6, y + BAR - 4, f"{each.mean:.3f}")
            )
            y += BAR
        y += GAP
    scale = [
        f'<path d="M{LABELS + across * part:.1f} 24 V{y - GAP + 4}" stroke="currentColor" stroke-opacity=".2"/>'
        + _text(LABELS + across * part, y, f"{part:g}", anchor="middle")
        for part in (0, 0.25, 0.5, 0.75, 1)
    ]
    return _svg("Metrics with 95 % intervals", y + 10, [*_legend(variants), *scale, *parts])


def shares(series: Mapping[str, Sequence[float]], *, title: str, unit: str = "", cut: float = 100.0) -> str:
    """For each series, the share of questions at or below a value, up to the greatest `cut`th percentile."""
    known = {name: np.sort(np.asarray(values, np.float64)) for name, values in series.items() if len(values)}
    high = max((float(np.percentile(values, cut)) for values in known.values()), default=0.0) or 1.0
    left, right, top, bottom = MARGIN + 10, WIDTH - MARGIN, 30, CURVE_HEIGHT - MARGIN
    axis = [
        f'<path d="M{left} {top} V{bottom} H{right}" fill="none" stroke="currentColor"/>',
        _text(left, bottom + 18, "0", anchor="middle"),
        _text(right, bottom + 18, f"{_shown(high)} {unit}".strip(), anchor="end"),
        _text(left - 6, top + 4, "100 %", anchor="end"),
        _text(left - 6, bottom, "0 %", anchor="end"),
    ]
    values_at = np.linspace(0, high, POINTS)
    curves = []
    for index, values in enumerate(known.values()):
        reached = np.searchsorted(values, values_at, side="right") / len(values)
        points = " ".join(
            f"{left + (right - left) * value / high:.1f},{bottom - (bottom - top) * share:.1f}"
            for value, share in zip(values_at, reached, strict=True)
        )
        colour = COLOURS[index % len(COLOURS)]
        curves.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    return _svg(title, CURVE_HEIGHT, [*_legend(list(known)), *axis, *curves])


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    across: str,
    unit: str,
    marked: float | None = None,
) -> str:
    """A line of points (x, y) for each series, both from 0; `marked` is an x that stands out."""
    points = [point for each in series.values() for point in each]
    widest = max((x for x, _ in points), default=0.0) or 1.0
    highest = max((y for _, y in points), default=0.0) or 1.0
    left, right, top, bottom = MARGIN + 30, WIDTH - MARGIN, 30, CURVE_HEIGHT - MARGIN

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / widest, bottom - (bottom - top) * y / highest

    drawn = [
        f'<path d="M{left} {top} V{bottom} H{right}" fill="none" stroke="currentColor"/>',
        _text(left, bottom + 18, "0", anchor="middle"),
        _text(right, bottom + 18, f"{widest:g} {across}", anchor="end"),
        _text(left - 6, top + 4, _shown(highest), anchor="end"),
        _text(left - 6, top + 18, unit, anchor="end"),
    ]
    if marked is not None:
        x, _ = at(marked, 0)
        drawn.append(f'<path d="M{x:.1f} {top} V{bottom}" stroke="{COLOURS[1]}" stroke-dasharray="4 4"/>')
    for index, each in enumerate(series.values()):
        colour = COLOURS[index % len(COLOURS)]
        places = [at(x, y) for x, y in each]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    return _svg(title, CURVE_HEIGHT, [*_legend(list(series)), *drawn])


def title_of(plot: str) -> Markup:
    return Markup(plot.partition("<title>")[2].partition("</title>")[0])  # noqa: S704 - escaped there


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" font-family="sans-serif" font-size="12">'
    return "\n".join([head, f"<title>{escape(title)}</title>", *parts, "</svg>"])


def _legend(names: Sequence[str]) -> list[str]:
    return [
        f'<rect x="{LABELS + 110 * index}" y="4" width="10" height="10" fill="{COLOURS[index % len(COLOURS)]}"/>'
        + _text(LABELS + 110 * index + 15, 13, name)
        for index, name in enumerate(names)
    ]


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">{escape(text)}</text>'
