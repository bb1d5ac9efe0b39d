"""What tracing costs: the same roles twice, of which one lot sends each trace to a collector, take turns.

`python -m tests.bench --only tracing [--quick]` runs it alone. Engine and models compute nothing, so
that what a request costs is all ours, and the share of tracing is as large as it gets.
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
from rich.progress import Progress

from tests.api_role import ApiRole
from tests.bench import roles
from tests.bench.figures import Bound, Figure, MeasureFailed, Samples
from tests.bench.peers import gateways, load
from tests.bench.peers.gateways import Gateway
from tests.bench.peers.load import LoadProcess
from tests.bench.run import QUICK_REASON
from tests.faults.ingesting import quick_models
from tests.faults.quick_models import ALIAS

SAYS = "tracing: throughput with traces.endpoint, beside none"
MUST_BE = Bound(5.0, is_upper=True)
CONNECTIONS = 32
DOCUMENTS = 200
LETTER_WORDS = 60


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rounds: int
    seconds: float
    """Of each side, in each round of requests."""
    files: int
    """Ingested by each side in each round."""


FULL = Sizes(rounds=8, seconds=2.0, files=60)
QUICK = Sizes(rounds=1, seconds=0.5, files=4)


def compare(is_quick: bool, progress: Progress) -> list[Figure]:
    sizes = QUICK if is_quick else FULL
    with (
        tempfile.TemporaryDirectory(prefix="bench-tracing-") as folder,
        gateways.mock_engine(Path(folder)) as engine,
        collecting() as collector,
        LoadProcess() as process,
        _side(Path(folder) / "off", engine, "") as off,
        _side(Path(folder) / "on", engine, collector.url) as on,
    ):
        sides = {"off": Side(off, process, sizes), "on": Side(on, process, sizes)}
        figures = [
            _figure(name, _in_turn(sides, name, sizes.rounds, progress), sides, collector)
            for name in Side.WORKS
        ]
    return [replace(each, is_judged=False, reason=QUICK_REASON) for each in figures] if is_quick else figures


@contextmanager
def _side(folder: Path, engine: Gateway, collector_url: str) -> Iterator[ApiRole]:
    """An api, a worker and a models server, with a data folder of their own."""
    with quick_models(folder.with_suffix(".models.log"), traces=collector_url) as models_url:
        settings = {
            "STRONGROOM_ENGINE__URL": engine.url,
            "STRONGROOM_MODELS__URL": models_url,
            "STRONGROOM_MODELS__EMBEDDING": ALIAS,
            "STRONGROOM_TRACES__ENDPOINT": collector_url,
        }
        with ApiRole(folder, settings) as api, roles.worker(folder, settings):
            api.start()
            yield api


class Side:
    """One of the two, and what is asked of it: each work returns how much it did a second."""

    WORKS: Mapping[str, Callable[["Side", int], float]]

    def __init__(self, api: ApiRole, process: LoadProcess, sizes: Sizes) -> None:
        self._api = api
        self._process = process
        self._sizes = sizes
        self.cpu_ms: dict[str, list[float]] = {name: [] for name in Side.WORKS}
        """Of the api role, for each that was done, round by round."""
        self._store_id = roles.new_store(api)
        roles.ingest(api, self._store_id, range(DOCUMENTS), words=LETTER_WORDS)

    def work(self, name: str, round_number: int) -> float:
        begun, cpu_s = time.monotonic(), self._cpu_s()
        rate = Side.WORKS[name](self, round_number)
        done = rate * (time.monotonic() - begun)
        self.cpu_ms[name].append(1000 * (self._cpu_s() - cpu_s) / done)
        return rate

    def relay(self, _: int) -> float:
        return self._rate([Gateway("strongroom", self._api.url, self._api.key).request()])

    def search(self, _: int) -> float:
        return self._rate(roles.searches(self._api, self._store_id))

    def ingest(self, round_number: int) -> float:
        """Of files that were not seen before."""
        files = self._sizes.files
        begin = DOCUMENTS + round_number * files
        started = time.monotonic()
        roles.ingest(self._api, self._store_id, range(begin, begin + files), words=LETTER_WORDS)
        return files / (time.monotonic() - started)

    def _cpu_s(self) -> float:
        times = psutil.Process(self._api.pid).cpu_times()
        return times.user + times.system

    def _rate(self, requests: list[bytes]) -> float:
        answers = self._process.run(
            load.closed_loop,
            self._api.url,
            requests,
            at_once=CONNECTIONS,
            seconds=self._sizes.seconds,
        )
        return len(load.checked(answers)) / load.span_s(answers)


Side.WORKS = {"relay": Side.relay, "search": Side.search, "ingest": Side.ingest}


class Collector(ThreadingHTTPServer):
    """Takes what is sent and forgets it, but how much it was."""

    received_bytes = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"


class _Taking(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Collector

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.rfile.read(length)
        self.server.received_bytes += length
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector(("127.0.0.1", 0), _Taking) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        yield collector
        collector.shutdown()


def _in_turn(sides: Mapping[str, Side], name: str, rounds: int, progress: Progress) -> dict[str, list[float]]:
    """A first round of each is not counted."""
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for number in progress.track(range(rounds + 1), description=f"tracing: {name}"):
        for side in sides if number % 2 else list(sides)[::-1]:
            rates[side].append(sides[side].work(name, number))
    return {side: each[1:] for side, each in rates.items()}


def _figure(
    name: str, rates: Mapping[str, list[float]], sides: Mapping[str, Side], collector: Collector
) -> Figure:
    if not collector.received_bytes:
        raise MeasureFailed("Nothing was traced.")
    lost = [100 * (1 - on / off) for off, on in zip(rates["off"], rates["on"], strict=True)]
    return Figure(
        f"tracing_{name}",
        f"tracing: share of throughput that it takes, {name}, median of rounds in turn",
        unit="%",
        measured=round(statistics.median(lost), 1),
        bound=MUST_BE,
        samples={f"{side}, a second": Samples(tuple(each), "1/s") for side, each in rates.items()},
        facts={
            **{
                f"CPU of the api role for each, {side}, ms": round(
                    statistics.median(each.cpu_ms[name][1:]), 3
                )
                for side, each in sides.items()
            },
            "taken in each round, %": ", ".join(f"{each:.1f}" for each in lost),
            "sent to the collector so far, MB": round(collector.received_bytes / 1e6, 1),
        },
    )
