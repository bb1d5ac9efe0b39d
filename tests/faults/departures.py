"""Clients that hang up in each phase of an answer: `python -m tests.faults.departures --times 200`.

In the queue, before the first word, in the middle of a stream, and while a whole answer is written; of plain chats and
of those with documents. The engine must be free within a second, and with it the key's one stream. F10.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import orjson

from tests.faults.backends import ANSWER, QUESTION, Ground, ground
from tests.faults.report import Row, percentile

MODELS = ("scripted", "rag")
PHASES = ("queued", "before the first word", "streaming", "writing a whole answer")
FREE_WITHIN_S = 1.0
SLOW_S = 30.0
"""What an answer would take if nobody hung up."""


@dataclass
class Left:
    """How long the work of clients who left went on, by phase, in seconds."""

    after_s: dict[str, list[float]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def row(self) -> Row:
        times = sum(map(len, self.after_s.values()))
        figures = "free p99: " + ", ".join(
            f"{phase} {percentile(after, 0.99) * 1000:.0f} ms" for phase, after in self.after_s.items()
        )
        every = [each for after in self.after_s.values() for each in after]
        what = "F10 clients hang up, streamed or not, plain or with documents"
        return Row(what, times, len(self.violations), max(every, default=None), f"{figures} (1,000)")


async def leave_often(folder: Path, *, times: int) -> Left:
    """So often in each phase, of each kind of chat."""
    left = Left()
    async with ground(folder, max_in_flight=1) as on:
        key = await on.http.post(
            "/v1/keys", json={"name": "visitor", "role": "reader", "quotas": {"streams": 1}}
        )
        for _ in range(times):
            for phase in PHASES:
                for model in MODELS:
                    await _leave_once(on, key.json()["value"], phase, model, left)
    return left


async def _leave_once(on: Ground, key: str, phase: str, model: str, left: Left) -> None:
    engine = on.engine
    engine.before_first_s, engine.between_words_s = (
        (SLOW_S, 0.0) if phase == "before the first word" else (0.0, SLOW_S / len(ANSWER.split()))
    )
    blocker = None
    if phase == "queued":
        engine.gate.clear()
        blocker = asyncio.create_task(
            on.http.post("/v1/chat/completions", json=_body("scripted", stream=False))
        )
        await engine.until(lambda: engine.running == 1)
    departures, asked = engine.departures, len(engine.requests)
    is_streamed = phase in ("queued", "streaming")
    reader, writer = await _ask(on, key, _body(model, stream=is_streamed))
    waiting = on.services.gateway._waiters
    if phase == "queued":
        await _until(lambda: len(waiting) == 1)
    elif phase == "streaming":
        await reader.readuntil(b"data: ")
    else:
        await engine.until(lambda: engine.running == 1)
    hung_up = time.monotonic()
    writer.transport.abort()
    try:
        await _until(lambda: not waiting if phase == "queued" else engine.departures > departures)
    except TimeoutError:
        left.violations.append(f"{phase}, {model}: still at work after {10 * FREE_WITHIN_S:.0f} s")
    after_s = time.monotonic() - hung_up
    left.after_s.setdefault(phase, []).append(after_s)
    if after_s > FREE_WITHIN_S:
        left.violations.append(f"{phase}, {model}: free after {after_s:.1f} s")
    engine.gate.set()
    engine.before_first_s = engine.between_words_s = 0.0
    if blocker is not None:
        await blocker
        if len(engine.requests) != asked:
            left.violations.append(f"{phase}, {model}: the engine was asked after all")
    # One place in the engine and one stream of the key: both must be free.
    headers = {"Authorization": f"Bearer {key}"}
    reply = await on.http.post("/v1/chat/completions", json=_body(model, stream=True), headers=headers)
    if reply.status_code != 200 or "[DONE]" not in reply.text:
        left.violations.append(f"{phase}, {model}: the next one is {reply.status_code} {reply.text[:100]}")


def _body(model: str, *, stream: bool) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": QUESTION}], "stream": stream}


async def _ask(
    on: Ground, key: str, body: dict[str, object]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """On a connection of its own, which can be hung up at any moment."""
    parts, content = urlsplit(str(on.http.base_url)), orjson.dumps(body)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    writer.write(head.encode() + content)
    await writer.drain()
    return reader, writer


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10 * FREE_WITHIN_S):
        while not holds():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.001)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=200, help="in each of four phases, of two kinds of chat")
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        left = asyncio.run(leave_often(Path(folder), times=asked.times))
    for each in left.violations:
        print(each)
    left.row().show()
    return int(bool(left.violations))


if __name__ == "__main__":
    sys.exit(main())
