"""What is known of each engine: its health, models, load and breaker, and how much it may be given at once.

State that the gateway reads and changes in one event loop, and the questions that bring it up to date.
"""

import asyncio
import math
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus

import orjson

from serving.generation.routing import BLOCK_BYTES, PrefixCache, Standing
from serving.generation.upstream import ConnectionRefused, Upstream, UpstreamFailed
from serving.protocols import Lane

CHECK_S = 5.0
"""A busy engine on a CPU may need seconds to answer a health check."""

FAILURES_IN_A_ROW = 3
OUTCOMES = 20
"""Of so many last requests the failing share is taken, once half of them are there."""
FAILING_SHARE = 0.5
FIRST_OPEN_S = 2.0
LONGEST_OPEN_S = 30.0

WAITING_SLACK = 2
"""Requests that wait in the engine while it is not full: each does, for a step."""

BYTES_A_TOKEN = 4
"""Of English text, to tell an engine's cache in our blocks."""

GAUGES = {
    b"vllm:num_requests_running": "running",
    b"vllm:num_requests_waiting": "waiting",
    b"vllm:kv_cache_usage_perc": "cache_used",
}
CACHE_FACTS = b"vllm:cache_config_info"


@dataclass(frozen=True)
class Replica:
    """One engine. `url` with or without /v1 at its end; `token` goes out as a bearer token."""

    url: str
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class UpstreamModel:
    """A model that an engine serves. `max_model_len`: tokens of prompt and answer; None when not told."""

    id: str
    max_model_len: int | None


@dataclass(frozen=True)
class EngineLoad:
    """What vLLM's metrics tell, over all its cores. `cache_tokens`: the KV cache's size; None when not told."""

    running: int
    waiting: int
    cache_used: float
    cache_tokens: int | None


class Breaker:
    """Keeps requests from an engine that fails them: opened by failures, closed by a trial that succeeds.

    A failure is a reply that did not come whole. An error that the engine answers is none: a request that
    no engine can serve must not take the engines from everybody.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._outcomes: deque[bool] = deque(maxlen=OUTCOMES)
        self._open_until: float | None = None
        self._open_s = FIRST_OPEN_S
        self._has_trial = False

    def refusal(self, now: float) -> str | None:
        """Why no request may go; None while one may."""
        if self._open_until is None or (now >= self._open_until and not self._has_trial):
            return None
        return "its last requests failed; it gets a trial soon"

    @property
    def is_open(self) -> bool:
        return self._open_until is not None

    def begin(self) -> bool:
        """A request goes. While the breaker is open it is the trial, of which there is one at a time."""
        self._has_trial = self.is_open
        return self._has_trial

    def abandon(self, *, is_trial: bool) -> None:
        """It ended without telling anything: its client left."""
        if is_trial:
            self._has_trial = False

    def succeed(self) -> None:
        self._in_a_row = 0
        self._outcomes.append(True)
        if self.is_open:
            self._outcomes.clear()
            self._open_until, self._open_s = None, FIRST_OPEN_S
            self._has_trial = False

    def fail(self, now: float, *, is_trial: bool) -> None:
        self._in_a_row += 1
        self._outcomes.append(False)
        if is_trial:
            self._has_trial = False
            self._open_s = min(LONGEST_OPEN_S, 2 * self._open_s)
            self._open_until = now + self._open_s
        elif not self.is_open and (
            self._in_a_row >= FAILURES_IN_A_ROW or self._failing_share() >= FAILING_SHARE
        ):
            self._open_until = now + self._open_s

    def _failing_share(self) -> float:
        if len(self._outcomes) < OUTCOMES // 2:
            return 0.0
        return self._outcomes.count(False) / len(self._outcomes)


class Engine:
    """A replica with what is known of it now."""

    def __init__(self, replica: Replica, number: int, *, max_in_flight: int, prefix_blocks: int) -> None:
        self.replica = replica
        self.number = number
        """In the order in which replicas were added; never used twice."""
        self.url = base_url(replica.url)
        self.upstream = Upstream(self.url, replica.token)
        self.reason: str | None = "it was not asked yet"
        """Why it cannot take requests, by its own account."""
        self.models: tuple[UpstreamModel, ...] = ()
        """What it last told. Kept while it is away, to tell an absent engine from an unknown model."""
        self.is_vllm = False
        self.load: EngineLoad | None = None
        self.asked_at = -math.inf
        """When it last answered or failed to; long ago for one that is to be asked at the next occasion."""
        self.was_asked = False
        self.asking: asyncio.Task[None] | None = None
        self.breaker = Breaker()
        self.standing = Standing(PrefixCache(prefix_blocks))
        self.emptied: asyncio.Event | None = None
        """Set when the last request of a draining engine has ended; None while it is not draining."""
        self._max_in_flight = max_in_flight
        self._limit = float(max_in_flight)

    @property
    def in_flight(self) -> int:
        return self.standing.in_flight

    @property
    def limit(self) -> int:
        """How many requests it may have from us now."""
        return int(self._limit)

    def serves(self, model: str) -> bool:
        return any(model == served.id for served in self.models)

    def refusal(self, now: float) -> str | None:
        """Why it takes no new request; None when it is ready."""
        if self.emptied is not None:
            return "it is being drained"
        return self.reason or self.breaker.refusal(now)

    def has_room(self, lane: Lane) -> bool:
        """An eighth of the places is for people alone, so that they do not wait for long machine work."""
        limit = self.limit
        return self.in_flight < (limit if lane is Lane.INTERACTIVE else limit - limit // 8)

    def lower_limit(self, to: int) -> None:
        self._limit = max(1.0, min(self._limit, float(to)))

    def raise_limit(self) -> None:
        """By one for as many replies as there are places, and only while the limit is what holds."""
        if self.in_flight >= self.limit - 1:
            self._limit = min(float(self._max_in_flight), self._limit + 1 / self._limit)

    async def ask(self) -> None:
        """Brings health, models and load up to date; never raises."""
        try:
            self.models, self.is_vllm = await self._ask_models()
            self.reason = await self._ask_health()
            if self.is_vllm:
                self._weigh(await self._ask_load())
        except ConnectionRefused as failure:
            self.lose(str(failure))
        except UpstreamFailed as failure:
            self.reason = str(failure)
        except (ValueError, KeyError, TypeError, AttributeError):
            self.reason = "its list of models is not in OpenAI's form"

    def lose(self, reason: str) -> None:
        """Nothing listens there: whatever comes back has an empty cache."""
        self.reason = reason
        self.load = None
        self.standing.elsewhere = 0
        self.standing.cache_used = 0.0
        self.standing.cache.clear()

    async def _ask_models(self) -> tuple[tuple[UpstreamModel, ...], bool]:
        status, body = await self.upstream.fetch("/v1/models", timeout_s=CHECK_S)
        if status == HTTPStatus.UNAUTHORIZED:
            raise UpstreamFailed("it refuses our token")
        if status != HTTPStatus.OK:
            raise UpstreamFailed(f"its list of models answers {status}")
        listed = orjson.loads(body)["data"]
        models = tuple(_model(model["id"], model.get("max_model_len")) for model in listed)
        return models, any(model.get("owned_by") == "vllm" for model in listed)

    async def _ask_health(self) -> str | None:
        """vLLM's API goes on after its core died; /health tells. Engines without that route are alive."""
        status, _ = await self.upstream.fetch("/health", timeout_s=CHECK_S)
        return f"its health check answers {status}" if status >= 500 else None

    async def _ask_load(self) -> EngineLoad | None:
        """None, and nothing worse, when its metrics cannot be had."""
        try:
            status, exposition = await self.upstream.fetch("/metrics", timeout_s=CHECK_S)
        except UpstreamFailed:
            return None
        return read_load(exposition.splitlines()) if status == HTTPStatus.OK else None

    def _weigh(self, load: EngineLoad | None) -> None:
        self.load = load
        if load is None:
            return
        standing = self.standing
        standing.elsewhere = max(0, load.running + load.waiting - self.in_flight)
        standing.cache_used = load.cache_used
        if load.cache_tokens:
            standing.cache.capacity = max(1, load.cache_tokens * BYTES_A_TOKEN // BLOCK_BYTES)
        if load.waiting > WAITING_SLACK:
            self.lower_limit(self.in_flight - load.waiting + WAITING_SLACK)


def _model(name: object, length: object) -> UpstreamModel:
    return UpstreamModel(str(name), length if isinstance(length, int) else None)


def base_url(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


def read_load(lines: Iterable[bytes]) -> EngineLoad | None:
    """From Prometheus text; None when it has not what vLLM tells. Cores of one engine are added up."""
    found: dict[str, list[float]] = {name: [] for name in GAUGES.values()}
    cache_tokens = 0
    for line in lines:
        if not line.startswith(b"vllm:"):
            continue
        family = line.partition(b"{")[0].partition(b" ")[0]
        if name := GAUGES.get(family):
            try:
                value = float(line.rpartition(b" ")[2])
            except ValueError:
                continue
            if math.isfinite(value):
                found[name].append(value)
        elif family == CACHE_FACTS:
            cache_tokens += _cache_tokens(line)
    if not found["running"]:
        return None
    return EngineLoad(
        running=int(sum(found["running"])),
        waiting=int(sum(found["waiting"])),
        cache_used=max(found["cache_used"], default=0.0),
        cache_tokens=cache_tokens or None,
    )


def _cache_tokens(line: bytes) -> int:
    """0 when it is not told. Blocks times their size is wrong for hybrid models, which tell the size itself."""
    facts = dict(re.findall(rb'(kv_cache_size_tokens|num_gpu_blocks|block_size)="(\d{1,15})"', line))
    if size := facts.get(b"kv_cache_size_tokens"):
        return int(size)
    return int(facts.get(b"num_gpu_blocks", 0)) * int(facts.get(b"block_size", 0))
