"""The report of a benchmark: one HTML page that holds all that it shows, and a comparison with an earlier one."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from app.evaluation.plots import lines, title_of
from app.measuring.figures import Figures, advice, headline, saturation

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parents[1] / "pages"),
    autoescape=select_autoescape(),
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(figures: Figures, earlier: Figures | None = None) -> str:
    return _templates.get_template("bench.html").render(
        figures=figures,
        knee=saturation([(load.clients, load.tokens_per_s) for load in figures.chats]),
        advice=advice(figures),
        headline=headline(figures),
        compared=compared(figures, earlier) if earlier is not None else {},
        earlier=earlier,
        plots=[(title_of(plot), Markup(plot)) for plot in plots_of(figures)],  # noqa: S704 - plots escapes its texts
    )


def plots_of(figures: Figures) -> list[str]:
    knee = saturation([(load.clients, load.tokens_per_s) for load in figures.chats])
    plots = [
        lines(
            {"searches": [(load.clients, load.per_second) for load in figures.searches]},
            title="Searches a second, by clients that search at once",
            across="clients",
            unit="a second",
            marked=saturation([(load.clients, load.per_second) for load in figures.searches]),
        )
    ]
    if figures.chats:
        first = [(load.clients, load.first_token) for load in figures.chats]
        between = [(load.clients, load.between_tokens) for load in figures.chats]
        plots += [
            lines(
                {"tokens": [(load.clients, load.tokens_per_s) for load in figures.chats]},
                title="Tokens a second, by clients that chat at once; where it is saturated is marked",
                across="clients",
                unit="a second",
                marked=knee,
            ),
            lines(
                {
                    "p50": [(clients, each.p50_ms) for clients, each in first if each],
                    "p95": [(clients, each.p95_ms) for clients, each in first if each],
                },
                title="Time to the first token",
                across="clients",
                unit="ms",
            ),
            lines(
                {
                    "p50": [(clients, each.p50_ms) for clients, each in between if each],
                    "p95": [(clients, each.p95_ms) for clients, each in between if each],
                },
                title="Time between tokens",
                across="clients",
                unit="ms",
            ),
        ]
    return plots


def compared(figures: Figures, earlier: Figures) -> dict[str, tuple[float, float]]:
    """Of each figure that both have: the earlier value, and how many times as good the new one is."""
    before = headline(earlier)
    told = {}
    for name, (value, _, more_is_better) in headline(figures).items():
        if name in before and value and before[name][0]:
            gain = value / before[name][0]
            told[name] = (before[name][0], gain if more_is_better else 1 / gain)
    return told
