"""Fakes for tests: an embedder and a reranker without a model, and an OpenAI engine that follows a script.

The first two pass the same contract suites as the real ones; the third is a real HTTP server.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from aiohttp import web
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from serving.generation.gateway import Gateway, Replica
from serving.protocols import (
    EmbeddingModel,
    Lane,
    Overloaded,
    RerankingModel,
    ServingError,
    TextRefused,
    TextTooLong,
)

DIMENSIONS = 64


def word_counting_tokenizer_json() -> str:
    """A real tokenizer that counts words and punctuation marks, with the right offsets, and knows no word."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer.to_str()


async def _nothing(_: Sequence[str]) -> None:
    pass


class _Fallible:
    """Raises `failure` in place of a result while one is set."""

    def __init__(self) -> None:
        self.failure: ServingError | None = None
        self.meanwhile: Callable[[Sequence[str]], Awaitable[None]] = _nothing
        """Awaited with the texts of each call while they are computed; what it raises, the call fails with."""
        self.salts: list[str] = []
        """The cache salt of each call."""

    def _check(self, deadline_s: float | None) -> None:
        if self.failure is not None:
            raise self.failure
        if deadline_s is not None and deadline_s <= 0:
            raise Overloaded(1.0)


class FakeEmbedder(_Fallible):
    """Bags of words, hashed: texts that share words are near. `calls` tells what was embedded."""

    def __init__(
        self,
        *,
        name: str = "fake",
        fingerprint: str = "fake-bag-of-words",
        dimensions: int = DIMENSIONS,
        max_tokens: int = 256,
    ) -> None:
        super().__init__()
        self.name = name
        self.calls: list[tuple[Lane, list[str]]] = []
        self._card = EmbeddingModel(
            name=name,
            fingerprint=fingerprint,
            dimensions=dimensions,
            max_tokens=max_tokens,
            tokenizer_json=word_counting_tokenizer_json(),
        )

    async def describe(self) -> EmbeddingModel:
        self._check(None)
        return self._card

    async def embed(
        self,
        texts: Sequence[str],
        *,
        lane: Lane,
        deadline_s: float | None = None,
        cache_salt: str = "",
        truncate: bool = False,
    ) -> NDArray[np.float32]:
        self._check(deadline_s)
        if not truncate:
            _refuse_long(texts, self._card.max_tokens)
        self.calls.append((lane, list(texts)))
        self.salts.append(cache_salt)
        await self.meanwhile(texts)
        rows = np.empty((len(texts), self._card.dimensions), np.float32)
        for index, text in enumerate(texts):
            rows[index] = _bag_of_words(text, index, self._card.dimensions)
        return rows


class FakeReranker(_Fallible):
    """The share of the query's words that are in the text. `calls` tells what was scored."""

    def __init__(self, *, max_tokens: int = 512) -> None:
        super().__init__()
        self.calls: list[tuple[Lane, str, list[str]]] = []
        self._card = RerankingModel("fake", max_tokens, word_counting_tokenizer_json())

    async def describe(self) -> RerankingModel:
        self._check(None)
        return self._card

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
        self._check(deadline_s)
        if not truncate:
            _refuse_long([f"{query} {text}" for text in texts], self._card.max_tokens)
        self.calls.append((lane, query, list(texts)))
        self.salts.append(cache_salt)
        await self.meanwhile(texts)
        asked = set(_words(query, 0))
        scores = [
            len(asked & set(_words(text, index))) / max(1, len(asked)) for index, text in enumerate(texts)
        ]
        return np.array(scores, np.float32)


def _refuse_long(texts: Sequence[str], max_tokens: int) -> None:
    for index, text in enumerate(texts):
        if (tokens := len(_MARKS_AND_WORDS.findall(text))) > max_tokens:
            raise TextTooLong(index, tokens=tokens, max_tokens=max_tokens)


_MARKS_AND_WORDS = re.compile(r"\w+|[^\w\s]+")
"""What the tokenizer above counts."""


def _words(text: str, index: int) -> list[str]:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise TextRefused(index, "it is not valid Unicode") from None
    return re.findall(r"\w+", text.lower())


def _bag_of_words(text: str, index: int, dimensions: int = DIMENSIONS) -> NDArray[np.float32]:
    vector = np.zeros(dimensions, np.float32)
    for word in _words(text, index):
        digest = hashlib.blake2b(word.encode(), digest_size=2).digest()
        vector[digest[0] % dimensions] += 1.0 if digest[1] % 2 else -1.0
    length = float(np.linalg.norm(vector))
    if length == 0:
        vector[0] = length = 1.0
    return vector / np.float32(length)


Answer = Callable[[dict[str, Any]], str]


@dataclass
class ScriptedEngine:
    """An engine on a free loopback port: an async context manager. Its fields may change between requests.

    It speaks chat/completions and completions, streamed word by word or whole, lists its models, tells metrics
    in vLLM's form, and notes what it was sent, what it sent, and who left before the end.
    """

    answer: Answer = lambda _: "It is so [1]."
    models: tuple[str, ...] = ("scripted",)
    owned_by: str = "scripted"
    """vLLM says "vllm"."""
    max_model_len: int = 4096
    token: str | None = None
    status: int = 200
    """Another one refuses every completion with it."""
    healthy: bool = True
    metrics: str | None = None
    """What /metrics tells; None has no such route."""
    max_running: int | None = None
    """Requests beyond it are refused with 503, as by vLLM's bounded queue."""
    before_first_s: float = 0.0
    before_first_word_s: float = 0.0
    """Of a stream: after its head."""
    between_words_s: float = 0.0
    lose_after_words: int | None = None
    """The connection is cut after so many words; 0 cuts it before the reply begins."""
    is_cut_quietly: bool = False
    """Cut by a close after part of the reply, and not by a reset."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """While it is cleared, completions wait before they answer."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    sent: bytearray = field(default_factory=bytearray)
    departures: int = 0
    running: int = 0
    most_running: int = 0
    asked_health: int = 0
    url: str = ""

    def __post_init__(self) -> None:
        self.gate.set()
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/completions", self._complete)
        # So that a departed client ends the handler, as it does in vLLM.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port()).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def gateway(self) -> Gateway:
        """A gateway to this engine alone, to be opened."""
        return Gateway([Replica(self.url, self.token)], salt_secret=b"scripted")

    async def until(self, holds: Callable[[], bool]) -> None:
        """Returns when `holds` does, looked at whenever a request comes, goes on or ends."""
        while not holds():
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), 10)

    def _port(self) -> int:
        """The one it had before, so that an engine can be stopped and come back; else a free one."""
        return int(self.url.rpartition(":")[2]) if self.url else 0

    async def _health(self, _: web.Request) -> web.Response:
        self.asked_health += 1
        return web.Response(status=200 if self.healthy else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        if self.metrics is None:
            return web.Response(status=404)
        return web.Response(text=self.metrics, content_type="text/plain")

    async def _list_models(self, request: web.Request) -> web.Response:
        if not self._admits(request):
            return web.json_response({"error": {"message": "Unauthorized"}}, status=401)
        listed = [
            {"id": name, "object": "model", "owned_by": self.owned_by, "max_model_len": self.max_model_len}
            for name in self.models
        ]
        return web.json_response({"object": "list", "data": listed})

    def _admits(self, request: web.Request) -> bool:
        return self.token is None or request.headers.get("Authorization") == f"Bearer {self.token}"

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.bodies.append(body)
        self.headers.append(request.headers)
        asked = json.loads(body)
        self.requests.append(asked)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self._changed.set()
        try:
            status = self.status if self._admits(request) else 401
            if self.max_running is not None and self.running > self.max_running:
                status = 503
            if status != 200:
                refusal = {"error": {"message": "refused by the script", "type": "scripted"}}
                return web.json_response(refusal, status=status)
            await self.gate.wait()
            await asyncio.sleep(self.before_first_s)
            if asked.get("stream"):
                return await self._stream(request, asked)
            return await self._whole(request, asked)
        except asyncio.CancelledError:
            self.departures += 1
            raise
        finally:
            self.running -= 1
            self._changed.set()

    async def _whole(self, request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        text = self.answer(asked)
        for _ in re.findall(r"\S+\s*", text):
            await asyncio.sleep(self.between_words_s)
        message = {"role": "assistant", "content": text}
        choices = [
            {"index": index, "message": message, "text": text, "finish_reason": "stop", "logprobs": None}
            for index in range(asked.get("n") or 1)
        ]
        reply = {**_head(asked, "chat.completion"), "choices": choices, "usage": _usage(asked, text)}
        content = json.dumps(reply, separators=(", ", ":  ")).encode()
        if self.lose_after_words is not None and self.is_cut_quietly:
            partly = web.StreamResponse(headers={"Content-Length": str(len(content))})
            await partly.prepare(request)
            await partly.write(content[: len(content) // 2])
        if self.lose_after_words is not None:
            self._cut(request)
        self.sent += content
        return web.Response(body=content, content_type="application/json")

    async def _stream(self, request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        text = self.answer(asked)
        words = re.findall(r"\S+\s*", text)
        if self.lose_after_words == 0:
            self._cut(request)
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await reply.prepare(request)
        await asyncio.sleep(self.before_first_word_s)
        await self._event(reply, asked, {"role": "assistant", "content": ""})
        for number, word in enumerate(words, 1):
            await self._event(reply, asked, {"content": word})
            await asyncio.sleep(self.between_words_s)
            if number == self.lose_after_words:
                self._cut(request)
        await self._event(reply, asked, {}, finish_reason="stop")
        if (asked.get("stream_options") or {}).get("include_usage"):
            usage = {**_head(asked, "chat.completion.chunk"), "choices": [], "usage": _usage(asked, text)}
            await self._write(reply, f"data: {json.dumps(usage)}\n\n")
        await self._write(reply, "data: [DONE]\n\n")
        return reply

    async def _event(
        self,
        reply: web.StreamResponse,
        asked: dict[str, Any],
        delta: dict[str, str],
        finish_reason: str | None = None,
    ) -> None:
        choices = [
            {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            for index in range(asked.get("n") or 1)
        ]
        chunk = {**_head(asked, "chat.completion.chunk"), "choices": choices}
        await self._write(reply, f"data: {json.dumps(chunk)}\n\n")

    async def _write(self, reply: web.StreamResponse, text: str) -> None:
        self.sent += text.encode()
        await reply.write(text.encode())
        self._changed.set()

    def _cut(self, request: web.Request) -> None:
        """Ends the connection as a killed process does, or one that leaves off."""
        assert request.transport is not None
        if self.is_cut_quietly:
            request.transport.close()
        else:
            request.transport.abort()
        raise web.HTTPServerError


def _head(asked: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-scripted", "object": kind, "created": 1_700_000_000, "model": asked.get("model")}


def _usage(asked: dict[str, Any], text: str) -> dict[str, int]:
    prompt = len(json.dumps(asked.get("messages") or asked.get("prompt") or "").split())
    completion = len(text.split())
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
