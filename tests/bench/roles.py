"""Roles as processes of their own around models that cost nothing: what measures of the roles themselves start."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.api_role import ApiRole
from tests.bench.clients import Api
from tests.bench.corpora import prose
from tests.bench.figures import MeasureFailed
from tests.bench.ingestion_stack import CLIENTS, LONGEST_S, text_files
from tests.bench.peers import load
from tests.stack import ROOT, eventually

QUERIES, QUERY_WORDS = 400, 6


@contextmanager
def worker(folder: Path, settings: Mapping[str, str]) -> Iterator[None]:
    """On the data folder `folder`, as ApiRole is."""
    with folder.with_suffix(".worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "worker"],
            cwd=ROOT,
            env={**os.environ, "STRONGROOM_STORAGE__DATA_DIR": str(folder), **settings},  # noqa: TID251 - the child's
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def new_store(api: ApiRole) -> str:
    with _client(api) as client:
        return client.create_store("bench")


def ingest(api: ApiRole, store_id: str, numbers: range, *, words: int) -> None:
    """Texts that are told apart by their numbers, until all can be searched. Raises MeasureFailed."""
    files = text_files({str(each): " ".join(prose(words=words, seed=each)) for each in numbers})
    with _client(api) as client:
        client.add(store_id, files.items(), clients=CLIENTS)
        eventually(lambda: client.counts(store_id)["in_progress"] == 0, within_s=LONGEST_S, every_s=0.05)
        if client.counts(store_id)["failed"]:
            raise MeasureFailed(f"Documents failed: {dict(client.failures(store_id))}")


def searches(api: ApiRole, store_id: str) -> list[bytes]:
    """Requests, of queries that differ."""
    words = prose(words=QUERIES * QUERY_WORDS, seed=-1)
    queries = [" ".join(words[start : start + QUERY_WORDS]) for start in range(0, len(words), QUERY_WORDS)]
    path = f"/v1/vector_stores/{store_id}/search"
    return [load.post(api.url, path, {"query": each}, token=api.key) for each in queries]


@contextmanager
def _client(api: ApiRole) -> Iterator[Api]:
    with httpx.Client(base_url=api.url, headers=api.headers, timeout=60) as client:
        yield Api(client)
