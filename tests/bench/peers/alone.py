"""Runs one comparison without the whole benchmark's stack: `python -m tests.bench.serving_gateway --quick`."""

import argparse
import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.bench import machine, report
from tests.bench.figures import Figure

Compare = Callable[[bool, Progress], list[Figure]]


def run_alone(compare: Compare, *, prog: str) -> None:
    """Prints the tables. Exits with status 1 when a bound is missed."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, judges nothing")
    is_quick = parser.parse_args().quick
    console = Console()
    described, started = machine.describe(), time.monotonic()
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        figures = compare(is_quick, progress)
    report.show(console, described, figures)
    console.print(f"{time.monotonic() - started:.0f} s")
    sys.exit(any(figure.is_ok is False for figure in figures))
