"""Hybrid search of 100,000 and 1,000,000 chunks, over HTTP; and the vector index alone beside others' at equal recall.

`python -m tests.bench --only index_scale [--quick]` runs it alone. What is in the collections: `scale_material.py`.
It is put straight into SQL; from there on all is as in production: the api role builds its indexes, and each search
comes over HTTP, embeds its query, searches both indexes, fuses and joins to SQL. No reranker, and no cache of queries.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import psutil
from numpy.typing import NDArray
from rich.progress import Progress

from app.settings import Settings
from retrieval.snapshots import KEYWORDS, Snapshot
from tests.bench import scale_material as material
from tests.bench.figures import Bound, Figure, MeasureFailed, Samples, skipped
from tests.bench.ingestion_stack import IngestionStack
from tests.bench.peers import load
from tests.bench.peers.install import PeerAbsent, program
from tests.bench.peers.load import LoadProcess
from tests.bench.run import QUICK_REASON
from tests.stack import ROOT, eventually

SAYS = "hybrid search of 100,000 and 1,000,000 chunks over HTTP; vector indexes side by side"
MODEL = Settings().models.default_embedding
CLIENTS = 8
WARM_UP = 20
BUILD_S = 3_600.0
"""The longest that a first search may take, which builds the indexes from SQL."""
SNAPSHOT_S = 1_800.0
FILTER = {"type": "eq", "key": "shelf", "value": 7}
HALF = {"type": "lt", "key": "shelf", "value": 50}
PEERS = ("chroma", "lancedb")
NEAREST = Path(__file__).parent / "peers" / "nearest.py"


@dataclass(frozen=True)
class Sizes:
    chunks: int
    large: int
    real: int
    """Vectors that are a model's own."""
    searches: int
    busy_s: float


FULL = Sizes(chunks=100_000, large=1_000_000, real=10_000, searches=300, busy_s=15.0)
QUICK = Sizes(chunks=2_500, large=21_000, real=256, searches=20, busy_s=1.0)


@dataclass
class Searched:
    """One collection that was searched. Times in seconds."""

    chunks: int
    build_s: float = 0.0
    start_s: float = 0.0
    """Of the first search after a start from the snapshot."""
    lone: dict[str, list[float]] = field(default_factory=dict)
    """One at a time: `hybrid`, and those with a filter."""
    requests_a_second: float = 0.0
    facts: dict[str, float | str] = field(default_factory=dict)


def compare(is_quick: bool, progress: Progress) -> list[Figure]:
    sizes = QUICK if is_quick else FULL
    with tempfile.TemporaryDirectory(prefix="bench-index-") as folder, LoadProcess() as process:
        figures = _Comparison(Path(folder), process, sizes, progress).run()
    return [replace(each, is_judged=False, reason=QUICK_REASON) for each in figures] if is_quick else figures


class _Comparison:
    """The steps, one after the other."""

    def __init__(self, folder: Path, process: LoadProcess, sizes: Sizes, progress: Progress) -> None:
        self._folder = folder
        self._process = process
        self._sizes = sizes
        self._progress = progress
        self._questions = material.questions(sizes.searches + WARM_UP)
        self._words = material.words()

    def run(self) -> list[Figure]:
        # The smaller collection lies beside the larger one, in a stack of its own, so that each has the memory.
        small = self._search(self._sizes.chunks)
        alone = [_Alone.measured(self._folder, self._vectors, self._asked)]
        peers = self._peers(self._folder)
        large = self._search(self._sizes.large)
        alone.append(_Alone.measured(self._folder, self._vectors, self._asked))
        return [*_search_figures(small), *_large_figures(large), *_alone_figures(alone), *peers]

    def _search(self, chunks: int) -> Searched:
        task = self._progress.add_task(f"index scale: {chunks:,} chunks", total=None)
        searched = Searched(chunks)
        folder = self._folder / f"{chunks}"
        folder.mkdir()
        with IngestionStack.running(folder) as ours:
            self._store_id = self._filled(ours, chunks)
            before = _memory_bytes(ours)
            searched.build_s = self._first_search_s(ours)
            eventually(
                lambda: _gauge(ours, 'strongroom_vector_indexes{kind="exact"}') == 0 or chunks < 20_000,
                within_s=600,
            )
            searched.facts["memory of the api role for this collection, MiB"] = (
                _memory_bytes(ours) - before
            ) >> 20
            self._measure(ours, searched)
            eventually(lambda: bool(_snapshots(ours)), within_s=SNAPSHOT_S, every_s=1.0)
            (snapshot,) = _snapshots(ours)
            text_index = sum(path.stat().st_size for path in (snapshot / KEYWORDS).rglob("*"))
            searched.facts["text index on disk, MiB"] = text_index >> 20
            if recall := _gauge(ours, 'strongroom_vector_recall_at_10{of="lowest"}'):
                searched.facts["recall@10 that /metrics tells"] = round(recall, 4)
        with IngestionStack.running(folder) as ours:
            searched.start_s = self._first_search_s(ours)
        self._progress.remove_task(task)
        return searched

    def _filled(self, ours: IngestionStack, chunks: int) -> str:
        store_id = ours.api.create_store("bench: index scale")
        ours.add(store_id, {"first.txt": b"The first text tells which model embeds this collection."})
        ours.wait_until_quiet()
        real_texts = list(material.texts(self._words, min(chunks, self._sizes.real)))
        with ours.stack.http() as client:
            real = material.embedded(client, real_texts, model=MODEL)
            self._asked = material.embedded(client, self._questions, model=MODEL)
        self._vectors = material.mixtures(real, chunks)
        with ours.stack.database() as database:
            material.fill(database, store_id, material.texts(self._words, chunks), self._vectors)
        return store_id

    def _first_search_s(self, ours: IngestionStack) -> float:
        body = {"query": self._questions[0]}
        headers = {"Authorization": f"Bearer {ours.stack.key}"}
        url = f"{ours.stack.url}/v1/vector_stores/{self._store_id}/search"
        started = time.monotonic()
        found = httpx.post(url, json=body, headers=headers, timeout=BUILD_S).raise_for_status().json()["data"]
        if len(found) != 10:
            raise MeasureFailed(f"The first search found {len(found)} chunks.")
        return time.monotonic() - started

    def _measure(self, ours: IngestionStack, searched: Searched) -> None:
        filters = {"hybrid": None, "1 % admitted": FILTER, "half admitted": HALF}
        for name, wanted in filters.items():
            answers = self._process.run(load.one_by_one, ours.stack.url, self._requests(ours, wanted))
            searched.lone[name] = [each.seconds for each in load.checked(answers)[WARM_UP:]]
        answers = self._process.run(
            load.closed_loop,
            ours.stack.url,
            self._requests(ours, None),
            at_once=CLIENTS,
            seconds=self._sizes.busy_s,
        )
        searched.requests_a_second = len(load.checked(answers)) / load.span_s(answers)

    def _requests(self, ours: IngestionStack, wanted: Mapping[str, Any] | None) -> list[bytes]:
        path = f"/v1/vector_stores/{self._store_id}/search"
        return [
            load.post(
                ours.stack.url,
                path,
                {"query": question, **({"filters": wanted} if wanted else {})},
                token=ours.stack.key,
            )
            for question in self._questions
        ]

    def _peers(self, folder: Path) -> list[Figure]:
        """On the vectors and queries that `_Alone` has written."""
        figures = []
        for peer in self._progress.track(PEERS, description="index scale: peers"):
            says = f"vector search of {self._sizes.chunks:,}: {peer}, tuned until its recall is .99 if it can, p50"
            try:
                told = _run_peer(peer, folder)
            except (PeerAbsent, MeasureFailed) as error:
                figures.append(skipped(f"nearest_{peer}", says, str(error)))
                continue
            samples = Samples.milliseconds(told["seconds"])
            figures.append(
                Figure(
                    f"nearest_{peer}",
                    says,
                    unit="ms",
                    measured=round(samples.percentile(50), 3),
                    samples={"search": samples},
                    facts={
                        "recall@10": round(told["recall"], 4),
                        "with": told["knob"],
                        "seconds to build": round(told["build_s"], 1),
                    },
                )
            )
        return figures


@dataclass(frozen=True)
class _Alone:
    """The vector index in a process of its own. Times in seconds, memory in bytes."""

    rows: int
    seconds: list[float]
    filtered_s: list[float]
    flat_s: list[float]
    """Of FAISS's flat index of float32, which OGX holds."""
    recall: float
    filtered_recall: float
    memory: float
    build_s: float
    add_s: float
    """Of 1,000 rows."""
    remove_s: float
    raw: float
    """Bytes of the rows as float16."""

    @classmethod
    def measured(cls, folder: Path, rows: NDArray[np.float16], queries: NDArray[np.float32]) -> "_Alone":
        """Raises MeasureFailed."""
        np.save(folder / "rows16.npy", rows)
        np.save(folder / "rows.npy", rows.astype(np.float32))
        np.save(folder / "queries.npy", queries)
        command = [sys.executable, "-m", "tests.bench.index_alone", str(folder)]
        done = subprocess.run(command, capture_output=True, cwd=ROOT, check=False)
        if done.returncode != 0:
            raise MeasureFailed(f"The index alone failed: {done.stderr.decode()[-1000:]}")
        return cls(**orjson.loads(done.stdout))


def _run_peer(peer: str, folder: Path) -> dict[str, Any]:
    command = [program(peer, "python"), str(NEAREST), peer, str(folder)]
    done = subprocess.run(command, capture_output=True, cwd=folder, check=False)
    if done.returncode != 0:
        raise MeasureFailed(f"{peer} failed: {done.stderr.decode()[-500:]}")
    told: dict[str, Any] = orjson.loads(done.stdout.splitlines()[-1])
    return told


def _search_figures(searched: Searched) -> list[Figure]:
    says = f"hybrid search of {searched.chunks:,} chunks over HTTP"
    samples = {name: Samples.milliseconds(seconds) for name, seconds in searched.lone.items()}
    hybrid = samples["hybrid"]
    slower = samples["1 % admitted"].percentile(50) / hybrid.percentile(50)
    facts = {
        **searched.facts,
        "seconds of the first search, which builds the indexes from SQL": round(searched.build_s, 2),
    }
    return [
        Figure(
            "index_scale_p50",
            f"{says}, one client, p50",
            unit="ms",
            measured=round(hybrid.percentile(50), 2),
            bound=Bound(20.0, is_upper=True),
            samples=samples,
            facts=facts,
        ),
        Figure(
            "index_scale_p95",
            f"{says}, one client, p95",
            unit="ms",
            measured=round(hybrid.percentile(95), 2),
            bound=Bound(45.0, is_upper=True),
        ),
        Figure(
            "index_scale_busy",
            f"{says}, {CLIENTS} clients",
            unit="requests/s",
            measured=round(searched.requests_a_second, 1),
            bound=Bound(60.0, is_upper=False),
        ),
        Figure(
            "index_scale_filtered",
            f"{says}: p50 with 1 % of them admitted, times that without a filter",
            unit="x",
            measured=round(slower, 2),
            bound=Bound(1.5, is_upper=True),
        ),
        Figure(
            "index_scale_start",
            f"{says}: the first one after a start, from a snapshot",
            unit="s",
            measured=round(searched.start_s, 2),
            bound=Bound(3.0, is_upper=True),
        ),
    ]


def _large_figures(searched: Searched) -> list[Figure]:
    samples = {name: Samples.milliseconds(seconds) for name, seconds in searched.lone.items()}
    return [
        Figure(
            "index_scale_large",
            f"hybrid search of {searched.chunks:,} chunks over HTTP, one client, p95",
            unit="ms",
            measured=round(samples["hybrid"].percentile(95), 2),
            bound=Bound(120.0, is_upper=True),
            samples=samples,
            facts={
                **searched.facts,
                f"requests/s with {CLIENTS} clients": round(searched.requests_a_second, 1),
                "seconds of the first search, which builds the indexes from SQL": round(searched.build_s, 1),
                "seconds of the first search after a start from a snapshot": round(searched.start_s, 2),
            },
        )
    ]


def _alone_figures(measured: Sequence[_Alone]) -> list[Figure]:
    figures = []
    for name, alone in zip(("", "_large"), measured, strict=True):
        says = f"vector search of {alone.rows:,}"
        samples = {
            "search": Samples.milliseconds(alone.seconds),
            "1 % admitted": Samples.milliseconds(alone.filtered_s),
            "flat FAISS, float32, as in OGX": Samples.milliseconds(alone.flat_s),
        }
        figures += [
            Figure(
                f"nearest{name}_recall",
                f"{says}: recall@10 against exact search",
                measured=round(alone.recall, 4),
                bound=Bound(0.99, is_upper=False),
                facts={"recall@10 with 1 % admitted": round(alone.filtered_recall, 4)},
            ),
            Figure(
                f"nearest{name}_memory",
                f"{says}: memory, times the vectors as float16",
                unit="x",
                measured=round(alone.memory / alone.raw, 2),
                bound=Bound(2.2, is_upper=True),
            ),
            Figure(
                f"nearest{name}",
                f"{says}: best 10, p50",
                unit="ms",
                measured=round(samples["search"].percentile(50), 3),
                samples=samples,
                facts={
                    "seconds to build": round(alone.build_s, 1),
                    "ms to add 1,000": round(1000 * alone.add_s, 1),
                    "ms to remove 1,000": round(1000 * alone.remove_s, 1),
                },
            ),
        ]
    return figures


def _memory_bytes(ours: IngestionStack) -> int:
    return int(psutil.Process(ours.stack.pid("api")).memory_info().rss)


def _snapshots(ours: IngestionStack) -> list[Path]:
    folder = ours.stack.folder / "snapshots"
    return [path for path in folder.iterdir() if Snapshot.named(path.name)]


def _gauge(ours: IngestionStack, series: str) -> float | None:
    with ours.stack.http() as client:
        told = re.search(rf"^{re.escape(series)} (.+)$", client.get("/metrics").text, re.MULTILINE)
    return float(told[1]) if told else None
