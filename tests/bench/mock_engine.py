"""A model server that does not compute: `python -m tests.bench.mock_engine --port 9000`, for gateway benchmarks.

It answers /v1/chat/completions in OpenAI's form, of which it reads three fields. Not streamed: after 22 ms, or after
`seed` ms where that is given. Streamed: `max_tokens` events, `seed` ms apart, else as fast as they can be
written; a word each, those of `--says` in turn where that is given. /departures tells when clients closed a connection
whose reply had not ended, in `time.monotonic` s.
"""

import argparse
import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from itertools import cycle, islice
from typing import Any

import orjson
import uvicorn

MODEL = "mock"
THINKS_MS = 22
EVENTS = 16

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def _completion(kind: str, choice: dict[str, Any]) -> bytes:
    told = {"id": "chatcmpl-mock", "object": kind, "created": 1, "model": MODEL}
    return orjson.dumps(told | {"choices": [{"index": 0, "finish_reason": None} | choice]})


ANSWER = _completion(
    "chat.completion",
    {"message": {"role": "assistant", "content": "A fine answer."}, "finish_reason": "stop"},
)


def _event(content: str) -> bytes:
    return b"data: %s\n\n" % _completion("chat.completion.chunk", {"delta": {"content": content}})


WORD = " word"
LAST_EVENTS = b"data: %s\n\ndata: [DONE]\n\n" % _completion(
    "chat.completion.chunk", {"delta": {}, "finish_reason": "stop"}
)
MODELS = orjson.dumps(
    {
        "object": "list",
        "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "vllm", "max_model_len": 4096}],
    }
)


class MockEngine:
    """The ASGI application."""

    def __init__(self, says: str = WORD) -> None:
        self._events = [_event(word) for word in re.findall(r"\s*\S+", says)]
        self._running = 0
        self._departures: list[float] = []

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        match scope["type"], scope.get("path"):
            case "lifespan", _:
                await _live(receive, send)
            case _, "/v1/chat/completions":
                await self._chat(receive, send)
            case _, "/v1/models":
                await _reply(send, MODELS)
            case _, "/health":
                await _reply(send, b"")
            case _, "/departures":
                await _reply(send, orjson.dumps(self._departures))
            case _, "/metrics":
                await _reply(send, self._metrics(), b"text/plain; version=0.0.4")
            case _:
                await _reply(send, b'{"error": {"message": "no such route"}}', status=404)

    async def _chat(self, receive: Receive, send: Send) -> None:
        asked = orjson.loads(await _body(receive))
        # The body has been read, so the next message can only be the client's departure.
        departure = asyncio.ensure_future(receive())
        self._running += 1
        try:
            if asked.get("stream"):
                await self._stream(asked, departure, send)
            elif await _is_done_within(departure, ms=asked.get("seed") or THINKS_MS):
                self._departures.append(time.monotonic())
            else:
                await _reply(send, ANSWER)
        finally:
            self._running -= 1
            departure.cancel()

    async def _stream(self, asked: dict[str, Any], departure: asyncio.Future[Any], send: Send) -> None:
        await _start(send, b"text/event-stream")
        for event in islice(cycle(self._events), asked.get("max_tokens") or EVENTS):
            await send({"type": "http.response.body", "body": event, "more_body": True})
            if await _is_done_within(departure, ms=asked.get("seed") or 0):
                self._departures.append(time.monotonic())
                return
        await send({"type": "http.response.body", "body": LAST_EVENTS})

    def _metrics(self) -> bytes:
        label = f'{{model_name="{MODEL}"}}'
        return (
            f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{label} {self._running}\n"
            f"# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{label} 0\n"
            f"# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{label} 0.0\n"
        ).encode()


async def _is_done_within(future: asyncio.Future[Any], *, ms: float) -> bool:
    if ms:
        await asyncio.wait({future}, timeout=ms / 1000)
    else:
        await asyncio.sleep(0)
    return future.done()


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _start(send: Send, content_type: bytes, *, status: int = 200, length: int | None = None) -> None:
    headers = [(b"content-type", content_type)]
    if length is not None:
        headers.append((b"content-length", b"%d" % length))
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _reply(
    send: Send, content: bytes, content_type: bytes = b"application/json", *, status: int = 200
) -> None:
    await _start(send, content_type, status=status, length=len(content))
    await send({"type": "http.response.body", "body": content})


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--says", default=WORD)
    options = parser.parse_args()
    # uvicorn's own 5 s would close connections that gateways keep for longer, as no engine behind a proxy does.
    uvicorn.run(
        MockEngine(options.says),
        port=options.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=75,
    )


if __name__ == "__main__":
    main()
