"""Embedder and Reranker over HTTP: what the api and worker roles hold of a models server."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import aiohttp
import numpy as np
import orjson
from numpy.typing import NDArray

from serving.protocols import EmbeddingModel, Lane, ModelUnavailable, Overloaded, ServingError, TextRefused

TEXTS_PER_REQUEST = 256
"""Longer lists go as several requests in turn: below the server's bound, and a departure is seen soon."""

LONGEST_REQUEST_S = 600.0
"""For calls without a deadline, so that a server that hangs does not hold its callers for ever."""

CONNECT_S = 5.0


class ModelsClient:
    """A models server. An async context manager, for any number of concurrent calls in one event loop."""

    def __init__(self, url: str, *, token: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None
        self._card: EmbeddingModel | None = None

    async def __aenter__(self) -> Self:
        # Without a limit: the server's lanes decide who waits. A queue here would hide people behind bulk.
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def describe(self) -> EmbeddingModel:
        """Asked once, and again after the server changed its model. Raises ModelUnavailable."""
        if self._card is None:
            content, _ = await self._send("GET", "/embedding", timeout_s=10.0)
            self._card = EmbeddingModel(**orjson.loads(content))
        return self._card

    async def readiness(self) -> dict[str, dict[str, str]]:
        """For each model of the server its state, and why it is not ready. Raises ModelUnavailable."""
        content, _ = await self._send("GET", "/ready", timeout_s=5.0, also_good=503)
        models: dict[str, dict[str, str]] = orjson.loads(content)["models"]
        return models

    async def embed(
        self, texts: Sequence[str], *, lane: Lane, deadline_s: float | None = None
    ) -> NDArray[np.float32]:
        """float32 (len(texts), dimensions), unit rows, in input order.

        Raises Overloaded, TextRefused, ModelUnavailable. The last also when the server's model is no longer
        the one that `describe` told of, since its vectors are others; the next `describe` asks again.
        """
        card = await self.describe()
        rows = [np.empty((0, card.dimensions), np.float32)]
        for part, headers in await self._compute("/embed", {}, texts, lane=lane, deadline_s=deadline_s):
            if headers["X-Fingerprint"] != card.fingerprint:
                self._card = None
                raise ModelUnavailable("The models server has changed its embedding model. Try again.")
            rows.append(part)
        return np.concatenate(rows)

    async def score(
        self, query: str, texts: Sequence[str], *, lane: Lane, deadline_s: float | None = None
    ) -> NDArray[np.float32]:
        """float32 (len(texts),), 0 to 1, in input order. Raises Overloaded, TextRefused, ModelUnavailable."""
        body = {"query": query}
        scores = [np.empty((0, 1), np.float32)]
        computed = await self._compute("/rerank", body, texts, lane=lane, deadline_s=deadline_s)
        return np.concatenate([*scores, *(part for part, _ in computed)])[:, 0]

    async def _compute(
        self, path: str, body: dict[str, str], texts: Sequence[str], *, lane: Lane, deadline_s: float | None
    ) -> list[tuple[NDArray[np.float32], Mapping[str, str]]]:
        """The rows of each request, with its headers."""
        ends_at = time.monotonic() + (LONGEST_REQUEST_S if deadline_s is None else deadline_s)
        parts = []
        for start in range(0, len(texts), TEXTS_PER_REQUEST):
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                raise Overloaded(1.0)
            texts_now = list(texts[start : start + TEXTS_PER_REQUEST])
            _check_unicode(texts_now, start)
            whole = {**body, "texts": texts_now, "lane": lane.value, "deadline_s": left_s}
            try:
                # A second more than the server has: its answer "too late" tells when to come again.
                content, headers = await self._send("POST", path, whole, timeout_s=left_s + 1)
            except TextRefused as error:
                raise TextRefused(start + error.index, error.reason) from None
            rows = np.frombuffer(content, "<f4").reshape(int(headers["X-Rows"]), int(headers["X-Dimensions"]))
            parts.append((rows.astype(np.float32), headers))
        return parts

    async def _send(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        timeout_s: float,
        also_good: int = 200,
    ) -> tuple[bytes, Mapping[str, str]]:
        """One exchange. Raises the exception of serving.protocols that the server named."""
        if self._session is None:
            raise ModelUnavailable("The client of the models server is not open.")
        content = orjson.dumps(body) if body is not None else None
        timeout = aiohttp.ClientTimeout(total=timeout_s, connect=CONNECT_S)
        headers = {"Content-Type": "application/json"}
        for is_last in (False, True):
            try:
                async with self._session.request(
                    method, self._url + path, data=content, headers=headers, timeout=timeout
                ) as reply:
                    received = await reply.read()
                    if reply.status not in {200, also_good}:
                        raise _error_of(reply, received)
                    return received, reply.headers
            except aiohttp.ClientConnectorError as error:
                raise ModelUnavailable("The models server is not reachable.") from error
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                # A kept connection that the server closed meanwhile. Computing twice is harmless, so once
                # more.
                if is_last:
                    raise ModelUnavailable("The models server closed the connection.") from error
            except (aiohttp.ClientError, TimeoutError) as error:
                raise ModelUnavailable(f"The models server failed ({type(error).__name__}).") from error
        raise AssertionError("the second attempt returns or raises")


def _check_unicode(texts: list[str], start: int) -> None:
    """Half a surrogate pair, as JSON can smuggle in, has no UTF-8 form to send. Raises TextRefused."""
    for index, text in enumerate(texts, start):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise TextRefused(index, "it is not valid Unicode") from None


def _error_of(reply: aiohttp.ClientResponse, content: bytes) -> ServingError:
    """The server's error as the exception it was there."""
    try:
        told = orjson.loads(content)["error"]
        name, message = told["type"], told["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ModelUnavailable(f"The models server answered {reply.status} without a reason.")
    match name:
        case "overloaded":
            return Overloaded(told["retry_after_s"])
        case "text_refused":
            return TextRefused(told["index"], told["reason"])
        case "unauthorized":
            return ModelUnavailable("The models server refuses our token.")
        case _:
            return ModelUnavailable(message)
