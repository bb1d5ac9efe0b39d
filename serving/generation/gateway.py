"""Relays OpenAI requests to generation engines byte by byte, for the api role's chat and pass-through routes.

Any OpenAI-compatible server is an engine. The gateway never reads a body: the caller names the model and the
text that decides where the prompt is cached. What happens to a request, and where it stands:

    who may go when every engine is full        waiting.py
    which engine it goes to                     routing.py
    what is known of an engine                  replicas.py
    the connection to it                        upstream.py
    the exchange itself, and its one retry      here
"""

import asyncio
import hmac
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Self

from prometheus_client import CollectorRegistry

from serving.generation.metrics import GatewayMetrics, Outcome, join_expositions
from serving.generation.replicas import Engine, Replica, UpstreamModel, base_url
from serving.generation.routing import Route, Router, block_hashes
from serving.generation.upstream import (
    Connection,
    ConnectionBroken,
    ConnectionRefused,
    DeadlinePassed,
    UpstreamFailed,
)
from serving.generation.waiting import Line, Pace, RetryBudget, Waiter
from serving.protocols import EngineUnavailable, Lane, Overloaded, ServingError
from serving.tracing import traceparent

__all__ = [
    "EngineLost",
    "Gateway",
    "GatewayLimits",
    "ModelNotServed",
    "Replica",
    "ReplicaHealth",
    "Reply",
    "UpstreamModel",
]

FRESH_S = 2.0
"""So long is believed what a replica told of its health, models and load; asking again holds no request up."""

AWAY_S = 0.25
"""So long is believed that it cannot take requests: one that starts is used as soon as it is ready."""

LONGEST_ASK_S = 1.0
"""What a request waits for news of engines that were away when they were last asked."""

METRICS_S = 3.0

PRIORITY = {Lane.INTERACTIVE: 0, Lane.BULK: 10, Lane.BACKGROUND: 20}
"""vLLM handles lower ones first. 0 is its own default, allowed under any of its scheduling policies."""

SALTED_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""Those whose bodies take `priority` and `cache_salt` in vLLM 0.32 and 0.33."""

LEAST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0

BLOCKS_A_TURN = 32
"""A prompt of so many blocks counts as one request more when tenants are served in turn."""

END_OF_EVENTS = b"[DONE]"


@dataclass(frozen=True, kw_only=True)
class GatewayLimits:
    """How much may be under way."""

    max_in_flight: int = 256
    """Requests that one replica has at most. The gateway goes lower while the replica has them wait."""
    max_queued: int = 1024
    """Requests that wait for one model while all its replicas are full. One tenant alone may fill 8/9 of it, and
    machine work leaves all of it to people."""
    prefix_blocks: int = 4096
    """What a replica's prefix cache is taken to hold, in blocks of 512 bytes, unless its metrics tell."""


@dataclass(frozen=True)
class ReplicaHealth:
    """What /ready and metrics tell of a replica. `reason` is None when it is ready."""

    url: str
    reason: str | None
    models: tuple[str, ...]
    in_flight: int


class EngineLost(EngineUnavailable):
    """The engine went away after its reply had begun: what was received is not the whole."""


class ModelNotServed(ServingError):
    """No engine serves the model; `available` lists those that are."""

    def __init__(self, model: str, available: Sequence[str]) -> None:
        super().__init__(
            f"No engine serves the model {model!r}. Available: {', '.join(available) or 'none'}."
        )
        self.model = model
        self.available = tuple(available)


class Reply:
    """An engine's reply, readable while `Gateway.send` is open. Its first bytes are there already."""

    def __init__(self, connection: Connection) -> None:
        self._connection: Connection | None = connection
        self._is_delimited = connection.is_delimited
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers
        """Their names in any case."""

    @property
    def content_type(self) -> str:
        """The header as it came, parameters included."""
        return self.headers.get("Content-Type", "application/octet-stream")

    async def read(self) -> bytes:
        """The whole body. Raises EngineLost."""
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, cut anywhere. Raises EngineLost when it does not come to its end."""
        tail = b""
        try:
            # Looked up for each chunk: a connection that was given back may carry another's reply.
            while self._connection is not None:
                chunk = await self._connection.receive()
                if not chunk:
                    break
                if not self._is_delimited:
                    tail = (tail + chunk)[-32:]
                yield chunk
            else:
                raise EngineLost("The reply was closed before it was read.")
        except UpstreamFailed as failure:
            raise EngineLost(f"The engine was lost while it answered ({failure}).") from failure
        # A stream that ends with its connection looks the same when the engine was killed.
        if self._is_stream and not self._is_delimited and END_OF_EVENTS not in tail:
            raise EngineLost("The engine was lost while it answered (its stream has no end).")

    def close(self) -> None:
        """Nothing more is read of it. `Gateway.send` calls it at its end."""
        self._connection = None

    @property
    def _is_stream(self) -> bool:
        return self.content_type.startswith("text/event-stream")


@dataclass(slots=True, eq=False)
class _Request:
    path: str
    body: bytes
    model: str
    tenant: str
    lane: Lane
    salt: str
    blocks: list[int]
    headers: Mapping[str, str]
    deadline: float | None
    """By the loop's clock."""


@dataclass(slots=True, eq=False)
class _Attempt:
    """A request's place at an engine, from the choice to the end."""

    engine: Engine
    route: Route
    since: float
    model: str
    is_trial: bool
    connection: Connection | None = None
    is_answered: bool = False


class _Unanswered(EngineUnavailable):
    """An attempt got no reply. `is_stale`: on a kept connection, which the engine may just have closed."""

    def __init__(self, engine: Engine, failure: UpstreamFailed, *, is_stale: bool) -> None:
        super().__init__(f"The generation engine did not answer ({engine.url}: {failure}).")
        self.is_stale = is_stale
        self.is_final = isinstance(failure, DeadlinePassed)


class Gateway:
    """A pool of engines. An async context manager, for any number of concurrent calls in one event loop."""

    def __init__(
        self,
        replicas: Iterable[Replica],
        *,
        salt_secret: bytes,
        limits: GatewayLimits | None = None,
        longest_silence_s: float = 300.0,
        registry: CollectorRegistry | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """An engine silent for `longest_silence_s` is lost. A long prompt takes minutes on a CPU.

        From `salt_secret` and the tenant's name comes the salt that keeps engine caches of tenants apart.
        """
        self._limits = limits or GatewayLimits()
        self._silence_s = longest_silence_s
        self._clock = clock
        self._salt = lru_cache(maxsize=4096)(lambda tenant: _salt(salt_secret, tenant))
        self._engines: list[Engine] = []
        self._added = 0
        self._routers: dict[str, Router] = {}
        self._lines: dict[str, Line[Waiter[_Attempt]]] = {}
        """Of the models that someone waits for."""
        self._waiters: dict[Waiter[_Attempt], _Request] = {}
        self._paces: dict[str, Pace] = {}
        self._retries = RetryBudget()
        self._watching: asyncio.Task[None] | None = None
        self._last_sent_at = -math.inf
        self._is_open = False
        self._metrics = GatewayMetrics(
            registry or CollectorRegistry(), engines=self._states, queued=self._queued
        )
        for replica in replicas:
            self.add(replica)

    async def __aenter__(self) -> Self:
        self._is_open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_open = False
        tasks = self._asking()
        if self._watching is not None:
            tasks.append(self._watching)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for model in list(self._lines):
            self._dismiss(model, EngineUnavailable("The gateway was closed."))
        for engine in self._engines:
            engine.upstream.close()

    def urls(self) -> frozenset[str]:
        """Of all replicas in the pool."""
        return frozenset(engine.url for engine in self._engines)

    def add(self, replica: Replica) -> None:
        """From now on it is one of the pool. Raises ValueError when its address is, or is not one."""
        if any(engine.url == base_url(replica.url) for engine in self._engines):
            raise ValueError(f"The replica is in the pool already: {replica.url}")
        engine = Engine(
            replica,
            self._added,
            max_in_flight=self._limits.max_in_flight,
            prefix_blocks=self._limits.prefix_blocks,
        )
        self._engines.append(engine)
        self._added += 1

    async def drain(self, url: str) -> None:
        """Gives the replica nothing more, waits until what it has is done, and removes it.

        Raises KeyError when it is not in the pool, ValueError when it is being drained already. Cancelled, it
        leaves the replica as it was.
        """
        engine = next((engine for engine in self._engines if engine.url == base_url(url)), None)
        if engine is None:
            raise KeyError(url)
        if engine.emptied is not None:
            raise ValueError(f"The replica is being drained already: {url}")
        engine.emptied = asyncio.Event()
        # Those who wait for it alone are told.
        self._dispatch()
        try:
            if engine.in_flight:
                await engine.emptied.wait()
        except asyncio.CancelledError:
            engine.emptied = None
            self._dispatch()
            raise
        self._engines.remove(engine)
        if engine.asking is not None:
            engine.asking.cancel()
        engine.upstream.close()
        self._metrics.forget(engine)

    @asynccontextmanager
    async def send(
        self,
        path: str,
        body: bytes,
        *,
        model: str,
        tenant: str = "",
        lane: Lane = Lane.INTERACTIVE,
        prefix: bytes = b"",
        deadline_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Reply]:
        """Posts `body`, a JSON object, to `path` (/v1/chat/completions) of a ready engine that serves `model`.

        `prefix` is the prompt's text from its start: engines that computed its beginning are preferred.
        `deadline_s` is for everything: waiting for an engine with room, the reply's first byte, and its last.
        Leaving the context, by cancellation too, closes a connection whose reply was not read to its end, and
        the engine stops computing. An engine's own refusal is a Reply like any other.

        Raises, before there is a reply: ModelNotServed; Overloaded, when too many wait already or the deadline
        cannot be met; EngineUnavailable, when no engine is ready or none answered. Reading the reply may raise
        EngineLost.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        salt = self._salt(tenant)
        request = _Request(
            path,
            body,
            model,
            tenant,
            lane,
            salt,
            block_hashes(prefix, f"{model}\0{salt}") if prefix else [],
            {**traceparent(), **(headers or {})},
            None if deadline_s is None else started + deadline_s,
        )
        outcome = Outcome.CANCELLED
        attempt = reply = None
        try:
            await self._refresh(model, request.deadline)
            attempt = await self._begin(request)
            self._metrics.began(lane, loop.time() - started)
            assert attempt.connection is not None
            reply = Reply(attempt.connection)
            yield reply
        except Overloaded:
            outcome = Outcome.OVERLOADED
            raise
        except ModelNotServed:
            outcome = Outcome.NOT_SERVED
            raise
        except EngineUnavailable:
            if attempt is None:
                outcome = Outcome.UNAVAILABLE
            raise
        finally:
            if reply is not None:
                reply.close()
            if attempt is not None:
                outcome = self._finish(attempt)
            self._metrics.ended(lane, outcome)

    def must_have_room(self, model: str, *, tenant: str, lane: Lane, deadline_s: float | None) -> None:
        """For who has work to do before `send`: raises Overloaded where that would at once, so that none is in vain."""
        if model not in self._lines:
            return
        now = asyncio.get_running_loop().time()
        deadline = None if deadline_s is None else now + deadline_s
        try:
            self._refuse_hopeless(_Request("", b"", model, tenant, lane, "", [], {}, deadline), now)
        except Overloaded:
            self._metrics.ended(lane, Outcome.OVERLOADED)
            raise

    async def models(self) -> list[UpstreamModel]:
        """Those that ready engines serve. Empty when no engine is ready."""
        await self._refresh(None)
        now = self._clock()
        ready = [engine for engine in self._engines if engine.refusal(now) is None]
        # The shortest context of a model's replicas: a prompt that fits it fits wherever it goes.
        longest_first = sorted(
            (model for engine in ready for model in engine.models),
            key=lambda model: model.max_model_len or math.inf,
            reverse=True,
        )
        return sorted({model.id: model for model in longest_first}.values(), key=lambda model: model.id)

    async def health(self) -> list[ReplicaHealth]:
        """Each replica's state, in the order in which they were added."""
        await self._refresh(None)
        now = self._clock()
        return [
            ReplicaHealth(
                url=engine.url,
                reason=engine.refusal(now),
                models=tuple(model.id for model in engine.models),
                in_flight=engine.in_flight,
            )
            for engine in self._engines
        ]

    async def engine_metrics(self) -> bytes:
        """The metrics of all vLLM engines that answer, as Prometheus text; `replica` tells whose they are."""

        async def fetch(engine: Engine) -> tuple[int, bytes]:
            try:
                status, exposition = await engine.upstream.fetch("/metrics", timeout_s=METRICS_S)
            except UpstreamFailed:
                return engine.number, b""
            return engine.number, exposition if status == HTTPStatus.OK else b""

        self._require_open()
        return join_expositions(await asyncio.gather(*map(fetch, self._engines)))

    # A request's way: a place at an engine, the reply's first bytes, at most one retry, the end.

    async def _begin(self, request: _Request) -> _Attempt:
        """An attempt whose reply has begun; all retries are decided here."""
        self._retries.earn()
        attempt = await self._take_place(request)
        failure: _Unanswered | None = None
        try:
            connection = await self._exchange(request, attempt)
        except _Unanswered as error:
            failure = error
        else:
            if connection.status != HTTPStatus.SERVICE_UNAVAILABLE:
                return attempt
            # Its queue is full or its core is dead: it has done nothing for this request.
            attempt.engine.lower_limit(attempt.engine.in_flight - 1)
            attempt.engine.asked_at = -math.inf
        ready = self._able(request.model) if self._is_open else []
        others = [engine for engine in ready if engine is not attempt.engine]
        has_room = any(each.has_room(request.lane) for each in others)
        if failure is None and not has_room and attempt.engine.in_flight > 1:
            # It is full of our own: once one of them is done there is room again.
            self._finish(attempt)
            attempt = await self._take_place(request)
            await self._exchange(request, attempt)
            return attempt
        if not others and failure is not None and failure.is_stale:
            # Most likely a kept connection that the engine closed meanwhile. If it died, this finds out.
            others = ready
        if not others or (failure is not None and failure.is_final) or not self._retries.spend():
            if failure is not None:
                raise failure
            return attempt
        if failure is None:
            self._finish(attempt)
        self._metrics.retries.inc()
        # It has waited for a place once: here it may be one too many.
        attempt = self._place(request, [each for each in others if each.has_room(request.lane)] or others)
        await self._exchange(request, attempt, fresh=True)
        return attempt

    async def _exchange(self, request: _Request, attempt: _Attempt, *, fresh: bool = False) -> Connection:
        """Sends it and waits for the reply's first bytes. Gives the place back when it raises."""
        engine = attempt.engine
        try:
            connection = await engine.upstream.connect(deadline=request.deadline, fresh=fresh)
            attempt.connection = connection
            connection.send(_pieces(engine, request), silence_s=self._silence_s, deadline=request.deadline)
            await connection.begin()
        except UpstreamFailed as failure:
            self._note_failure(attempt, failure)
            is_stale = (
                isinstance(failure, ConnectionBroken)
                and attempt.connection is not None
                and attempt.connection.exchanges > 1
            )
            self._leave(attempt)
            raise _Unanswered(engine, failure, is_stale=is_stale) from failure
        except BaseException:
            engine.breaker.abandon(is_trial=attempt.is_trial)
            self._leave(attempt)
            raise
        attempt.is_answered = True
        self._pace(attempt.model).note_first(asyncio.get_running_loop().time() - attempt.since)
        engine.standing.unanswered_blocks -= attempt.route.missing
        engine.breaker.succeed()
        return connection

    def _finish(self, attempt: _Attempt) -> Outcome:
        """After a reply has begun: whether it came whole, and what that tells of the engine."""
        engine, connection = attempt.engine, attempt.connection
        assert connection is not None
        self._metrics.received(engine, connection.received_bytes)
        if connection.failure is not None:
            outcome = Outcome.LOST
            self._note_failure(attempt, connection.failure)
        elif not connection.is_complete:
            outcome = Outcome.CANCELLED
        else:
            outcome = Outcome.ANSWERED if connection.status < HTTPStatus.BAD_REQUEST else Outcome.REFUSED
            if connection.status != HTTPStatus.SERVICE_UNAVAILABLE:
                engine.raise_limit()
        self._leave(attempt)
        return outcome

    def _note_failure(self, attempt: _Attempt, failure: UpstreamFailed) -> None:
        """A deadline that passed tells of the caller's haste as much as of the engine: a health check decides."""
        engine, is_trial = attempt.engine, attempt.is_trial and not attempt.is_answered
        if isinstance(failure, DeadlinePassed):
            engine.breaker.abandon(is_trial=is_trial)
            return
        engine.breaker.fail(self._clock(), is_trial=is_trial)
        # The next request asks it again, however fresh its last answer is.
        engine.asked_at = -math.inf
        if isinstance(failure, ConnectionRefused):
            engine.lose(str(failure))

    # Places.

    async def _take_place(self, request: _Request) -> _Attempt:
        """Raises ModelNotServed, EngineUnavailable, Overloaded."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        ready = self._ready(request.model)
        if request.deadline is not None and request.deadline <= since:
            raise Overloaded(LEAST_RETRY_S)
        free = [engine for engine in ready if engine.has_room(request.lane)]
        if free and request.model not in self._lines:
            self._metrics.waited(request.lane, 0.0)
            return self._place(request, free)
        self._refuse_hopeless(request, since)
        waiter = self._enqueue(request, loop)
        timer = None
        if request.deadline is not None:
            refusal = Overloaded(self._retry_after_s(request))
            timer = loop.call_at(request.deadline, _refuse, waiter.ticket, refusal)
        try:
            self._dispatch()
            attempt = await waiter.ticket
        except BaseException:
            self._dequeue(request, waiter)
            if waiter.ticket.done() and not waiter.ticket.cancelled() and waiter.ticket.exception() is None:
                # It was called in the moment in which it left.
                attempt = waiter.ticket.result()
                attempt.engine.breaker.abandon(is_trial=attempt.is_trial)
                self._leave(attempt)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        self._metrics.waited(request.lane, loop.time() - since)
        return attempt

    def _refuse_hopeless(self, request: _Request, now: float) -> None:
        line = self._lines.get(request.model)
        if line is not None and not line.admits(request.lane, request.tenant, self._limits.max_queued):
            raise Overloaded(self._retry_after_s(request))
        pace = self._paces.get(request.model)
        if request.deadline is None or pace is None:
            return
        ahead = line.ahead(request.lane, request.tenant) if line else 0
        if not pace.is_in_time(request.deadline - now, ahead, self._places(request.model)):
            raise Overloaded(self._retry_after_s(request))

    def _retry_after_s(self, request: _Request) -> float:
        """When the line before one more of this tenant and lane will have gone."""
        line = self._lines.get(request.model)
        pace = self._paces.get(request.model, Pace())
        ahead = line.ahead(request.lane, request.tenant) if line else 0
        wait_s = pace.wait_s(ahead, self._places(request.model)) or 0.0
        return min(LONGEST_RETRY_S, max(LEAST_RETRY_S, wait_s))

    def _places(self, model: str) -> int:
        return sum(engine.limit for engine in self._able(model))

    def _enqueue(self, request: _Request, loop: asyncio.AbstractEventLoop) -> Waiter[_Attempt]:
        cost = 1 + len(request.blocks) / BLOCKS_A_TURN
        waiter = Waiter(request.lane, request.tenant, cost, loop.create_future())
        self._lines.setdefault(request.model, Line()).push(request.lane, request.tenant, waiter, cost=cost)
        self._waiters[waiter] = request
        return waiter

    def _dequeue(self, request: _Request, waiter: Waiter[_Attempt]) -> None:
        if self._waiters.pop(waiter, None) is None:
            return
        line = self._lines[request.model]
        line.remove(request.lane, request.tenant, waiter)
        if not line:
            del self._lines[request.model]

    def _dispatch(self) -> None:
        """Calls those who wait, as long as there is room. One of each model in turn, for they may share engines."""
        called = True
        while self._lines and called:
            called = False
            for model in list(self._lines):
                called = self._call_next(model) or called

    def _call_next(self, model: str) -> bool:
        try:
            ready = self._ready(model)
        except (EngineUnavailable, ModelNotServed) as reason:
            self._dismiss(model, reason)
            return False
        waiter = self._lines[model].pop(lambda lane: any(engine.has_room(lane) for engine in ready))
        if waiter is None:
            return False
        request = self._waiters.pop(waiter)
        if not self._lines[model]:
            del self._lines[model]
        if waiter.ticket.done():
            return True
        pace = self._paces.get(model)
        now = asyncio.get_running_loop().time()
        if pace is not None and request.deadline is not None and now + pace.mean_first_s > request.deadline:
            # An engine would compute it for nothing.
            waiter.ticket.set_exception(Overloaded(self._retry_after_s(request)))
            return True
        free = [engine for engine in ready if engine.has_room(waiter.lane)]
        waiter.ticket.set_result(self._place(request, free))
        return True

    def _dismiss(self, model: str, reason: ServingError) -> None:
        """Tells all who wait for the model that it is no use."""
        line = self._lines.pop(model)
        while (waiter := line.pop(lambda _: True)) is not None:
            del self._waiters[waiter]
            if not waiter.ticket.done():
                waiter.ticket.set_exception(reason)

    def _place(self, request: _Request, engines: Sequence[Engine]) -> _Attempt:
        """Chooses among `engines`, and counts the request as theirs. `_leave` is its end."""
        router = self._routers.get(request.model)
        if router is None:
            router = self._routers[request.model] = Router()
        route = router.route(request.blocks, [engine.standing for engine in engines])
        engine = engines[route.index]
        engine.standing.in_flight += 1
        engine.standing.unanswered_blocks += route.missing
        self._metrics.routed(blocks=route.blocks, matched=route.matched)
        since = asyncio.get_running_loop().time()
        return _Attempt(engine, route, since, request.model, is_trial=engine.breaker.begin())

    def _leave(self, attempt: _Attempt) -> None:
        """Ends the exchange, with its connection unless all came, and gives the place to the next."""
        engine = attempt.engine
        if attempt.connection is not None:
            engine.upstream.end(attempt.connection)
        engine.standing.in_flight -= 1
        if not attempt.is_answered:
            engine.standing.unanswered_blocks -= attempt.route.missing
        self._pace(attempt.model).note(asyncio.get_running_loop().time() - attempt.since)
        if engine.emptied is not None and not engine.in_flight:
            engine.emptied.set()
        if self._lines:
            self._dispatch()

    def _pace(self, model: str) -> Pace:
        pace = self._paces.get(model)
        if pace is None:
            pace = self._paces[model] = Pace()
        return pace

    # Engines.

    def _ready(self, model: str) -> list[Engine]:
        """Ready engines that serve `model`, one at least. Raises EngineUnavailable, ModelNotServed."""
        if ready := self._able(model):
            return ready
        now = self._clock()
        serving = [engine for engine in self._engines if engine.serves(model)]
        absent = [engine for engine in self._engines if engine.refusal(now) is not None]
        if serving or len(absent) == len(self._engines):
            reasons = "; ".join(f"{engine.url}: {engine.refusal(now)}" for engine in serving or absent)
            raise EngineUnavailable(f"No generation engine is ready ({reasons or 'none is configured'}).")
        raise ModelNotServed(
            model, sorted({served.id for engine in self._engines for served in engine.models})
        )

    def _able(self, model: str) -> list[Engine]:
        now = self._clock()
        return [engine for engine in self._engines if engine.serves(model) and engine.refusal(now) is None]

    async def _refresh(self, model: str | None, deadline: float | None = None) -> None:
        """Asks engines whose answers are old. Waits for that only when none is known that could take it."""
        self._require_open()
        now = self._last_sent_at = self._clock()
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        self._ask_old(now)
        if self._can_take(model):
            return
        longest_s = math.inf
        if deadline is not None:
            longest_s = max(0.0, deadline - asyncio.get_running_loop().time())
        if asking := self._asking():
            await asyncio.wait(asking, timeout=min(LONGEST_ASK_S, longest_s))
        # At the start an engine is not known to be away, only slow to tell. Asking ends by itself.
        while not self._can_take(model) and (
            asking := [
                each.asking for each in self._engines if each.asking is not None and not each.was_asked
            ]
        ):
            wait_s = None if longest_s is math.inf else max(0.0, longest_s - LONGEST_ASK_S)
            told, _ = await asyncio.wait(asking, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if not told:
                return

    def _can_take(self, model: str | None) -> bool:
        now = self._clock()
        return any(
            engine.refusal(now) is None and (model is None or engine.serves(model))
            for engine in self._engines
        )

    def _asking(self) -> list[asyncio.Task[None]]:
        return [engine.asking for engine in self._engines if engine.asking is not None]

    def _ask_old(self, now: float) -> None:
        for engine in self._engines:
            fresh_s = FRESH_S if engine.reason is None else AWAY_S
            if engine.asking is None and now - engine.asked_at > fresh_s:
                engine.asking = asyncio.create_task(self._ask(engine))

    async def _ask(self, engine: Engine) -> None:
        try:
            await engine.ask()
        finally:
            engine.asked_at = self._clock()
            engine.was_asked = True
            engine.asking = None
        self._dispatch()

    async def _watch(self) -> None:
        """Keeps asking while there is traffic, for those who wait and for load to be known; then ends."""
        try:
            while self._clock() - self._last_sent_at <= 2 * FRESH_S or self._is_busy:
                self._ask_old(self._clock())
                await asyncio.sleep(FRESH_S / 2)
        finally:
            self._watching = None

    @property
    def _is_busy(self) -> bool:
        return bool(self._lines) or any(engine.in_flight for engine in self._engines)

    def _states(self) -> list[tuple[Engine, str]]:
        now = self._clock()
        return [(engine, _state(engine, now)) for engine in self._engines]

    def _queued(self, lane: Lane) -> int:
        return sum(line.length(lane) for line in self._lines.values())

    def _require_open(self) -> None:
        if not self._is_open:
            raise EngineUnavailable("The gateway is not open.")


def _pieces(engine: Engine, request: _Request) -> list[bytes | memoryview]:
    """The request as it goes out: for vLLM with what only we may set, put before the body's first field.

    The body is neither parsed nor copied. Were a field in it twice, the last would count: the routes refuse
    bodies that have them.
    """
    path, body = request.path, request.body
    start = body.find(b"{") + 1
    if not (engine.is_vllm and path in SALTED_PATHS and start):
        return [engine.upstream.post(path, len(body), request.headers), body]
    ours = f'{{"priority":{PRIORITY[request.lane]},"cache_salt":"{request.salt}",'.encode()
    rest = memoryview(body)[start:]
    return [engine.upstream.post(path, len(ours) + len(rest), request.headers), ours, rest]


def _salt(secret: bytes, tenant: str) -> str:
    """64 hexadecimal digits: vLLM takes up to 128 characters, none of them @, / or a backslash."""
    return hmac.digest(secret, b"cache_salt\0" + tenant.encode(), "sha256").hex()


def _refuse(ticket: asyncio.Future[_Attempt], refusal: Overloaded) -> None:
    if not ticket.done():
        ticket.set_exception(refusal)


def _state(engine: Engine, now: float) -> str:
    if engine.emptied is not None:
        return "draining"
    if engine.reason is not None:
        return "unready"
    return "ready" if engine.breaker.refusal(now) is None else "broken"
