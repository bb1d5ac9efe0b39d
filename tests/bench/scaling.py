"""Two api and two worker processes on one PostgreSQL beside one of each: searches a second, and whether they agree.

`python -m tests.bench --only scaling [--quick]` runs it alone. All four run all the time; rounds in which one api is
asked take turns with rounds in which both are. Embeddings cost nothing here: what is shared out is the api's own work.
"""

import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import psutil
from rich.progress import Progress

from tests.api_role import NOWHERE, ApiRole
from tests.bench import roles
from tests.bench.figures import Bound, Figure, MeasureFailed, Samples, skipped
from tests.bench.peers import load
from tests.bench.peers.load import LoadProcess
from tests.bench.run import QUICK_REASON
from tests.faults.ingesting import quick_models
from tests.faults.quick_models import ALIAS
from tests.postgres import BINARIES, running_postgres

SAYS = "searches a second of two api and two worker processes on one PostgreSQL, times those of one of each"
MUST_REACH = Bound(1.7, is_upper=False)
CORES_NEEDED = 4
"""Two api processes, PostgreSQL and who asks: with fewer, there is nothing for a second process to run on."""
AT_ONCE = 16
"""Requests in flight in all, whoever is asked."""
FILE_WORDS = 2_000


@dataclass(frozen=True)
class Sizes:
    """How much is measured. `seconds`: of a round."""

    files: int
    rounds: int
    seconds: float
    compared: int
    """Queries whose results are compared."""


FULL = Sizes(files=200, rounds=8, seconds=4.0, compared=100)
QUICK = Sizes(files=5, rounds=1, seconds=0.5, compared=5)


@dataclass
class Measured:
    """Rounds of one kind."""

    a_second: list[float] = field(default_factory=list)
    cpu_ms: list[dict[str, float]] = field(default_factory=list)
    """Of a search, by who used it."""

    @property
    def rate(self) -> float:
        return statistics.median(self.a_second)

    def share(self, who: str) -> float:
        return statistics.median(each[who] for each in self.cpu_ms)


def compare(is_quick: bool, progress: Progress) -> list[Figure]:
    if not list(BINARIES.glob("*/bin/initdb")):
        return [skipped("scaling", SAYS, "PostgreSQL is not installed")]
    sizes = QUICK if is_quick else FULL
    with (
        tempfile.TemporaryDirectory(prefix="bench-scaling-") as folder,
        LoadProcess() as process,
        _processes(Path(folder)) as apis,
    ):
        store_id = roles.new_store(apis[0])
        roles.ingest(apis[0], store_id, range(sizes.files), words=FILE_WORDS)
        searches = [roles.searches(api, store_id) for api in apis]
        _check_agreement(process, apis, searches, sizes.compared)
        _round(Measured(), process, apis, searches, sizes.seconds)  # not counted
        one, two = Measured(), Measured()
        for number in progress.track(range(sizes.rounds), description="scaling"):
            for measured, asked in ((one, 1), (two, 2)) if number % 2 else ((two, 2), (one, 1)):
                _round(measured, process, apis, searches[:asked], sizes.seconds)
    return [_figure(one, two, is_quick)]


@contextmanager
def _processes(folder: Path) -> Iterator[list[ApiRole]]:
    with ExitStack() as started:
        server = started.enter_context(running_postgres())
        settings = {
            "STRONGROOM_STORAGE__DATABASE_URL": server.url(server.create_database()),
            "STRONGROOM_MODELS__URL": started.enter_context(quick_models(folder / "models.log")),
            "STRONGROOM_MODELS__EMBEDDING": ALIAS,
            "STRONGROOM_ENGINE__URL": NOWHERE,
        }
        apis = [started.enter_context(ApiRole(folder / "data", settings)) for _ in range(2)]
        for api in apis:
            api.start()
            started.enter_context(roles.worker(folder / "data", settings))
        yield apis


def _check_agreement(
    process: LoadProcess, apis: Sequence[ApiRole], searches: Sequence[Sequence[bytes]], compared: int
) -> None:
    """Raises MeasureFailed unless each api gives the same results, scores included. Builds their indexes, too."""
    found = []
    for api, asked in zip(apis, searches, strict=True):
        answers = process.run(load.closed_loop, api.url, asked[:compared], at_once=1, keep_bodies=True)
        found.append([orjson.loads(answer.body)["data"] for answer in load.checked(answers)])
    if found[0] != found[1] or not all(found[0]):
        raise MeasureFailed("The two api processes do not find the same.")


def _round(
    measured: Measured,
    process: LoadProcess,
    apis: Sequence[ApiRole],
    searches: Sequence[Sequence[bytes]],
    seconds: float,
) -> None:
    asked = {api.url: requests for api, requests in zip(apis, searches, strict=False)}
    before = _cpu_s([api.pid for api in apis])
    answers = load.checked(
        process.run(load.closed_loops, asked, at_once=AT_ONCE // len(asked), seconds=seconds)
    )
    after = _cpu_s([api.pid for api in apis])
    measured.a_second.append(len(answers) / load.span_s(answers))
    measured.cpu_ms.append({who: 1000 * (after[who] - before[who]) / len(answers) for who in after})


def _cpu_s(api_pids: Sequence[int]) -> defaultdict[str, float]:
    """Seconds of CPU by kind of process, of all that this one started."""
    used: defaultdict[str, float] = defaultdict(float)
    for each in psutil.Process().children(recursive=True):
        with each.oneshot():
            times = each.cpu_times()
            who = (
                "api" if each.pid in api_pids else "PostgreSQL" if each.name() == "postgres" else _kind(each)
            )
        used[who] += times.user + times.system
    return used


def _kind(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    return "models" if "quick_models" in command else "client" if "spawn_main" in command else "worker"


def _figure(one: Measured, two: Measured, is_quick: bool) -> Figure:
    cores = os.cpu_count() or 1
    kinds = sorted(one.cpu_ms[0])
    # An api process runs on one core, whatever the others of the machine do.
    busy = sum(one.share(who) for who in kinds) / one.share("api")
    reason = QUICK_REASON if is_quick else ""
    if not is_quick and cores < CORES_NEEDED:
        reason = f"{cores} cores: one busy api takes {busy:.1f} with its database, so {cores / busy:.2f} is the most"
    return Figure(
        "scaling",
        SAYS,
        unit="x",
        measured=round(two.rate / one.rate, 2),
        bound=MUST_REACH,
        is_judged=not reason,
        reason=reason,
        samples={
            "one of each": Samples(tuple(one.a_second), "1/s"),
            "two of each": Samples(tuple(two.a_second), "1/s"),
        },
        facts={
            "cores": cores,
            "cores that one busy api takes with all that serves it": round(busy, 2),
            **{f"CPU of a search with one, {who}, ms": round(one.share(who), 2) for who in kinds},
            **{f"CPU of a search with two, {who}, ms": round(two.share(who), 2) for who in kinds},
        },
    )
