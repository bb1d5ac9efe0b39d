"""`python -m tests.bench`: measures the serving layer, then a whole stack. Status 1 when a bound is missed."""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.bench import (
    citations,
    cited_relay,
    console,
    first_token,
    index_scale,
    ingestion,
    ingestion_scale,
    injections,
    machine,
    parsing,
    prefix_routing,
    prefix_trace,
    prompt_layout,
    quality,
    questions,
    refusal,
    report,
    scaling,
    scrape,
    search_latency,
    searchable,
    serving_embedding,
    serving_gateway,
    start,
    sweep,
    tracing,
)
from tests.bench.clients import Api
from tests.bench.figures import Figure, failed
from tests.bench.run import FULL, QUICK, Run
from tests.stack import ROOT, Stack

OUTPUT = ROOT / ".bench"
LONGEST_S = 9_000
"""After this a run that hangs is ended, and its stack with it."""

Compare = Callable[[bool, Progress], list[Figure]]
Measure = Callable[[Run], list[Figure]]

COMPARISONS: dict[str, tuple[str, Compare]] = {
    "serving_embedding": (serving_embedding.SAYS, serving_embedding.compare),
    "serving_gateway": (serving_gateway.SAYS, serving_gateway.compare),
    "cited_relay": (cited_relay.SAYS, cited_relay.compare),
    "prefix_routing": (prefix_routing.SAYS, lambda *_: prefix_routing.measure()),
    "ingestion": (ingestion.SAYS, ingestion.compare),
    "ingestion_scale": (ingestion_scale.SAYS, ingestion_scale.compare),
    "parsing": (parsing.SAYS, parsing.compare),
    "index_scale": (index_scale.SAYS, index_scale.compare),
    "quality": (quality.SAYS, quality.compare),
    "refusal": (refusal.SAYS, refusal.compare),
    "sweep": (sweep.SAYS, sweep.compare),
    "citations": (citations.SAYS, citations.compare),
    "console": (console.SAYS, console.compare),
    "scaling": (scaling.SAYS, scaling.compare),
    "scrape": (scrape.SAYS, scrape.compare),
    "start": (start.SAYS, start.compare),
    "tracing": (tracing.SAYS, tracing.compare),
}
"""Start what they need by themselves; a stack beside them would take its share of the cores."""

MEASURES: dict[str, tuple[str, Measure]] = {
    "first_token": (first_token.SAYS, first_token.measure),
    "prompt_layout": (prompt_layout.SAYS, prompt_layout.measure),
    "questions": (questions.SAYS, questions.measure),
    "injections": (injections.SAYS, injections.measure),
    "prefix_trace": (prefix_trace.SAYS, prefix_trace.measure),
    "searchable": (searchable.SAYS, searchable.measure),
    "search_latency": (search_latency.SAYS, search_latency.measure),
}


def main() -> int:
    options = _options()
    terminal = Console()
    _end_on_signals()
    described = machine.describe()
    sizes = QUICK if options.quick else FULL
    figures: list[Figure] = []
    with _progress(terminal) as progress:
        for name in [name for name in COMPARISONS if name in options.only]:
            says, compare = COMPARISONS[name]
            figures += _measured(name, says, partial(compare, options.quick, progress), progress)
        if chosen := [name for name in MEASURES if name in options.only]:
            terminal.print("Starting a stack with its engine (about a minute)", highlight=False)
            with _running_stack() as stack, stack.http() as client:
                run = Run(stack, Api(client), sizes, progress)
                for name in chosen:
                    says, measure = MEASURES[name]
                    figures += _measured(name, says, partial(measure, run), progress)
    report.show(terminal, described, figures)
    for path in report.write(OUTPUT, described, figures):
        terminal.print(f"wrote {path.relative_to(ROOT)}", highlight=False)
    return 1 if any(figure.is_ok is False for figure in figures) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, judges nothing")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*COMPARISONS, *MEASURES],
        default=[*COMPARISONS, *MEASURES],
        metavar="NAME",
        help=", ".join([*COMPARISONS, *MEASURES]),
    )
    return parser.parse_args()


def _measured(name: str, says: str, measure: Callable[[], list[Figure]], progress: Progress) -> list[Figure]:
    started = time.monotonic()
    progress.console.print(f"{name}: {says}", highlight=False)
    try:
        return measure()
    except Exception as error:  # noqa: BLE001
        # The loop's edge: a measure that fails is a row of the table, and the others go on.
        progress.console.print_exception()
        return [failed(name, says, f"{type(error).__name__}: {error}")]
    finally:
        progress.console.print(f"{name}: {time.monotonic() - started:.0f} s", highlight=False)


@contextmanager
def _running_stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="strongroom-bench-") as folder:
        stack = Stack(
            Path(folder) / "data", {"STRONGROOM_MODELS__RERANKER": "", "STRONGROOM_MODELS__CACHE_MIB": "0"}
        )
        try:
            stack.start()
            yield stack
        finally:
            stack.stop()


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def _end_on_signals() -> None:
    """As an exception, so that the stack is stopped on the way out."""

    def end(number: int, _: FrameType | None) -> None:
        sys.exit(f"Ended by {signal.Signals(number).name}.")

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, end)
    signal.alarm(LONGEST_S)


if __name__ == "__main__":
    sys.exit(main())
