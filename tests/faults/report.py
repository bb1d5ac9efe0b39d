"""What a module of this room found, as the row that it prints last and `python -m tests.faults` puts into its table."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

MARK = "row: "


@dataclass(frozen=True)
class Row:
    fault: str
    """With its number in the README of this room."""
    times: int
    violations: int
    recovery_s: float | None = None
    """The longest."""
    figures: str = ""
    """What else was measured, with the bound that it was held against."""

    def show(self) -> None:
        print(MARK + json.dumps(asdict(self)), flush=True)


def row_in(output: str) -> Row | None:
    """The last that was shown."""
    shown = [line for line in output.splitlines() if line.startswith(MARK)]
    return Row(**json.loads(shown[-1].removeprefix(MARK))) if shown else None


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that so many are not above: of few values the p99 is the largest."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def table(rows: Sequence[tuple[Row, str]]) -> str:
    """In Markdown; the second is how long it took, or what went wrong."""
    lines = [
        "| fault | times | violations | longest recovery | measured | ran |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row, ran in rows:
        recovery = "" if row.recovery_s is None else f"{row.recovery_s:.1f} s"
        cells = (row.fault, f"{row.times:,}", str(row.violations), recovery, row.figures, ran)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
