"""The stack that measures of ingestion start: without an engine, and with a look at what its API does not tell."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from retrieval.places import under_headings
from retrieval.tables import Chunk, Job, ParsedPart
from tests.bench.clients import Api
from tests.bench.figures import Bound, Figure, MeasureFailed
from tests.bench.raw_rate import raw_texts_a_second
from tests.stack import Stack, eventually

ROLES = ("database", "models", "worker")
SETTINGS = {
    "STRONGROOM_ENGINE__URL": "http://127.0.0.1:9",
    "STRONGROOM_MODELS__RERANKER": "",
    "STRONGROOM_MODELS__CACHE_MIB": "0",
}
CLIENTS = 16
"""Uploads at once."""
LONGEST_S = 3_600.0


@dataclass
class Ingested:
    """Files that went in, in rounds, with the bare loop on the first round's chunks after it."""

    store_id: str
    documents: int = 0
    chunks: int = 0
    rounds_s: list[float] = field(default_factory=list)
    raw_texts_a_second: float = math.nan

    @property
    def seconds(self) -> float:
        return sum(self.rounds_s)

    def share_of_raw(self, name: str, of: str) -> Figure:
        chunks_a_second = self.chunks / self.seconds
        return Figure(
            name,
            f"{of} through the API: share of the bare, length-sorted loop",
            measured=round(chunks_a_second / self.raw_texts_a_second, 3),
            bound=Bound(0.85, is_upper=False),
            facts={
                "chunks": self.chunks,
                "chunks/s of the bare loop": round(self.raw_texts_a_second, 1),
                "chunks/s through the API": round(chunks_a_second, 1),
                "seconds of each round": ", ".join(f"{each:.1f}" for each in self.rounds_s),
            },
        )


@dataclass(frozen=True)
class IngestionStack:
    """One that runs, empty at first."""

    stack: Stack
    api: Api

    @classmethod
    @contextmanager
    def running(cls, folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[Self]:
        stack = Stack(folder / "data", {**SETTINGS, **(settings or {})})
        try:
            stack.start(roles=ROLES)
            with stack.http() as client:
                yield cls(stack, Api(client))
        finally:
            stack.stop()

    def ingest(self, name: str, rounds: Sequence[Mapping[str, bytes]], *, raw: int) -> Ingested:
        """Files by name, into a new collection; `raw` chunks at most for the bare loop.

        The loop runs after the first round and before the next, so that a drifting machine evens out.
        """
        ingested = Ingested(self.api.create_store(f"bench: {name}"))
        for files in rounds:
            started = time.monotonic()
            self.add(ingested.store_id, files)
            self.wait_until_quiet()
            ingested.rounds_s.append(time.monotonic() - started)
            ingested.documents += len(files)
            chunks = self.chunk_texts(ingested.store_id)
            ingested.chunks = len(chunks)
            if len(ingested.rounds_s) == 1:
                ingested.raw_texts_a_second = raw_texts_a_second(spread(chunks, raw))
        self.check_completed(ingested.store_id, ingested.documents)
        return ingested

    def add(self, store_id: str, files: Mapping[str, bytes]) -> None:
        """Uploads and attaches each."""
        self.api.add(store_id, files.items(), clients=CLIENTS)

    def wait_until_quiet(self) -> None:
        """Until no job is left. Looks into the database, since questions to the API would take its time."""
        eventually(lambda: self.jobs() == 0, within_s=LONGEST_S, every_s=0.05)

    def jobs(self) -> int:
        """Documents that are not done with."""
        with self._reading() as session:
            return session.scalar(select(func.count()).select_from(Job)) or 0

    def kept(self) -> tuple[int, ...]:
        """How many jobs, parsed parts and chunks there are, and were: the last ids where rows go again."""
        counted = (func.count(Job.id), func.count(ParsedPart.blob_id), func.max(Chunk.id))
        with self._reading() as session:
            return tuple(session.scalar(select(count)) or 0 for count in counted)

    def chunk_texts(self, store_id: str) -> list[str]:
        """As they were embedded."""
        chunks = select(Chunk.headings, Chunk.text).where(Chunk.collection_id == store_id).order_by(Chunk.id)
        with self._reading() as session:
            return [under_headings(tuple(headings), text) for headings, text in session.execute(chunks)]

    def check_completed(self, store_id: str, documents: int) -> None:
        """Raises MeasureFailed unless so many are completed."""
        counts = self.api.counts(store_id)
        if counts["completed"] != documents:
            raise MeasureFailed(f"Of {documents} documents: {counts}, {dict(self.api.failures(store_id))}")

    def cpu_s(self, role: str) -> float:
        """Seconds of CPU that a role and its children have used, those that have ended too."""
        root = psutil.Process(self.stack.pid(role))
        each = [process.cpu_times() for process in (root, *root.children(recursive=True))]
        return sum(times.user + times.system + times.children_user + times.children_system for times in each)

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with self.stack.database() as database, database.read() as session:
            yield session


def text_files(texts: Mapping[str, str]) -> dict[str, bytes]:
    return {f"{name}.txt": text.encode() for name, text in texts.items()}


def spread(texts: Sequence[str], most: int) -> list[str]:
    """At most so many, evenly spaced."""
    step = max(1.0, len(texts) / most)
    return [texts[int(number * step)] for number in range(min(len(texts), most))]
