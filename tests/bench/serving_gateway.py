"""Gateways side by side before one mock engine: our api role, litellm, vllm-router, and the engine without any.

`python -m tests.bench --only serving_gateway [--quick]` runs it alone. Load, gateway and engine are a process each and
share the machine's cores, so what the engine reaches directly under the same load stands beside.
"""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson
from rich.progress import Progress

from tests.bench.figures import Bound, Figure, MeasureFailed, Samples
from tests.bench.peers import gateways, load
from tests.bench.peers.gateways import Gateway
from tests.bench.peers.install import PeerAbsent
from tests.bench.peers.load import Answer, LoadProcess
from tests.bench.run import QUICK_REASON

SAYS = "gateways: our api role beside litellm and vllm-router, before the same mock engine"
DIRECT, OURS, ROUTER = "direct", "strongroom", "vllm-router"
SLOW_RATE, RATE = 50, 200
"""Requests a second, at a constant rate."""
CONNECTIONS = 64
STREAMS = 32
DEPART_AFTER_S = 0.1
NOT_CLOSED_S = 2.0
"""After this an upstream counts as left open. The mock would answer after twice as long."""
LONGEST_ROUND_S = 10.0
"""Whose streams take longer gets one round only."""

Start = Callable[[Path, str], AbstractContextManager[Gateway]]
GATEWAYS: Mapping[str, Start] = {
    OURS: gateways.strongroom,
    "litellm": gateways.litellm,
    ROUTER: gateways.vllm_router,
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    lone: int
    rate_s: float
    saturation_s: float
    events: int
    rounds: int
    departures: int


FULL = Sizes(lone=300, rate_s=10.0, saturation_s=5.0, events=500, rounds=3, departures=10)
QUICK = Sizes(lone=20, rate_s=1.0, saturation_s=1.0, events=50, rounds=1, departures=2)


@dataclass
class Measured:
    """What was found of one gateway, or of the engine itself."""

    gateway: Gateway
    lone: list[Answer] = field(default_factory=list)
    at_rate: dict[int, list[Answer]] = field(default_factory=dict)
    requests_a_second: float = math.nan
    events_a_second: list[float] = field(default_factory=list)
    closed_s: dict[str, list[float]] = field(default_factory=dict)
    """From the client's departure to the upstream's closing, infinite where it stayed open."""

    @property
    def best_events_a_second(self) -> float:
        return max(self.events_a_second)


def compare(is_quick: bool, progress: Progress) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as folder, LoadProcess() as process:
        comparison = _Comparison(QUICK if is_quick else FULL, process, progress)
        measured, absent = comparison.run(Path(folder))
    figures = _figures(measured, absent)
    return [replace(each, is_judged=False, reason=QUICK_REASON) for each in figures] if is_quick else figures


class _Comparison:
    """The steps, each for one gateway at a time but for `_lone`, which takes all in turn."""

    def __init__(self, sizes: Sizes, process: LoadProcess, progress: Progress) -> None:
        self._sizes = sizes
        self._process = process
        self._progress = progress

    def run(self, folder: Path) -> tuple[dict[str, Measured], dict[str, str]]:
        """What was measured by gateway, and why others were not."""
        absent: dict[str, str] = {}
        with ExitStack() as started:
            engine = started.enter_context(gateways.mock_engine(folder))
            self._engine_url = engine.url
            measured = {DIRECT: Measured(engine)}
            for name in self._progress.track(GATEWAYS, description="start"):
                try:
                    measured[name] = Measured(started.enter_context(GATEWAYS[name](folder, engine.url)))
                except (PeerAbsent, MeasureFailed) as error:
                    if name == OURS:
                        raise
                    absent[name] = str(error)
            self._lone(measured)
            steps = (self._rates, self._saturation, *[self._streams] * self._sizes.rounds, self._departures)
            for step in steps:
                for each in self._progress.track(measured.values(), description=step.__name__):
                    step(each)
        return measured, absent

    def _lone(self, measured: Mapping[str, Measured]) -> None:
        requests = {name: (each.gateway.url, each.gateway.request()) for name, each in measured.items()}
        warm_up = 10
        answers = self._process.run(load.in_turn, requests, times=warm_up + self._sizes.lone)
        for name, each in measured.items():
            each.lone = load.checked(answers[name][warm_up:])

    def _rates(self, measured: Measured) -> None:
        gateway, seconds = measured.gateway, self._sizes.rate_s
        for rate in (SLOW_RATE, RATE):
            measured.at_rate[rate] = self._process.run(
                load.open_loop, gateway.url, gateway.request(), a_second=rate, seconds=seconds
            )

    def _saturation(self, measured: Measured) -> None:
        gateway = measured.gateway
        answers = self._process.run(
            load.closed_loop,
            gateway.url,
            [gateway.request()],
            at_once=CONNECTIONS,
            seconds=self._sizes.saturation_s,
        )
        measured.requests_a_second = sum(each.status == 200 for each in answers) / load.span_s(answers)

    def _streams(self, measured: Measured) -> None:
        gateway, events = measured.gateway, self._sizes.events
        if measured.events_a_second and STREAMS * events / measured.best_events_a_second > LONGEST_ROUND_S:
            return
        requests = [gateway.request(stream=True, max_tokens=events)] * STREAMS
        answers = self._process.run(
            load.closed_loop, gateway.url, requests, at_once=STREAMS, keep_bodies=True
        )
        received = sum(each.body.count(b"data: ") for each in answers)
        if received < STREAMS * events and gateway.name == OURS:
            raise MeasureFailed(f"Of {STREAMS * events} events {received} came through.")
        measured.events_a_second.append(received / load.span_s(answers))

    def _departures(self, measured: Measured) -> None:
        gateway = measured.gateway
        slow_ms = round(2_000 * NOT_CLOSED_S)
        ways = {
            "not streamed": gateway.request(seed=slow_ms),
            "streamed": gateway.request(stream=True, max_tokens=slow_ms // 20, seed=20),
            "streamed, before the first token": gateway.request(stream=True, max_tokens=2, seed=slow_ms),
        }
        for way, request in ways.items():
            closed_s = measured.closed_s.setdefault(way, [])
            for _ in range(self._sizes.departures):
                departed_at = self._process.run(load.depart, gateway.url, request, after_s=DEPART_AFTER_S)
                closed_s.append(self._until_closed_s(departed_at))
                if math.isinf(closed_s[-1]):
                    time.sleep(NOT_CLOSED_S)  # until the mock has answered into the void
                    break  # it does not close; more would only take time

    def _until_closed_s(self, departed_at: float) -> float:
        """Infinite when the engine sees no departure in time."""
        request = b"GET /departures HTTP/1.1\r\nHost: mock\r\n\r\n"
        while time.monotonic() < departed_at + NOT_CLOSED_S:
            told = orjson.loads(self._process.run(load.ask, self._engine_url, request).body)
            seen = [at for at in told if at >= departed_at]
            if seen:
                return float(seen[0]) - departed_at
            time.sleep(0.02)
        return math.inf


def _figures(measured: Mapping[str, Measured], absent: Mapping[str, str]) -> list[Figure]:
    ours, direct = measured[OURS], measured[DIRECT]
    lone = {name: _samples(each.lone) for name, each in measured.items()}
    at_rate = {name: _samples(each.at_rate[RATE]) for name, each in measured.items()}
    relays = {name: f"{each.best_events_a_second:.0f} events/s" for name, each in measured.items()}
    router = measured.get(ROUTER)
    return [
        Figure(
            "gateway_lone",
            "gateway: added to a lone request, p50",
            unit="ms",
            measured=round(lone[OURS].percentile(50) - lone[DIRECT].percentile(50), 2),
            bound=Bound(1.5, is_upper=True),
            samples=lone,
            facts={
                **{f"{name}, p50 added": _added(lone, name, 50) for name in measured},
                **{f"{name}, p99 added": _added(lone, name, 99) for name in measured},
                **{f"{name}: not measured": why for name, why in absent.items()},
            },
        ),
        Figure(
            "gateway_at_rate",
            f"gateway: added at {RATE} requests/s, p99",
            unit="ms",
            measured=round(at_rate[OURS].percentile(99) - at_rate[DIRECT].percentile(99), 2),
            bound=Bound(4.0, is_upper=True),
            samples=at_rate,
            facts={
                f"{name} at {rate} requests/s": _rate_told(each, direct, rate)
                for name, each in measured.items()
                for rate in (SLOW_RATE, RATE)
            },
        ),
        Figure(
            "gateway_saturation",
            f"gateway: most requests/s, {CONNECTIONS} connections",
            unit="requests/s",
            measured=round(ours.requests_a_second),
            bound=Bound(600, is_upper=False),
            facts={name: f"{each.requests_a_second:.0f} requests/s" for name, each in measured.items()},
        ),
        Figure(
            "gateway_relay",
            f"gateway: events of {STREAMS} streams, share of vllm-router's",
            measured=round(ours.best_events_a_second / router.best_events_a_second, 2) if router else None,
            bound=Bound(0.9, is_upper=False),
            reason="" if router else absent[ROUTER],
            facts={**relays, "rounds of ours, the best of which counts": len(ours.events_a_second)},
        ),
        Figure(
            "gateway_departure",
            "gateway: until a departed client's upstream is closed, longest",
            unit="ms",
            measured=round(1000 * max(max(each) for each in ours.closed_s.values()), 1),
            bound=Bound(100, is_upper=True),
            facts={
                f"{name}, {way}": _closing_told(seconds)
                for name, each in measured.items()
                for way, seconds in each.closed_s.items()
            },
        ),
    ]


def _samples(answers: Sequence[Answer]) -> Samples:
    return Samples.milliseconds([each.seconds for each in answers])


def _added(samples: Mapping[str, Samples], name: str, percent: float) -> str:
    return f"{samples[name].percentile(percent) - samples[DIRECT].percentile(percent):.2f} ms"


def _rate_told(each: Measured, direct: Measured, rate: int) -> str:
    mine, its = _samples(each.at_rate[rate]), _samples(direct.at_rate[rate])
    bad = sum(answer.status != 200 for answer in each.at_rate[rate])
    added = [f"p{percent} {mine.percentile(percent) - its.percentile(percent):.2f}" for percent in (50, 99)]
    return f"{', '.join(added)} ms added, n = {len(mine.values)}, {bad} failed"


def _closing_told(seconds: Sequence[float]) -> str:
    if math.isinf(max(seconds)):
        return f"not within {NOT_CLOSED_S:g} s"
    return f"longest {1000 * max(seconds):.1f} ms, n = {len(seconds)}"
