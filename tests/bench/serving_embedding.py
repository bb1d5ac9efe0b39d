"""Embeddings side by side: our models role, infinity, BentoML and a naive server, in one run over the same texts.

`python -m tests.bench --only serving_embedding [--quick]` runs it alone. Each step goes round all servers before the
next, and the others idle while one is measured. Ours stands twice: with what it chooses by itself, and with torch in
float32 like the others, so that a faster backend does not count as better scheduling.
"""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from serving.protocols import Lane
from tests.bench.corpora import SHARED, read_beir
from tests.bench.figures import Bound, Figure, MeasureFailed, Samples, skipped
from tests.bench.peers import embedding_servers, load
from tests.bench.peers.embedding_servers import EmbeddingServer
from tests.bench.peers.install import PeerAbsent
from tests.bench.peers.load import LOST, Answer, LoadProcess
from tests.bench.raw_rate import raw_texts_a_second
from tests.bench.run import QUICK_REASON

SAYS = "embeddings: our models role beside infinity, BentoML and a naive server"
SQUAD = SHARED / "squad" / "beir-v1.1"
OURS, OURS_TORCH = "strongroom", "strongroom-torch"
PEERS = ("naive", "bentoml", "infinity")
AT_ONCE = 8
"""Bulk requests in flight."""
QUERIES_AT_ONCE = 32
"""Single queries in flight when it is measured how many a server can take."""
QUERY_EVERY_S = 0.25
"""Of queries beside bulk work: a constant rate, however late the replies are."""
DEADLINE_S = 1.0

Start = Callable[[Path], AbstractContextManager[EmbeddingServer]]
SERVERS: Mapping[str, Start] = {
    "naive": embedding_servers.naive,
    "bentoml": embedding_servers.bentoml,
    "infinity": embedding_servers.infinity,
    OURS_TORCH: partial(embedding_servers.strongroom, name=OURS_TORCH, backend="torch", precision="float32"),
    OURS: partial(embedding_servers.strongroom, name=OURS),
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured. A bulk phase takes `aim_s`, unless `least_requests` take longer."""

    texts_a_request: int
    least_requests: int
    aim_s: float
    lone_queries: int
    capacity_s: float
    burst: int
    burst_s: float
    departures: int


FULL = Sizes(32, 10, 15.0, lone_queries=100, capacity_s=3.0, burst=1_000, burst_s=5.0, departures=3)
QUICK = Sizes(8, 8, 2.0, lone_queries=10, capacity_s=1.0, burst=100, burst_s=2.0, departures=1)


@dataclass
class Measured:
    """What the steps found of one server."""

    server: EmbeddingServer
    requests: int = 0
    """Of a bulk phase."""
    texts: int = 0
    """Of all bulk phases without queries."""
    rows: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    lone: list[Answer] = field(default_factory=list)
    bulk_rounds: list[float] = field(default_factory=list)
    """Texts a second. Ours has a second one after the queries beside bulk work, to even out a drifting machine."""
    raw_rounds: list[float] = field(default_factory=list)
    queries_a_second: float = math.nan
    beside_bulk: list[Answer] = field(default_factory=list)
    texts_a_second_beside: float = math.nan
    after_departures: list[Answer] = field(default_factory=list)
    burst: list[Answer] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.server.name

    @property
    def texts_a_second(self) -> float:
        return float(np.mean(self.bulk_rounds))

    @property
    def bulk_loss(self) -> float:
        return 1 - self.texts_a_second_beside / self.texts_a_second

    @property
    def in_time(self) -> list[Answer]:
        return [each for each in self.burst if each.status == 200 and each.seconds <= DEADLINE_S]

    @property
    def refused(self) -> list[Answer]:
        return [each for each in self.burst if each.status not in {200, LOST}]

    @property
    def share_of_what_fits(self) -> float:
        return len(self.in_time) / min(len(self.burst), max(1, self.queries_a_second * DEADLINE_S))


def compare(is_quick: bool, progress: Progress) -> list[Figure]:
    if not SQUAD.is_dir():
        return [skipped("embedding", SAYS, f"{SQUAD} is absent")]
    with tempfile.TemporaryDirectory(prefix="bench-embedding-") as folder, LoadProcess() as process:
        comparison = _Comparison(QUICK if is_quick else FULL, process, progress)
        measured, absent = comparison.run(Path(folder))
    figures = _figures(measured, absent)
    return [replace(each, is_judged=False, reason=QUICK_REASON) for each in figures] if is_quick else figures


class _Comparison:
    """The steps, each for one server at a time."""

    def __init__(self, sizes: Sizes, process: LoadProcess, progress: Progress) -> None:
        squad = read_beir(SQUAD)
        self._sizes = sizes
        self._texts = list(squad.texts.values())
        self._queries = iter(dict.fromkeys(squad.queries.values()))
        self._process = process
        self._progress = progress

    def run(self, folder: Path) -> tuple[dict[str, Measured], dict[str, str]]:
        """What was measured by server, and why others were not."""
        steps = (
            self._warm_up,
            self._lone,
            self._capacity,
            self._bulk,
            self._beside_bulk,
            self._departures,
            self._burst,
        )
        measured: dict[str, Measured] = {}
        absent: dict[str, str] = {}
        with ExitStack() as every:
            exits = {name: every.enter_context(ExitStack()) for name in SERVERS}
            for name in self._progress.track(SERVERS, description="start"):
                try:
                    measured[name] = Measured(exits[name].enter_context(SERVERS[name](folder)))
                except (PeerAbsent, MeasureFailed) as error:
                    _set_aside(name, error, absent)
            for step in steps:
                for name in self._progress.track(list(measured), description=step.__name__):
                    try:
                        step(measured[name])
                        if step == self._burst:
                            # Some go on with what nobody waits for: not while the next one is measured.
                            exits[name].close()
                        else:
                            self._settle(measured[name].server)
                    except (MeasureFailed, OSError) as error:
                        _set_aside(name, error, absent)
                        del measured[name]
                        exits[name].close()
        return measured, absent

    def _warm_up(self, measured: Measured) -> None:
        """Also keeps some vectors to compare, and finds how many requests take the time of a bulk phase."""
        server, sizes = measured.server, self._sizes
        few = self._process.run(load.ask, server.url, server.request(self._texts[:4], lane=Lane.BULK))
        measured.rows = server.vectors(load.checked([few])[0].body)
        one = server.request(self._texts[-sizes.texts_a_request :], lane=Lane.BULK)
        answers = load.checked(self._process.run(load.one_by_one, server.url, [one] * 3))
        fastest_s = min(each.seconds for each in answers)
        most = len(self._texts) // sizes.texts_a_request
        measured.requests = min(most, max(sizes.least_requests, round(sizes.aim_s / fastest_s)))

    def _lone(self, measured: Measured) -> None:
        requests = self._single(measured.server, 5 + self._sizes.lone_queries)
        measured.lone = load.checked(self._process.run(load.one_by_one, measured.server.url, requests))[5:]

    def _bulk(self, measured: Measured) -> None:
        """Ours between two halves of the bare loop."""
        if measured.name != OURS:
            self._bulk_round(measured)
            return
        texts = self._texts[: measured.requests * self._sizes.texts_a_request]
        measured.raw_rounds.append(raw_texts_a_second(texts[::2]))
        self._bulk_round(measured)
        measured.raw_rounds.append(raw_texts_a_second(texts[1::2]))

    def _bulk_round(self, measured: Measured) -> None:
        requests = self._bulk_requests(measured)
        answers = self._process.run(load.closed_loop, measured.server.url, requests, at_once=AT_ONCE)
        measured.bulk_rounds.append(self._texts_a_second(load.checked(answers)))
        measured.texts += len(answers) * self._sizes.texts_a_request

    def _capacity(self, measured: Measured) -> None:
        """What a second has room for, measured with single queries."""
        answers = self._process.run(
            load.closed_loop,
            measured.server.url,
            self._single(measured.server, 500),
            at_once=QUERIES_AT_ONCE,
            seconds=self._sizes.capacity_s,
        )
        measured.queries_a_second = sum(each.status == 200 for each in answers) / load.span_s(answers)

    def _beside_bulk(self, measured: Measured) -> None:
        answers, measured.beside_bulk = self._process.run(
            load.beside_bulk,
            measured.server.url,
            self._bulk_requests(measured),
            self._single(measured.server, 400),
            at_once=AT_ONCE,
            every_s=QUERY_EVERY_S,
        )
        # Who refuses bulk work has done less of it: only what was answered counts.
        measured.texts_a_second_beside = self._texts_a_second(answers)
        if measured.name == OURS:
            self._bulk_round(measured)

    def _departures(self, measured: Measured) -> None:
        bulk = self._bulk_requests(measured)[:AT_ONCE]
        url = measured.server.url
        for query in self._single(measured.server, 1 if measured.name in PEERS else self._sizes.departures):
            answer = self._process.run(load.query_after_departures, url, bulk, query, after_s=0.3)
            measured.after_departures.append(answer)

    def _burst(self, measured: Measured) -> None:
        requests = self._single(measured.server, self._sizes.burst, deadline_s=DEADLINE_S)
        measured.burst = self._process.run(
            load.burst, measured.server.url, requests, within_s=self._sizes.burst_s
        )

    def _settle(self, server: EmbeddingServer) -> None:
        """Waits until what came before is done with."""
        self._process.run(load.ask, server.url, server.request(["settled"], lane=Lane.BACKGROUND))

    def _single(self, server: EmbeddingServer, count: int, *, deadline_s: float | None = None) -> list[bytes]:
        """Requests with one query each, none of which was sent before."""
        queries = list(islice(self._queries, count))
        assert len(queries) == count
        return [server.request([query], lane=Lane.INTERACTIVE, deadline_s=deadline_s) for query in queries]

    def _bulk_requests(self, measured: Measured) -> list[bytes]:
        size = self._sizes.texts_a_request
        starts = range(0, measured.requests * size, size)
        return [
            measured.server.request(self._texts[start : start + size], lane=Lane.BULK) for start in starts
        ]

    def _texts_a_second(self, answers: Sequence[Answer]) -> float:
        good = sum(answer.status == 200 for answer in answers)
        return good * self._sizes.texts_a_request / load.span_s(answers)


def _set_aside(name: str, error: Exception, absent: dict[str, str]) -> None:
    """A peer that cannot be measured is a line of the table; of ours it is the measure's failure."""
    if name not in PEERS:
        raise error
    absent[name] = str(error)


def _figures(measured: Mapping[str, Measured], absent: Mapping[str, str]) -> list[Figure]:
    ours, torch = measured[OURS], measured[OURS_TORCH]
    peers = [each for name, each in measured.items() if name in PEERS]
    best = max((each.texts_a_second for each in peers), default=math.nan)
    why_absent = {f"{name}: not measured": why for name, why in absent.items()}

    def of_each(say: Callable[[Measured], float | str]) -> dict[str, float | str]:
        return {name: say(each) for name, each in measured.items()}

    def seconds_of(choose: Callable[[Measured], Sequence[Answer]]) -> dict[str, Samples]:
        chosen = {name: [each.seconds for each in choose(one)] for name, one in measured.items()}
        return {name: Samples.milliseconds(seconds) for name, seconds in chosen.items() if seconds}

    beside = seconds_of(lambda one: [each for each in one.beside_bulk if each.status == 200])
    return [
        Figure(
            "embedding_bulk",
            "bulk embedding over HTTP: times the best peer",
            unit="x",
            measured=round(ours.texts_a_second / best, 2),
            bound=Bound(3.0, is_upper=False),
            facts={
                **of_each(lambda one: f"{one.texts_a_second:.1f} texts/s, n = {one.texts}"),
                "times the best peer, both in torch float32": round(torch.texts_a_second / best, 2),
                "lowest cosine between two servers' vectors": _lowest_cosine(list(measured.values())),
                **why_absent,
            },
        ),
        Figure(
            "embedding_bulk_of_raw",
            "bulk embedding over HTTP: share of the bare, length-sorted loop",
            measured=round(ours.texts_a_second / float(np.mean(ours.raw_rounds)), 3),
            bound=Bound(0.9, is_upper=False),
            facts={
                "texts/s of the bare loop, before and after": _rounded(ours.raw_rounds),
                "texts/s over HTTP, by round": _rounded(ours.bulk_rounds),
            },
        ),
        Figure(
            "embedding_lone",
            "a lone query's embedding over HTTP, p50",
            unit="ms",
            measured=round(seconds_of(lambda one: one.lone)[OURS].percentile(50), 2),
            bound=Bound(8.0, is_upper=True),
            samples=seconds_of(lambda one: one.lone),
        ),
        Figure(
            "embedding_beside_bulk",
            "a query's embedding while 8 bulk requests are in flight, p50",
            unit="ms",
            measured=round(beside[OURS].percentile(50), 1),
            bound=Bound(60.0, is_upper=True),
            samples=beside,
            facts=of_each(
                lambda one: (
                    f"{sum(each.status != 200 for each in one.beside_bulk)} of "
                    f"{len(one.beside_bulk)} queries refused or lost"
                )
            ),
        ),
        Figure(
            "embedding_beside_bulk_p95",
            "a query's embedding while 8 bulk requests are in flight, p95",
            unit="ms",
            measured=round(beside[OURS].percentile(95), 1),
            bound=Bound(150.0, is_upper=True),
        ),
        Figure(
            "embedding_bulk_loss",
            "bulk throughput lost to 4 queries a second beside it",
            unit="%",
            measured=round(100 * ours.bulk_loss, 1),
            bound=Bound(10.0, is_upper=True),
            facts=of_each(lambda one: f"{100 * one.bulk_loss:.1f} %"),
        ),
        Figure(
            "embedding_burst",
            "burst of single queries with 1 s to live: served in time, of what fits into 1 s",
            measured=round(ours.share_of_what_fits, 3),
            bound=Bound(0.9, is_upper=False),
            facts=of_each(_burst_told),
        ),
        Figure(
            "embedding_burst_refusals",
            "burst: until a refusal has arrived, p95",
            unit="ms",
            measured=round(1000 * _p95([each.seconds for each in ours.refused]), 1),
            bound=Bound(50.0, is_upper=True),
            samples=seconds_of(lambda one: one.refused),
        ),
        Figure(
            "embedding_after_departures",
            "a query right after 8 bulk requests were cancelled, longest",
            unit="ms",
            measured=round(1000 * max(each.seconds for each in ours.after_departures), 1),
            bound=Bound(150.0, is_upper=True),
            facts=of_each(
                lambda one: (
                    f"{1000 * max(each.seconds for each in one.after_departures):.0f} ms, "
                    f"n = {len(one.after_departures)}"
                )
            ),
        ),
    ]


def _burst_told(one: Measured) -> str:
    late = sum(each.status == 200 for each in one.burst) - len(one.in_time)
    lost = sum(each.status == LOST for each in one.burst)
    polite = sum(each.has_retry_after for each in one.refused)
    return (
        f"of {len(one.burst)}: {len(one.in_time)} in time ({one.share_of_what_fits:.2f} of what fits: "
        f"{one.queries_a_second:.0f} queries/s), {late} late, {len(one.refused)} refused "
        f"({polite} with Retry-After), {lost} unanswered"
    )


def _rounded(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def _p95(values: Sequence[float]) -> float:
    """0 where there is none: nobody waited for a refusal."""
    return float(np.percentile(values, 95)) if values else 0.0


def _lowest_cosine(measured: Sequence[Measured]) -> float:
    rows = [each.rows / np.linalg.norm(each.rows, axis=1, keepdims=True) for each in measured]
    return round(min(float((rows[0] * other).sum(axis=1).min()) for other in rows), 5)
