"""Real parts for the serving tests: the demo models where they are, and a models server on a free port."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from serving.client import ModelsClient

REPOSITORY = Path(__file__).parents[2]
MINILM = REPOSITORY / "data" / "models" / "all-MiniLM-L6-v2"
SHARED = REPOSITORY.parent / "shared"
RERANKER = SHARED / "models" / "reranker"
SCIFACT = SHARED / "data" / "scifact" / "beir" / "corpus.jsonl"

NO_MINILM = f"{MINILM.name} is not in data/models: run `python -m serving.demo_models`"
NO_RERANKER = "no reranking model in shared/models/reranker beside the repository"


def loopback_socket() -> socket.socket:
    # Named as TCP: asyncio sets TCP_NODELAY only then, and each reply would take 40 ms more without it.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.bind(("127.0.0.1", 0))
    return bound


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """The app's URL, served by uvicorn in this event loop."""
    bound = loopback_socket()
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    # Signals belong to pytest, so not `serve`, which takes them.
    serving = asyncio.create_task(server._serve([bound]))
    while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


async def until_ready(client: ModelsClient) -> None:
    async with asyncio.timeout(60):
        while any(model["state"] == "loading" for model in (await client.readiness()).values()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
