"""Kills the api role that holds a large collection: `python -m tests.faults.recovery --chunks 100000 --times 20`.

From the start of the role's next process until a search is right: what was added just before the kill is found, what
was deleted is not. The role loads the snapshot of the indexes and follows the log from there; at the end once without
a snapshot, from SQL alone. That the supervisor waits before a role that keeps dying is not counted. F1, F6.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil

from tests.bench import scale_material as material
from tests.bench.corpora import prose
from tests.faults.ingesting import NOWHERE, quick_models
from tests.faults.quick_models import ALIAS
from tests.faults.report import Row
from tests.stack import Stack, eventually

DIMENSIONS = 384
REAL = 2_000
WORDS = 300_000
RECOVERS_WITHIN_S = 5.0
SNAPSHOT_WITHIN_S = 300.0
ROLES = ("database", "models", "worker")


@dataclass
class Recovered:
    """How long it took, in seconds."""

    chunks: int
    after_kill_s: list[float] = field(default_factory=list)
    without_snapshot_s: float = 0.0
    violations: list[str] = field(default_factory=list)

    def row(self) -> Row:
        figures = f"{self.chunks:,} chunks of {DIMENSIONS} dimensions ({RECOVERS_WITHIN_S:.0f} s from the snapshot); "
        figures += f"from SQL alone {self.without_snapshot_s:.1f} s"
        what = "F1, F6 kill -9 of the api role with a large collection, until a search is right"
        return Row(what, len(self.after_kill_s) + 1, len(self.violations), max(self.after_kill_s), figures)


class Shelf:
    """A stack with a collection of so many chunks, and a client of it."""

    def __init__(self, stack: Stack, http: httpx.Client, *, chunks: int) -> None:
        self.stack = stack
        self._http = http
        self._store = http.post("/v1/vector_stores", json={"name": "shelf"}).json()["id"]
        self.add("The first text tells which model embeds this collection.")
        chance = np.random.default_rng(1)
        real = chance.normal(size=(REAL, DIMENSIONS)).astype(np.float32)
        real /= np.linalg.norm(real, axis=1, keepdims=True)
        texts = material.texts(prose(words=WORDS), chunks)
        with stack.database() as database:
            material.fill(database, self._store, texts, material.mixtures(real, chunks))

    def add(self, text: str) -> str:
        """Returns once it can be searched."""
        file_id = str(self._http.post("/v1/files", files={"file": ("a.txt", text.encode())}).json()["id"])
        path = f"/v1/vector_stores/{self._store}/files"
        self._http.post(path, json={"file_id": file_id})
        eventually(
            lambda: self._http.get(f"{path}/{file_id}").json()["status"] == "completed",
            within_s=60,
            every_s=0.05,
        )
        return file_id

    def delete(self, file_id: str) -> None:
        assert self._http.delete(f"/v1/files/{file_id}").status_code == 200

    def found(self, query: str, mode: str = "keyword") -> set[str]:
        """Raises httpx.HTTPError."""
        body = {"query": query, "search_mode": mode, "max_num_results": 10}
        reply = self._http.post(f"/v1/vector_stores/{self._store}/search", json=body).raise_for_status()
        return {each["file_id"] for each in reply.json()["data"]}

    def recover(self, is_right: str, is_gone: str) -> tuple[float, list[str]]:
        """From the start after a kill until there is an answer, and what is wrong with it."""
        self.stack.kill("api")
        eventually(lambda: self._answers(is_right), within_s=SNAPSHOT_WITHIN_S, every_s=0.02)
        took_s = time.time() - psutil.Process(self.stack.pid("api")).create_time()
        wrong = []
        if len(self.found(is_right)) != 1:
            wrong.append(f"{is_right} is not found")
        if self.found(is_gone):
            wrong.append(f"{is_gone} was deleted, and is found")
        if len(self.found(is_right, "vector")) < 2:
            wrong.append("a search by meaning finds too little")
        return took_s, wrong

    def _answers(self, query: str) -> bool:
        try:
            return isinstance(self.found(query), set)
        except httpx.HTTPError:
            return False


def recover_often(folder: Path, *, chunks: int, times: int) -> Recovered:
    recovered = Recovered(chunks)
    with (
        quick_models(folder / "models.log", dimensions=DIMENSIONS) as models_url,
        _running(folder, models_url) as stack,
        stack.http() as http,
    ):
        http.timeout = SNAPSHOT_WITHIN_S
        shelf = Shelf(stack, http, chunks=chunks)
        shelf.found("first")
        snapshots = stack.folder / "snapshots"
        eventually(lambda: any(snapshots.rglob("manifest*")), within_s=SNAPSHOT_WITHIN_S)
        for number in range(times + 1):
            shelf.add(f"Ship zephyr{number}zz is moored.")
            shelf.delete(shelf.add(f"Ship boreas{number}zz is moored."))
            is_last = number == times
            if is_last:
                shutil.rmtree(snapshots)
            took_s, wrong = shelf.recover(f"zephyr{number}zz", f"boreas{number}zz")
            if is_last:
                recovered.without_snapshot_s = took_s
            else:
                recovered.after_kill_s.append(took_s)
                if took_s > RECOVERS_WITHIN_S:
                    wrong.append(f"took {took_s:.1f} s")
            recovered.violations += wrong
            print(f"{number + 1}/{times + 1}: right after {took_s:.1f} s", *wrong, flush=True)
        recovered.violations += http.get("/v1/verify").json()["differences"]
    return recovered


@contextmanager
def _running(folder: Path, models_url: str) -> Iterator[Stack]:
    settings = {
        "STRONGROOM_MODELS__URL": models_url,
        "STRONGROOM_MODELS__EMBEDDING": ALIAS,
        "STRONGROOM_ENGINE__URL": NOWHERE,
    }
    stack = Stack(folder / "data", settings)
    try:
        stack.start(roles=ROLES)
        yield stack
    finally:
        stack.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=20)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recovered = recover_often(Path(folder), chunks=asked.chunks, times=asked.times)
    for each in recovered.violations:
        print(each)
    recovered.row().show()
    return int(bool(recovered.violations))


if __name__ == "__main__":
    sys.exit(main())
