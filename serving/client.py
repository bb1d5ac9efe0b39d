"""Embedders and Rerankers over HTTP: what the api and worker roles hold of a models server."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar
from urllib.parse import quote
from weakref import WeakValueDictionary

import aiohttp
import numpy as np
import orjson
from numpy.typing import NDArray

from serving.protocols import (
    EmbeddingModel,
    Lane,
    ModelUnavailable,
    ModelUnknown,
    Overloaded,
    RerankingModel,
    ServingError,
    TextRefused,
    TextTooLong,
)
from serving.readiness import Kind, ModelReadiness, State
from serving.request_ids import request_id_header
from serving.tracing import traceparent

TEXTS_PER_REQUEST = 256
"""Longer lists go as several requests: below the server's bound, and a departure is seen soon."""

REQUESTS_IN_FLIGHT = 2
"""Of one call: while one is computed the next waits at the server, which so never idles between them."""

LONGEST_REQUEST_S = 600.0
"""For calls without a deadline, or with a later one, so that a server that hangs does not hold its callers for ever."""

LONGEST_LOADING_S = 120.0
"""For cards: the first question about a model loads it. The server answers sooner, see its own bound."""

CONNECT_S = 5.0
NOT_UNDERSTOOD = "What answers at models.url is no models server of this version."

Card = TypeVar("Card", bound=EmbeddingModel | RerankingModel)


class ModelsClient:
    """A models server. An async context manager, for any number of concurrent calls in one event loop."""

    def __init__(self, url: str, *, token: str | None = None) -> None:
        self._exchange = _Exchange(url, token)
        # Aliases come from people's requests, so those that nobody holds are forgotten; cards are as few as
        # the server's models.
        self._embedders: WeakValueDictionary[str, RemoteEmbedder] = WeakValueDictionary()
        self._rerankers: WeakValueDictionary[str, RemoteReranker] = WeakValueDictionary()
        self._embedding_cards: dict[str, _Known[EmbeddingModel]] = {}
        self._reranking_cards: dict[str, _Known[RerankingModel]] = {}

    async def __aenter__(self) -> Self:
        self._exchange.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exchange.close()

    def embedder(self, alias: str) -> "RemoteEmbedder":
        """Asks the server nothing: whether it has the model shows in the first call."""
        return self._embedders.setdefault(
            alias,
            RemoteEmbedder(
                _RemoteModel(self._exchange, Kind.EMBEDDING, alias, EmbeddingModel, self._embedding_cards)
            ),
        )

    def reranker(self, alias: str) -> "RemoteReranker":
        """As `embedder`."""
        return self._rerankers.setdefault(
            alias,
            RemoteReranker(
                _RemoteModel(self._exchange, Kind.RERANKING, alias, RerankingModel, self._reranking_cards)
            ),
        )

    async def readiness(self) -> dict[str, ModelReadiness]:
        """For each alias its model. Raises ModelUnavailable when the server is away."""
        content, _ = await self._exchange.send("GET", "/ready", timeout_s=5.0, also_good=503)
        models: list[dict[str, Any]] = orjson.loads(content)["models"]
        return {
            told["alias"]: ModelReadiness(
                **(told | {"kind": Kind(told["kind"]), "state": State(told["state"])})
            )
            for told in models
        }

    async def metrics(self) -> bytes:
        """The server's metrics as Prometheus text. Raises ModelUnavailable."""
        content, _ = await self._exchange.send("GET", "/metrics", timeout_s=5.0)
        return content


class RemoteEmbedder:
    """An Embedder whose model runs in the models server."""

    def __init__(self, model: "_RemoteModel[EmbeddingModel]") -> None:
        self._model = model

    async def describe(self) -> EmbeddingModel:
        """Asked once, and again after the server changed the model. Raises ModelUnavailable, ModelUnknown."""
        return (await self._model.known(LONGEST_LOADING_S)).card

    async def embed(
        self,
        texts: Sequence[str],
        *,
        lane: Lane,
        deadline_s: float | None = None,
        cache_salt: str = "",
        truncate: bool = False,
    ) -> NDArray[np.float32]:
        """float32 (len(texts), dimensions), unit rows, in input order.

        Raises Overloaded, TextRefused, ModelUnavailable, ModelUnknown. ModelUnavailable also when the server's
        model is no longer the one that `describe` told of, since its vectors are others; the next `describe`
        asks again.
        """
        asked = {"lane": lane, "cache_salt": cache_salt, "truncate": truncate}
        parts = await self._model.compute("/embed", asked, texts, deadline_s)
        return (
            np.concatenate(parts) if parts else np.empty((0, (await self.describe()).dimensions), np.float32)
        )


class RemoteReranker:
    """A Reranker whose model runs in the models server."""

    def __init__(self, model: "_RemoteModel[RerankingModel]") -> None:
        self._model = model

    async def describe(self) -> RerankingModel:
        """Asked once, and again after the server changed the model. Raises ModelUnavailable, ModelUnknown."""
        return (await self._model.known(LONGEST_LOADING_S)).card

    async def score(
        self,
        query: str,
        texts: Sequence[str],
        *,
        lane: Lane,
        deadline_s: float | None = None,
        cache_salt: str = "",
        truncate: bool = False,
    ) -> NDArray[np.float32]:
        """float32 (len(texts),), 0 to 1, in input order. Raises as RemoteEmbedder.embed does."""
        asked = {"query": query, "lane": lane, "cache_salt": cache_salt, "truncate": truncate}
        parts = await self._model.compute("/rerank", asked, texts, deadline_s)
        return np.concatenate(parts)[:, 0] if parts else np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class _Known(Generic[Card]):
    """A model's card, and the fingerprint that replies carry while it holds."""

    card: Card
    fingerprint: str


class _RemoteModel(Generic[Card]):
    """One model of the server: its card, and rows in slices."""

    def __init__(
        self,
        exchange: "_Exchange",
        kind: Kind,
        alias: str,
        card_type: Callable[..., Card],
        cards: dict[str, _Known[Card]],
    ) -> None:
        self._exchange = exchange
        self._kind = kind
        self._alias = alias
        self._card_type: Callable[..., Card] = card_type
        self._cards = cards

    async def known(self, timeout_s: float) -> _Known[Card]:
        known = self._cards.get(self._alias)
        if known is None:
            if not self._alias.strip("."):
                # In a path these would be steps.
                raise ModelUnknown(self._alias, ())
            path = f"/models/{self._kind}/{quote(self._alias, safe='')}"
            content, headers = await self._exchange.send("GET", path, timeout_s=timeout_s)
            try:
                known = _Known(self._card_type(**orjson.loads(content)), headers["X-Fingerprint"])
            except (orjson.JSONDecodeError, LookupError, TypeError) as error:
                raise ModelUnavailable(NOT_UNDERSTOOD) from error
            self._cards[self._alias] = known
        return known

    async def compute(
        self, path: str, asked: dict[str, Any], texts: Sequence[str], deadline_s: float | None
    ) -> list[NDArray[np.float32]]:
        """The rows of each slice. What an early slice raises is told before what a later one does."""
        has_s = LONGEST_REQUEST_S if deadline_s is None else min(deadline_s, LONGEST_REQUEST_S)
        if has_s <= 0:
            raise Overloaded(1.0)
        ends_at = time.monotonic() + has_s
        fingerprint = (await self.known(min(has_s, LONGEST_LOADING_S))).fingerprint
        asked = {"model": self._alias, **asked}

        def slice_from(start: int) -> Coroutine[Any, Any, NDArray[np.float32]]:
            return self._slice(path, asked, texts, start, ends_at=ends_at, fingerprint=fingerprint)

        if len(texts) <= TEXTS_PER_REQUEST:
            return [await slice_from(0)] if texts else []
        parts: list[NDArray[np.float32]] = []
        in_flight: deque[asyncio.Task[NDArray[np.float32]]] = deque()
        try:
            for start in range(0, len(texts), TEXTS_PER_REQUEST):
                if len(in_flight) == REQUESTS_IN_FLIGHT:
                    parts.append(await in_flight.popleft())
                in_flight.append(asyncio.create_task(slice_from(start)))
            while in_flight:
                parts.append(await in_flight.popleft())
        finally:
            for late in in_flight:
                late.cancel()
            await asyncio.gather(*in_flight, return_exceptions=True)
        return parts

    async def _slice(
        self,
        path: str,
        asked: dict[str, Any],
        texts: Sequence[str],
        start: int,
        *,
        ends_at: float,
        fingerprint: str,
    ) -> NDArray[np.float32]:
        left_s = ends_at - time.monotonic()
        if left_s <= 0:
            raise Overloaded(1.0)
        texts_now = list(texts[start : start + TEXTS_PER_REQUEST])
        body = _as_json({**asked, "texts": texts_now, "deadline_s": left_s}, texts_now, start)
        try:
            # A second more than the server has: its answer "too late" tells when to come again.
            content, headers = await self._exchange.send("POST", path, body, timeout_s=left_s + 1)
        except TextTooLong as error:
            index = start + error.index
            raise TextTooLong(index, tokens=error.tokens, max_tokens=error.max_tokens) from None
        except TextRefused as error:
            raise TextRefused(start + error.index, error.reason) from None
        if headers.get("X-Fingerprint", fingerprint) != fingerprint:
            self._cards.pop(self._alias, None)
            raise ModelUnavailable(f"The models server has changed its model {self._alias}. Try again.")
        try:
            shape = int(headers["X-Rows"]), int(headers["X-Dimensions"])
            rows = np.frombuffer(content, "<f4").reshape(shape)
        except (LookupError, ValueError) as error:
            raise ModelUnavailable(NOT_UNDERSTOOD) from error
        return rows.astype(np.float32)


class _Exchange:
    """One HTTP session with the server; what it answers as results and exceptions of serving.protocols."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        # Without a limit: the server's lanes decide who waits. A queue here would hide people behind bulk.
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        timeout_s: float,
        also_good: int = 200,
    ) -> tuple[bytes, Mapping[str, str]]:
        """Raises the exception that the server named, or ModelUnavailable."""
        if self._session is None:
            raise ModelUnavailable("The client of the models server is not open.")
        timeout = aiohttp.ClientTimeout(total=timeout_s, connect=CONNECT_S)
        for is_last in (False, True):
            has_begun = False
            try:
                async with self._session.request(
                    method,
                    self._url + path,
                    data=body,
                    timeout=timeout,
                    headers={**traceparent(), **request_id_header()},
                ) as reply:
                    has_begun = True
                    received = await reply.read()
                    if reply.status not in {200, also_good}:
                        raise _error_of(reply.status, received)
                    return received, reply.headers
            except aiohttp.ClientConnectorError as error:
                raise ModelUnavailable("The models server is not reachable.") from error
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                # A kept connection that the server closed meanwhile: nothing of a reply has come, so once more.
                if is_last or has_begun:
                    raise ModelUnavailable("The models server closed the connection.") from error
            except TimeoutError as error:
                raise ModelUnavailable("The models server did not answer in time.") from error
            except aiohttp.ClientError as error:
                raise ModelUnavailable(f"The models server failed ({type(error).__name__}).") from error
        raise AssertionError("the second attempt returns or raises")


def _as_json(body: dict[str, Any], texts: list[str], start: int) -> bytes:
    """Half a surrogate pair, as JSON can smuggle in, has no UTF-8 form to send. Raises TextRefused."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        for index, text in enumerate(texts, start):
            if not _is_unicode(text):
                raise TextRefused(index, "it is not valid Unicode") from None
        raise TextRefused(start, "the query beside it is not valid Unicode") from None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _error_of(status: int, content: bytes) -> ServingError:
    """The server's error as the exception it was there."""
    try:
        told = orjson.loads(content)["error"]
        name, message = told["type"], told["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ModelUnavailable(f"The models server answered {status} without a reason.")
    match name:
        case "overloaded":
            return Overloaded(told["retry_after_s"])
        case "text_too_long":
            return TextTooLong(told["index"], tokens=told["tokens"], max_tokens=told["max_tokens"])
        case "text_refused":
            return TextRefused(told["index"], told["reason"])
        case "model_unknown":
            return ModelUnknown(told["alias"], told["available"])
        case "unauthorized":
            return ModelUnavailable("The models server refuses our token.")
        case _:
            return ModelUnavailable(message)
