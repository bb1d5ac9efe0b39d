"""LangChain, LlamaIndex, OpenAI's client for node and the Vercel AI SDK, in what their users do most."""

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.clients.conftest import ANSWER, CITED, Served

SCRIPTS = Path(__file__).parent / "scripts"
RUNG = [["ring", {"who": "Ondine"}]]


async def told_by(strongroom: Served, program: str | Path, name: str) -> dict[str, Any]:
    # From `home`, as node looks for modules beside the script.
    script = strongroom.home / name
    script.write_text((SCRIPTS / name).read_text())
    told: dict[str, Any] = json.loads((await strongroom.run(program, script)).splitlines()[-1])
    return told


async def test_langchain(strongroom: Served, python_clients: Path) -> None:
    told = await told_by(strongroom, python_clients, "langchain_client.py")
    assert told["tokens"] == told["streamed_tokens"] > 0
    assert told == {
        "whole": CITED,
        "tokens": told["tokens"],
        "streamed": CITED,
        "streamed_tokens": told["tokens"],
        "called": RUNG,
        "person": ANSWER,
        "dimensions": [384, 384],
    }


async def test_llama_index(strongroom: Served, python_clients: Path) -> None:
    told = await told_by(strongroom, python_clients, "llama_index_client.py")
    assert told == {
        "whole": CITED,
        "streamed": CITED,
        "called": RUNG,
        "completed": ANSWER,
        "dimensions": [384, 384],
    }


async def test_openai_for_node(strongroom: Served, node_clients: str) -> None:
    working = asyncio.create_task(drain_for_ever(strongroom))
    told = await told_by(strongroom, node_clients, "openai_client.mjs")
    working.cancel()
    assert told == {
        "attached": "completed",
        "found": "The lamp of the pier is green.",
        "whole": CITED,
        "annotations": 1,
        "streamed": CITED,
        "final": CITED,
        "called": RUNG,
        "dimensions": [384, 384],
        "models": True,
        "stored": True,
        "refused": [400, "n"],
    }


async def test_vercel_ai_sdk(strongroom: Served, node_clients: str) -> None:
    told = await told_by(strongroom, node_clients, "vercel_client.mjs")
    assert told["streamed_tokens"] > 0
    assert told == {
        "whole": CITED,
        "streamed": CITED,
        "streamed_tokens": told["streamed_tokens"],
        "called": RUNG,
        "person": ANSWER,
        "dimensions": [384, 384],
    }


async def drain_for_ever(strongroom: Served) -> None:
    while True:
        await strongroom.api.worker.drain()
        await asyncio.sleep(0.05)
