"""Relays OpenAI requests to generation engines byte by byte, for the api role's chat and pass-through routes.

Any OpenAI-compatible server is an engine. The gateway never reads a body: the caller names the model. It
holds no queue; an engine has its own, bounded one.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Self

import aiohttp
import orjson

from serving.protocols import EngineUnavailable, ServingError

FRESH_S = 2.0
"""So long is believed what a replica told of its health and models; asking again holds no request up."""

CONNECT_S = 5.0

CHECK = aiohttp.ClientTimeout(total=5.0)

KEEP_ALIVE_S = 4.0
"""Below the 5 s after which uvicorn (vLLM) closes idle connections: we would write into closed ones."""


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
    """An engine's reply, readable while `Gateway.send` is open."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def content_type(self) -> str:
        """The header as it came, parameters included."""
        return self._response.headers.get("Content-Type", "application/octet-stream")

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    async def read(self) -> bytes:
        """The whole body. Raises EngineLost."""
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, cut anywhere. Raises EngineLost."""
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineLost(f"The engine was lost while it answered ({type(error).__name__}).") from error


@dataclass(eq=False)
class _Engine:
    """A replica with what is known of it now."""

    replica: Replica
    reason: str | None = "it was not asked yet"
    models: tuple[UpstreamModel, ...] = ()
    """What it last told. Kept while it is away, to tell an absent engine from an unknown model."""
    asked_at: float = -math.inf
    asking: asyncio.Task[None] | None = None
    in_flight: int = 0

    @property
    def url(self) -> str:
        return self.replica.url.rstrip("/").removesuffix("/v1")

    def serves(self, model: str) -> bool:
        return any(model == served.id for served in self.models)


class _Unanswered(EngineUnavailable):
    """A request got no reply. `connected` tells whether the engine could have seen it."""

    def __init__(self, message: str, *, connected: bool) -> None:
        super().__init__(message)
        self.connected = connected


class Gateway:
    """A pool of engines. An async context manager, for any number of concurrent calls in one event loop."""

    def __init__(
        self,
        replicas: Iterable[Replica],
        *,
        longest_silence_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """An engine silent for `longest_silence_s` is lost. A long prompt takes minutes on a CPU."""
        self._engines = [_Engine(replica) for replica in replicas]
        self._silence_s = longest_silence_s
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=self._silence_s),
            # Bytes go through as they came; identity keeps an engine from compressing what streams.
            auto_decompress=False,
            headers={"Accept-Encoding": "identity", "Content-Type": "application/json"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        asking = [engine.asking for engine in self._engines if engine.asking is not None]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    @asynccontextmanager
    async def send(
        self, path: str, body: bytes, *, model: str, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Reply]:
        """Posts `body` to `path` (/v1/chat/completions) of the least busy ready engine that serves `model`.

        Leaving the context, by cancellation too, closes a connection whose reply was not read to its end, and
        the engine stops computing. An engine's own refusal is a Reply like any other.
        Raises ModelNotServed and EngineUnavailable before there is a reply; reading it may raise EngineLost.
        """
        await self._refresh()
        engine, response = await self._open(path, body, model, headers or {})
        try:
            yield Reply(response)
        finally:
            response.close()
            engine.in_flight -= 1

    async def models(self) -> list[UpstreamModel]:
        """Those that ready engines serve. Empty when no engine is ready."""
        await self._refresh()
        ready = [engine for engine in self._engines if engine.reason is None]
        # The shortest context of a model's replicas: a prompt that fits it fits wherever it goes.
        longest_first = sorted(
            (model for engine in ready for model in engine.models),
            key=lambda model: model.max_model_len or math.inf,
            reverse=True,
        )
        return sorted({model.id: model for model in longest_first}.values(), key=lambda model: model.id)

    async def health(self) -> list[ReplicaHealth]:
        """Each replica's state, in the order given."""
        await self._refresh()
        return [
            ReplicaHealth(
                url=engine.url,
                reason=engine.reason,
                models=tuple(model.id for model in engine.models),
                in_flight=engine.in_flight,
            )
            for engine in self._engines
        ]

    def _candidates(self, model: str) -> list[_Engine]:
        """Ready engines that serve `model`, least busy first. Raises EngineUnavailable, ModelNotServed."""
        serving = [engine for engine in self._engines if engine.serves(model)]
        ready = [engine for engine in serving if engine.reason is None]
        if ready:
            return sorted(ready, key=lambda engine: engine.in_flight)
        absent = [engine for engine in self._engines if engine.reason is not None]
        if serving or len(absent) == len(self._engines):
            reasons = "; ".join(f"{engine.url}: {engine.reason}" for engine in serving or absent)
            raise EngineUnavailable(f"No generation engine is ready ({reasons or 'none is configured'}).")
        raise ModelNotServed(
            model, sorted({served.id for engine in self._engines for served in engine.models})
        )

    async def _open(
        self, path: str, body: bytes, model: str, headers: Mapping[str, str]
    ) -> tuple[_Engine, aiohttp.ClientResponse]:
        """The reply's head, after at most one retry; all retries are decided here."""
        first, *others = self._candidates(model)
        try:
            response = await self._post(first, path, body, headers)
        except _Unanswered as failure:
            if others:
                return others[0], await self._post(others[0], path, body, headers)
            if failure.connected:
                # Most likely a kept connection that the engine closed meanwhile. If it died, this finds out.
                return first, await self._post(first, path, body, headers)
            raise
        if response.status == HTTPStatus.SERVICE_UNAVAILABLE and others:
            # Its queue is full or its core is dead: it has done nothing for this request.
            response.close()
            first.in_flight -= 1
            return others[0], await self._post(others[0], path, body, headers)
        return first, response

    async def _post(
        self, engine: _Engine, path: str, body: bytes, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """Counts the request as in flight, unless it raises _Unanswered or is cancelled."""
        engine.in_flight += 1
        try:
            return await self._require_session().post(
                engine.url + path,
                data=body,
                headers={**headers, **_authorization(engine)},
                allow_redirects=False,
            )
        except BaseException as error:
            engine.in_flight -= 1
            if not isinstance(error, aiohttp.ClientError | TimeoutError):
                raise
            # The next request asks it again, however fresh its last answer is.
            engine.reason, engine.asked_at = _why(error), -math.inf
            raise _Unanswered(
                f"The generation engine did not answer ({engine.url}: {engine.reason}).",
                connected=isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
                and not isinstance(error, aiohttp.ClientConnectorError),
            ) from error

    async def _refresh(self) -> None:
        """Asks engines whose answers are old. Waits for that only when no engine is known to be ready."""
        now = self._clock()
        for engine in self._engines:
            if now - engine.asked_at > FRESH_S and engine.asking is None:
                engine.asking = asyncio.create_task(self._ask(engine))
        asking = [engine.asking for engine in self._engines if engine.asking is not None]
        if asking and all(engine.reason is not None for engine in self._engines):
            await asyncio.wait(asking)

    async def _ask(self, engine: _Engine) -> None:
        """Brings `reason` and `models` up to date."""
        try:
            engine.models = await self._ask_models(engine)
            engine.reason = await self._ask_health(engine)
        except (aiohttp.ClientError, TimeoutError) as error:
            engine.reason = _why(error)
        except (orjson.JSONDecodeError, KeyError, TypeError):
            engine.reason = "its list of models is not in OpenAI's form"
        finally:
            engine.asked_at = self._clock()
            engine.asking = None

    async def _ask_health(self, engine: _Engine) -> str | None:
        """vLLM's API goes on after its core died; /health tells. Engines without that route are alive."""
        async with self._require_session().get(engine.url + "/health", timeout=CHECK) as reply:
            return f"its health check answers {reply.status}" if reply.status >= 500 else None

    async def _ask_models(self, engine: _Engine) -> tuple[UpstreamModel, ...]:
        async with self._require_session().get(
            engine.url + "/v1/models", timeout=CHECK, headers=_authorization(engine), raise_for_status=True
        ) as reply:
            listed = orjson.loads(await reply.read())["data"]
        return tuple(UpstreamModel(model["id"], model.get("max_model_len")) for model in listed)

    def _require_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise EngineUnavailable("The gateway is not open.")
        return self._session


def _authorization(engine: _Engine) -> dict[str, str]:
    return {"Authorization": f"Bearer {engine.replica.token}"} if engine.replica.token else {}


def _why(error: aiohttp.ClientError | TimeoutError) -> str:
    """The reason in words, for /ready and error messages."""
    match error:
        case aiohttp.ClientConnectorError():
            return "it refuses connections"
        case TimeoutError():
            return "it did not answer in time"
        case aiohttp.ClientResponseError(status=HTTPStatus.UNAUTHORIZED):
            return "it refuses our token"
        case aiohttp.ClientResponseError():
            return f"its list of models answers {error.status}"
        case _:
            return f"the connection was lost ({type(error).__name__})"
