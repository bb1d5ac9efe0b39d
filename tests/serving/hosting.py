"""Real parts for the serving tests: demo models where they are, a models server on a free port, small quick models."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.types import ASGIApp

from serving.batching.batcher import Rows, Tokens
from serving.client import ModelsClient
from serving.hosting import MIB, Card, DeclaredModel, LoadedModel
from serving.protocols import EmbeddingModel, RerankingModel
from serving.readiness import Kind, State
from tests.fakes import word_counting_tokenizer_json

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
async def served(
    app: ASGIApp, *, is_started: bool = False, bound: socket.socket | None = None
) -> AsyncIterator[str]:
    """The app's URL, served by uvicorn in this event loop, which also starts the app unless that was done."""
    bound = bound or loopback_socket()
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off" if is_started else "on"))
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
    """Until no model is being loaded: each is ready, idle or failed."""
    async with asyncio.timeout(60):
        while any(model.state is State.LOADING for model in (await client.readiness()).values()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def until(holds: Callable[[], bool]) -> None:
    """For what no event tells of."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


BAD = 1_000_000
"""The token of the word "bad"."""


@dataclass
class SmallModel:
    """One replica. A text's row begins with its first word, read as a number; "bad" texts fail, alone.

    Forward passes wait for `go`, and note in `begun` that they do.
    """

    width: int = 2
    max_tokens: int = 100
    go: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    deaths: int = 0
    """So many forward passes end their thread."""
    encoded: int = 0
    computed: int = 0

    def __post_init__(self) -> None:
        self.go.set()

    def encode(self, inputs: Sequence[Any]) -> list[Tokens]:
        self.encoded += len(inputs)
        words = [(text if isinstance(text, str) else " ".join(text)).split() for text in inputs]
        return [_tokens(each, self.max_tokens) for each in words]

    def collate(self, batch: Sequence[Tokens]) -> list[int]:
        return [int(tokens.ids[0]) for tokens in batch]

    def forward(self, collated: list[int]) -> Rows:
        self.begun.set()
        if self.deaths:
            self.deaths -= 1
            raise SystemExit
        assert self.go.wait(10)
        if BAD in collated:
            raise ValueError("bad text")
        self.computed += len(collated)
        rows = np.zeros((len(collated), self.width), np.float32)
        rows[:, 0] = collated
        return rows


def _tokens(words: list[str], max_tokens: int) -> Tokens:
    numbers = [BAD if word == "bad" else int(word) if word.isdigit() else 1 for word in words or [""]]
    ids = np.array(numbers[:max_tokens], np.int64)
    return Tokens(ids=ids, type_ids=np.zeros(len(ids), np.int64), whole_length=max(len(words), 1))


@dataclass
class SmallLoaded:
    """What a loader gives for a small model."""

    replicas: tuple[SmallModel, ...]
    card: Card
    memory_bytes: int
    on_close: Callable[[], None]
    device: str = "cpu"
    precision: str = "float32"
    backend: str = "small"
    threads: int = 1
    limits_hint: int | None = None
    express: None = None

    def close(self) -> None:
        self.on_close()


@dataclass
class SmallSource:
    """A model that can be loaded, at once or when `go` is set. The counts tell what became of it."""

    alias: str = "small"
    kind: Kind = Kind.EMBEDDING
    fingerprint: str = "first"
    memory_bytes: int = 100 * MIB
    failure: Exception | None = None
    """Raised instead of loading while it is set."""
    model: SmallModel = field(default_factory=SmallModel)
    go: threading.Event = field(default_factory=threading.Event)
    loads: int = 0
    closed: int = 0

    def __post_init__(self) -> None:
        self.go.set()
        if self.kind is Kind.RERANKING:
            self.model.width = 1

    def load(self) -> LoadedModel:
        self.loads += 1
        assert self.go.wait(10)
        if self.failure is not None:
            raise self.failure
        words = word_counting_tokenizer_json()
        card: Card = (
            EmbeddingModel(self.alias, self.fingerprint, self.model.width, self.model.max_tokens, words)
            if self.kind is Kind.EMBEDDING
            else RerankingModel(self.alias, self.fingerprint, self.model.max_tokens, words)
        )
        return SmallLoaded((self.model,), card, self.memory_bytes, self._count_close)

    def _count_close(self) -> None:
        self.closed += 1

    def declared(self, *, is_default: bool = True, expected_bytes: int = 0) -> DeclaredModel:
        return DeclaredModel(
            alias=self.alias,
            kind=self.kind,
            load=self.load,
            is_default=is_default,
            expected_bytes=expected_bytes,
        )
