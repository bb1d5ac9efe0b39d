"""How busy all was in the last hours: a sample every few seconds, in memory, drawn as small charts."""

import asyncio
import re
import shutil
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise

import psutil
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from app.services import Services
from retrieval.database import Database
from retrieval.tables import Document, Job, JobState
from retrieval.together import in_thread
from serving.protocols import Lane, ModelUnavailable

EVERY_S = 10.0
KEPT = 720
"""Two hours."""
HOURS = KEPT * EVERY_S / 3600
POINTS = 120
"""Of a line: more would not be seen."""
WIDTH, HEIGHT = 240.0, 60.0
GIB = 1024**3


@dataclass(frozen=True)
class Sample:
    """What was counted up to a time, by name: and by name and lane, where the figure has one."""

    at: float
    totals: dict[tuple[str, str], float]
    waiting: int
    """Jobs that are queued or run."""
    arrived: int
    """Documents, ever."""
    disk_bytes: int
    """Used, of the data folder's disk."""
    memory_bytes: int
    """Used, of the machine's."""

    def total(self, name: str, lane: str = "") -> float:
        return self.totals.get((name, lane), 0.0)


@dataclass(frozen=True)
class Line:
    """`points` are of a polyline in a box of WIDTH x HEIGHT, the newest at the right."""

    name: str
    now: str
    points: str


@dataclass(frozen=True)
class Chart:
    title: str
    unit: str
    most: str
    lines: Sequence[Line]


class Rates:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._samples: deque[Sample] = deque(maxlen=KEPT)

    async def take(self) -> None:
        """What a role or engine that does not answer would have told is missing: its lines stand still."""
        services = self._services
        memory = psutil.virtual_memory()
        try:
            disk = shutil.disk_usage(services.settings.storage.data_dir)
            waiting, arrived = await in_thread(_documents, services.storage.database)
        except (SQLAlchemyError, OSError):
            return  # Readiness tells; the chart has a gap.
        told = await asyncio.gather(self._of_models(), services.gateway.engine_metrics())
        exposition = b"".join([services.metrics.render(), *told])
        used_bytes = disk.used, memory.total - memory.available
        self._samples.append(Sample(time.monotonic(), totals(exposition), waiting, arrived, *used_bytes))

    async def _of_models(self) -> bytes:
        try:
            return await self._services.models.metrics()
        except ModelUnavailable:
            return b""

    def charts(self) -> list[Chart]:
        return charts_of(list(self._samples))


def charts_of(samples: Sequence[Sample]) -> list[Chart]:
    pairs = list(pairwise(samples))

    def each_second(total: Callable[[Sample], float], times: float = 1.0) -> list[float]:
        return [
            # Who started again counts from 0.
            times * max(total(new) - total(old), 0.0) / max(new.at - old.at, 1e-3)
            for old, new in pairs
        ]

    def each_minute(name: str, lane: str = "") -> list[float]:
        return each_second(lambda sample: sample.total(name, lane), 60.0)

    def each_lane(name: str) -> dict[str, list[float]]:
        return {lane: [sample.total(name, lane) for sample in samples] for lane in Lane}

    def mean(above: str, below: str, times: float) -> list[float]:
        """It stays as it was while there is nothing to make a mean of; empty if there never was."""
        known: float | None = None
        means: list[float] = []
        for part, whole in zip(each_minute(above), each_minute(below), strict=True):
            known = times * part / whole if whole else known
            means.append(known or 0.0)
        return means if known is not None else []

    is_vllm = bool(pairs) and (TOKENS, "") in pairs[-1][1].totals
    first = "vllm:time_to_first_token_seconds" if is_vllm else "strongroom_generation_first_byte_seconds"
    cache = ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total")
    routed = (
        "strongroom_generation_prefix_blocks_matched_total",
        "strongroom_generation_prefix_blocks_total",
    )
    return [
        _chart(
            "First token" if is_vllm else "First byte of an answer",
            "ms",
            {"": mean(f"{first}_sum", f"{first}_count", 1000.0)},
        ),
        _chart("Tokens written", "a second", {"": each_second(lambda sample: sample.total(TOKENS))}),
        _chart(
            "Prompts found in the engine's cache" if is_vllm else "Prompts sent where they are cached",
            "%",
            {"": mean(*(cache if is_vllm else routed), 100.0)},
        ),
        _chart(
            "Answers",
            "a minute",
            {lane: each_minute("strongroom_generation_requests_total", lane) for lane in Lane},
        ),
        _chart(
            "Embedding and reranking requests",
            "a minute",
            {lane: each_minute("strongroom_models_requests_total", lane) for lane in Lane},
        ),
        _chart("Texts that wait for models", "", each_lane("strongroom_models_waiting_texts")),
        _chart("Answers that wait for an engine", "", each_lane("strongroom_generation_queued")),
        _chart("Requests", "a minute", {"": each_minute("strongroom_requests_total")}),
        _chart(
            "Documents ingested",
            "a minute",
            {"": each_second(lambda sample: sample.arrived - sample.waiting, 60.0)},
        ),
        _chart("Documents waiting", "", {"": [float(sample.waiting) for sample in samples]}),
        _chart("Disk used", "GiB", {"": [sample.disk_bytes / GIB for sample in samples]}),
        _chart("Memory used", "GiB", {"": [sample.memory_bytes / GIB for sample in samples]}),
    ]


NONE_YET = "–"
TOKENS = "vllm:generation_tokens_total"
_SAMPLE = re.compile(rb"^([\w:]+)(?:\{(.*)\})? (-?[\d.]+(?:[eE][-+]?\d+)?)(?:\s|$)")
_LANE = re.compile(rb'lane="(\w+)"')


def totals(exposition: bytes) -> dict[tuple[str, str], float]:
    """Of a Prometheus text: each name's sum, and each name's and lane's."""
    found: dict[tuple[str, str], float] = {}
    for name, lane, value in _samples(exposition):
        for key in {(name, ""), (name, lane)}:
            found[key] = found.get(key, 0.0) + value
    return found


def _samples(exposition: bytes) -> Iterator[tuple[str, str, float]]:
    for line in exposition.splitlines():
        told = _SAMPLE.match(line)
        if told is None or told[1].endswith(b"_bucket"):
            continue
        lane = _LANE.search(told[2] or b"")
        yield told[1].decode(), lane[1].decode() if lane else "", float(told[3])


@asynccontextmanager
async def taking_samples(rates: Rates) -> AsyncIterator[None]:
    async def take() -> None:
        while True:
            await rates.take()
            await asyncio.sleep(EVERY_S)

    taking = asyncio.create_task(take(), name="console rates")
    try:
        yield
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)


def _documents(database: Database) -> tuple[int, int]:
    """How many wait, and how many ever came: their ids count up."""
    with database.read() as session:
        waiting = select(func.count()).select_from(Job).where(Job.state != JobState.FAILED)
        return session.scalars(waiting).one(), session.scalar(select(func.max(Document.id))) or 0


def _chart(title: str, unit: str, series: dict[str, list[float]]) -> Chart:
    most = max((value for values in series.values() for value in values), default=0.0)
    lines = [
        Line(name, _shown(values[-1]) if values else NONE_YET, _points(_thinned(values), most))
        for name, values in series.items()
    ]
    return Chart(title, unit, _shown(most), lines)


def _thinned(values: list[float]) -> list[float]:
    """Means of neighbours, if there are more than are drawn."""
    width = -(-len(values) // POINTS)
    some = [values[first : first + width] for first in range(0, len(values), width or 1)]
    return [sum(each) / len(each) for each in some]


def _points(values: list[float], most: float) -> str:
    step = WIDTH / max(len(values) - 1, 1)
    heights = [HEIGHT - HEIGHT * value / (most or 1.0) for value in values]
    return " ".join(f"{number * step:.1f},{height:.1f}" for number, height in enumerate(heights))


def _shown(value: float) -> str:
    return f"{value:.1f}" if 0 < value < 10 else f"{value:.0f}"
