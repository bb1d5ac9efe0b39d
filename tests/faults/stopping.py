"""SIGTERM while a hundred answers stream: `python -m tests.faults.stopping --times 20`.

Each stream ends whole, or says that it does not: by an error event, or by a connection that breaks off within a chunk,
which clients raise. The role is gone in time, and nothing that it acknowledged is lost. F12.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import httpx

from tests.api_role import ApiRole
from tests.bench.mock_engine import MODEL
from tests.bench.peers.gateways import mock_engine
from tests.faults.report import Row
from tests.stack import eventually

STREAMS = 100
SHORT, LONG = 20, 2_000
"""Events of an answer: the one ends by itself while the role drains, the other does not."""
EVENT_MS = 50
ENDS_WITHIN_S = 10.0


@dataclass
class Stopped:
    """How streams ended, and how long the role took, in seconds."""

    ends: Counter[str] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def row(self) -> Row:
        told = ", ".join(f"{count} {how}" for how, count in sorted(self.ends.items()))
        figures = f"streams: {told}; gone after {max(self.took_s):.1f} s ({ENDS_WITHIN_S:.0f})"
        return Row(
            f"F12 SIGTERM under {STREAMS} streams", len(self.took_s), len(self.violations), None, figures
        )


def stop_often(folder: Path, *, times: int) -> Stopped:
    stopped = Stopped()
    with (
        mock_engine(folder) as engine,
        ApiRole(folder / "data", {"STRONGROOM_ENGINE__URL": engine.url}) as role,
    ):
        kept: set[str] = set()
        for _ in range(times):
            role.start()
            with httpx.Client(base_url=role.url, headers=role.headers) as http:
                missing = kept - {
                    each["id"] for each in http.get("/v1/vector_stores?limit=100").json()["data"]
                }
                stopped.violations += [f"{each} was acknowledged and is gone" for each in sorted(missing)]
                kept = {http.post("/v1/vector_stores", json={"name": "a"}).json()["id"]}
            asyncio.run(_stop_once(role, stopped))
        role.command("verify", "--url", "http://127.0.0.1:9")
    return stopped


async def _stop_once(role: ApiRole, stopped: Stopped) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(60)
    async with aiohttp.ClientSession(connector=connector, headers=role.headers, timeout=timeout) as session:
        began = [asyncio.Event() for _ in range(STREAMS)]
        streams = [
            asyncio.create_task(_stream(session, role.url, each, SHORT if number % 2 else LONG))
            for number, each in enumerate(began)
        ]
        async with asyncio.timeout(60):
            await asyncio.gather(*(each.wait() for each in began))
        told = time.monotonic()
        os.kill(role.pid, signal.SIGTERM)
        ends = await asyncio.gather(*streams)
        await asyncio.to_thread(eventually, role.has_ended, within_s=60)
        stopped.took_s.append(time.monotonic() - told)
        stopped.ends.update(ends)
        if silent := ends.count("cut in silence"):
            stopped.violations.append(f"{silent} streams were cut in silence")
        if stopped.took_s[-1] > ENDS_WITHIN_S:
            stopped.violations.append(f"the role took {stopped.took_s[-1]:.1f} s")


async def _stream(session: aiohttp.ClientSession, url: str, began: asyncio.Event, events: int) -> str:
    """How it ended."""
    message = {"role": "user", "content": "Go on."}
    body = {"model": MODEL, "messages": [message], "stream": True, "seed": EVENT_MS, "max_tokens": events}
    text = b""
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
            async for piece in reply.content.iter_any():
                began.set()
                text += piece
    except aiohttp.ClientError:
        return "broken off"
    finally:
        began.set()
    if b"data: [DONE]" in text:
        return "whole"
    return "told by an event" if b'"error"' in text else "cut in silence"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stopped = stop_often(Path(folder), times=asked.times)
    for each in stopped.violations:
        print(each)
    stopped.row().show()
    return int(bool(stopped.violations))


if __name__ == "__main__":
    sys.exit(main())
