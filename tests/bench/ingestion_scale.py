"""Whether a document costs more the more there are: small ones through the API until there are 50,000.

`python -m tests.bench --only ingestion_scale [--quick]` runs it alone. Their embedding is part of the time, but not of
the CPU seconds, which are those of the api and worker roles with the parsers. The collection is searched after each
group, so that the indexes' share of the cost is in it.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from tests.bench.corpora import prose
from tests.bench.figures import Bound, Figure, Samples
from tests.bench.ingestion_stack import IngestionStack, text_files
from tests.bench.run import QUICK_REASON

SAYS = "cost of a small document in the last quarter of 50,000, times that in the first"
WORDS = 12
"""Of a document: so few that the embedding model does not set the pace alone."""
ROLES = ("api", "worker")
MUST_REACH = Bound(1.15, is_upper=True)


@dataclass(frozen=True)
class Sizes:
    documents: int
    group: int
    """Are added, awaited and measured together. Divides a quarter of the documents."""


FULL = Sizes(documents=50_000, group=500)
QUICK = Sizes(documents=1_000, group=125)


@dataclass(frozen=True)
class GroupCost:
    """Of one document, in seconds: the group's mean."""

    wall_s: float
    cpu_s: dict[str, float]
    """By role."""

    @property
    def total_cpu_s(self) -> float:
        return sum(self.cpu_s.values())


def compare(is_quick: bool, progress: Progress) -> list[Figure]:
    sizes = QUICK if is_quick else FULL
    with (
        tempfile.TemporaryDirectory(prefix="bench-scale-") as folder,
        IngestionStack.running(Path(folder)) as ours,
    ):
        costs = _measure(ours, sizes, progress)
    quarter = len(costs) // 4
    first, last = costs[:quarter], costs[-quarter:]
    reason = QUICK_REASON if is_quick else ""
    return [
        Figure(
            "ingestion_scale",
            f"CPU time (api, worker): {SAYS}",
            unit="x",
            measured=round(_mean_cpu_s(last) / _mean_cpu_s(first), 3),
            bound=MUST_REACH,
            is_judged=not is_quick,
            reason=reason,
            samples={
                "first quarter": Samples.milliseconds([each.total_cpu_s for each in first]),
                "last quarter": Samples.milliseconds([each.total_cpu_s for each in last]),
            },
            facts={
                f"CPU ms a document in the {name} role, first and last quarter": ", ".join(
                    f"{1000 * sum(each.cpu_s[name] for each in some) / quarter:.2f}" for some in (first, last)
                )
                for name in ROLES
            },
        ),
        Figure(
            "ingestion_scale_wall",
            f"time on the clock: {SAYS}",
            unit="x",
            measured=round(_mean_wall_s(last) / _mean_wall_s(first), 3),
            bound=MUST_REACH,
            is_judged=not is_quick,
            reason=reason,
            samples={
                "first quarter": Samples.milliseconds([each.wall_s for each in first]),
                "last quarter": Samples.milliseconds([each.wall_s for each in last]),
            },
            facts={"documents/s over all": round(len(costs) / sum(each.wall_s for each in costs), 1)},
        ),
    ]


def _measure(ours: IngestionStack, sizes: Sizes, progress: Progress) -> list[GroupCost]:
    store_id = ours.api.create_store("bench: scale")
    documents = _Documents(sizes.documents + sizes.group)
    _add_group(ours, store_id, documents, range(sizes.group))  # warms up; not counted
    costs = []
    starts = range(sizes.group, sizes.documents + sizes.group, sizes.group)
    for start in progress.track(starts, description="ingestion scale"):
        cpu_s = {role: ours.cpu_s(role) for role in ROLES}
        started = time.monotonic()
        _add_group(ours, store_id, documents, range(start, start + sizes.group))
        wall_s = (time.monotonic() - started) / sizes.group
        costs.append(
            GroupCost(wall_s, {role: (ours.cpu_s(role) - cpu_s[role]) / sizes.group for role in ROLES})
        )
    ours.check_completed(store_id, sizes.documents + sizes.group)
    return costs


class _Documents:
    """Texts by number, all different."""

    def __init__(self, count: int) -> None:
        self._words = prose(words=count * WORDS)

    def text(self, number: int) -> str:
        return f"Note {number}. {' '.join(self._words[number * WORDS : (number + 1) * WORDS])}"


def _add_group(ours: IngestionStack, store_id: str, documents: _Documents, numbers: range) -> None:
    ours.add(store_id, text_files({f"note-{number}": documents.text(number) for number in numbers}))
    ours.wait_until_quiet()
    ours.api.search(store_id, documents.text(numbers[0]))


def _mean_cpu_s(costs: Sequence[GroupCost]) -> float:
    return sum(each.total_cpu_s for each in costs) / len(costs)


def _mean_wall_s(costs: Sequence[GroupCost]) -> float:
    return sum(each.wall_s for each in costs) / len(costs)
