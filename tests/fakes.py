"""Fakes for tests: an embedder and a reranker without a model, and an OpenAI engine that follows a script.

The first two pass the same contract suites as the real ones; the third is a real HTTP server.
"""

import asyncio
import base64
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
        self._card = RerankingModel("fake", "fake-shared-words", max_tokens, word_counting_tokenizer_json())

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
    answers: Sequence[str] = ()
    """By choice, in place of `answer`."""
    tool_calls: Sequence[dict[str, Any]] = ()
    """Made in place of an answer, until one of the messages is a tool's."""
    usage_details: Mapping[str, Any] = field(default_factory=dict)
    """Beside the usage's counts: vLLM tells how many tokens it had in its cache, and how many were reasoning."""
    finish_reason: str = "stop"
    """Of an answer that is no call of a tool."""
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
    count_tokens: Callable[[str], int] | None = None
    """What /tokenize tells; None has no such route."""
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

    tokenized: list[str] = field(default_factory=list)
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
        app.router.add_post("/tokenize", self._tokenize)
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

    async def _tokenize(self, request: web.Request) -> web.Response:
        if self.count_tokens is None:
            return web.Response(status=404)
        asked = await request.json()
        text = asked["prompt"] if "prompt" in asked else json.dumps(asked["messages"])
        self.tokenized.append(text)
        return web.json_response({"count": self.count_tokens(text), "max_model_len": self.max_model_len})

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
        text = self.answers[0] if self.answers else self.answer(asked)
        for _ in re.findall(r"\S+\s*", text):
            await asyncio.sleep(self.between_words_s)
        choices = [
            self._choice(asked, index, self.answers[index] if self.answers else text)
            for index in range(asked.get("n") or 1)
        ]
        reply = {**_head(asked, "chat.completion"), "choices": choices, "usage": self._usage(asked, text)}
        content = json.dumps(reply, separators=(", ", ":  ")).encode()
        if self.lose_after_words is not None and self.is_cut_quietly:
            partly = web.StreamResponse(headers={"Content-Length": str(len(content))})
            await partly.prepare(request)
            await partly.write(content[: len(content) // 2])
        if self.lose_after_words is not None:
            self._cut(request)
        self.sent += content
        return web.Response(body=content, content_type="application/json")

    def _usage(self, asked: dict[str, Any], text: str) -> dict[str, Any]:
        return {**_usage(asked, text), **self.usage_details}

    def _calls(self, asked: dict[str, Any]) -> bool:
        answered = any(message.get("role") == "tool" for message in asked.get("messages", ()))
        return bool(self.tool_calls and asked.get("tools")) and not answered

    def _choice(self, asked: dict[str, Any], index: int, text: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        reason, logprobs = self.finish_reason, None
        if self._calls(asked):
            message, reason = {**message, "content": None, "tool_calls": list(self.tool_calls)}, "tool_calls"
        elif "audio" in (asked.get("modalities") or ()):
            sound = base64.b64encode(text.encode()).decode()
            told = {"id": "audio_1", "expires_at": 2_000_000_000, "data": sound, "transcript": text}
            message |= {"content": None, "audio": told}
        elif asked.get("logprobs"):
            logprobs = _logprobs(text, asked)
        return {
            "index": index,
            "message": message,
            "text": text,
            "finish_reason": reason,
            "logprobs": logprobs,
        }

    async def _stream(self, request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        if self.answers or self._calls(asked):
            return await self._stream_choices(request, asked)
        text = self.answer(asked)
        words = re.findall(r"\S+\s*", text)
        if self.lose_after_words == 0:
            self._cut(request)
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await reply.prepare(request)
        await asyncio.sleep(self.before_first_word_s)
        await self._event(reply, asked, {"role": "assistant", "content": ""})
        for number, word in enumerate(words, 1):
            await self._event(
                reply,
                asked,
                {"content": word},
                logprobs=_logprobs(word, asked) if asked.get("logprobs") else None,
            )
            await asyncio.sleep(self.between_words_s)
            if number == self.lose_after_words:
                self._cut(request)
        await self._event(reply, asked, {}, finish_reason=self.finish_reason)
        if (asked.get("stream_options") or {}).get("include_usage"):
            usage = {
                **_head(asked, "chat.completion.chunk"),
                "choices": [],
                "usage": self._usage(asked, text),
            }
            await self._write(reply, f"data: {json.dumps(usage)}\n\n")
        await self._write(reply, "data: [DONE]\n\n")
        return reply

    async def _stream_choices(self, request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        """Each choice's words in turn, as vLLM sends them, or calls of tools in pieces."""
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await reply.prepare(request)
        queues: list[list[dict[str, Any]]] = []
        for index in range(asked.get("n") or 1):
            if self._calls(asked):
                deltas = [piece for call in self.tool_calls for piece in _call_deltas(call)]
            else:
                deltas = [{"content": word} for word in re.findall(r"\S+\s*", self.answers[index])]
            reason = "tool_calls" if self._calls(asked) else self.finish_reason
            queues.append(
                [{"index": index, "delta": {"role": "assistant"}, "finish_reason": None}]
                + [{"index": index, "delta": delta, "finish_reason": None} for delta in deltas]
                + [{"index": index, "delta": {}, "finish_reason": reason}]
            )
        while any(queues):
            for queue in queues:
                if queue:
                    chunk = {**_head(asked, "chat.completion.chunk"), "choices": [queue.pop(0)]}
                    await self._write(reply, f"data: {json.dumps(chunk)}\n\n")
        await self._write(reply, "data: [DONE]\n\n")
        return reply

    async def _event(
        self,
        reply: web.StreamResponse,
        asked: dict[str, Any],
        delta: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> None:
        choices = [
            {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
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
    kind = kind if "messages" in asked else "text_completion"
    return {"id": "chatcmpl-scripted", "object": kind, "created": 1_700_000_000, "model": asked.get("model")}


def _logprobs(text: str, asked: dict[str, Any]) -> dict[str, Any]:
    """A token is a space and what follows it, and a bracket is one of its own, as in many vocabularies.

    The likeliest is the one that was chosen, and others are further away.
    """
    tokens = re.findall(r" ?\[|\]\S?| ?[^\s\[\]]+|\s", text)
    most = asked.get("top_logprobs") or 0
    return {
        "content": [
            {
                **_token(token, -0.5),
                "top_logprobs": [
                    _token(each, -0.5 * rank) for rank, each in enumerate([token, *"abcdefgh"][:most], 1)
                ],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _call_deltas(call: dict[str, Any]) -> list[dict[str, Any]]:
    """A tool call in three pieces."""
    function = call["function"]
    half = len(function["arguments"]) // 2
    head = {**call, "index": 0, "function": {**function, "arguments": ""}}
    rest = [function["arguments"][:half], function["arguments"][half:]]
    pieces = [head, *({"index": 0, "function": {"arguments": piece}} for piece in rest)]
    return [{"tool_calls": [piece]} for piece in pieces]


def _usage(asked: dict[str, Any], text: str) -> dict[str, int]:
    prompt = len(json.dumps(asked.get("messages") or asked.get("prompt") or "").split())
    completion = len(text.split())
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
