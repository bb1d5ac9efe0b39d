"""How long one search of 10,000 chunks takes, end to end over HTTP."""

import time

import orjson
from sqlalchemy import func, select

from app.settings import Settings
from retrieval.tables import Chunk
from tests.bench.clients import Wire, wait_ingested
from tests.bench.corpora import SHARED, paragraphs, prose, read_beir
from tests.bench.figures import Bound, Figure, MeasureFailed, Samples
from tests.bench.run import QUICK_REASON, Run
from tests.stack import Stack

SAYS = "search of 10,000 chunks over HTTP, no reranker, p95"
MUST_REACH = Bound(40.0, is_upper=True)
SQUAD = SHARED / "squad" / "beir-v1.1"
MODEL = Settings().models.embedding
ROUTE = "/v1/vector_stores/{store_id}/search"
STATIC = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}
PARAGRAPH_WORDS = 50
"""Some 65 tokens: one fits a chunk of 100, two do not, so that paragraphs become chunks one to one."""
PARAGRAPHS_A_FILE = 1_000
WARM_UP = 10
INGEST_S = 900.0


def measure(run: Run) -> list[Figure]:
    """Distinct queries, one at a time, over one kept connection to an idle stack."""
    words, queries = _material(run.sizes.searches + WARM_UP)
    store_id = run.api.create_store("bench: search latency")
    ingest_s = _ingest(run, store_id, paragraphs(words, count=run.sizes.chunks, length=PARAGRAPH_WORDS))
    chunks = _chunk_count(run.stack, store_id)
    if chunks < run.sizes.chunks:
        raise MeasureFailed(f"Only {chunks} chunks were made of {run.sizes.chunks} paragraphs.")
    with Wire(run.stack.url, run.stack.key) as wire:
        search = f"/v1/vector_stores/{store_id}/search"
        first_s, *_ = [_timed(wire, search, {"query": query}) for query in queries[:WARM_UP]]
        before_s, before = run.api.route_seconds(ROUTE)
        timed = queries[WARM_UP:]
        hybrid_s = [
            _timed(wire, search, {"query": query})
            for query in run.progress.track(timed, description="search latency")
        ]
        after_s, after = run.api.route_seconds(ROUTE)
        embed_s = [_timed(wire, "/v1/embeddings", {"model": MODEL, "input": query}) for query in timed]
        keyword_s = [_timed(wire, search, {"query": query, "search_mode": "keyword"}) for query in timed]
    samples = {
        "search": Samples.milliseconds(hybrid_s),
        "part: embedding of the query, over HTTP": Samples.milliseconds(embed_s),
        "part: keyword search alone": Samples.milliseconds(keyword_s),
    }
    return [
        Figure(
            "search_latency",
            SAYS,
            unit="ms",
            measured=round(samples["search"].percentile(95), 2),
            bound=MUST_REACH,
            is_judged=not run.sizes.is_quick,
            reason=QUICK_REASON if run.sizes.is_quick else "",
            samples=samples,
            facts={
                "chunks, counted in SQL": chunks,
                "text": "SQuAD" if SQUAD.is_dir() else "generated prose",
                "chunks ingested a second": round(chunks / ingest_s, 1),
                "first search, which builds the indexes, ms": round(1000 * first_s, 1),
                "mean to the first byte inside the api role, ms": round(
                    1000 * (after_s - before_s) / max(1, after - before), 2
                ),
            },
        )
    ]


def _material(queries: int) -> tuple[list[str], list[str]]:
    """Words to make paragraphs of, and distinct queries."""
    if not SQUAD.is_dir():
        return prose(words=260_000), [" ".join(prose(words=9, seed=seed)) for seed in range(queries)]
    squad = read_beir(SQUAD)
    words = [word for text in squad.texts.values() for word in text.split()]
    distinct = list(dict.fromkeys(squad.queries.values()))
    return words, distinct[:: len(distinct) // queries][:queries]


def _ingest(run: Run, store_id: str, texts: list[str]) -> float:
    """Seconds until the last of a few large files is completed."""
    started = time.perf_counter()
    task = run.progress.add_task("search latency: ingestion", total=None)
    for start in range(0, len(texts), PARAGRAPHS_A_FILE):
        content = "\n\n".join(texts[start : start + PARAGRAPHS_A_FILE]).encode()
        run.api.attach(store_id, run.api.upload(f"paragraphs-{start}.txt", content), STATIC)
    counts = wait_ingested(
        run.api,
        store_id,
        within_s=INGEST_S,
        on_progress=lambda done, total: run.progress.update(task, completed=done, total=total),
    )
    if counts["failed"]:
        raise MeasureFailed(f"Documents failed: {dict(run.api.failures(store_id))}")
    return time.perf_counter() - started


def _chunk_count(stack: Stack, store_id: str) -> int:
    with stack.database() as database, database.read() as session:
        count = select(func.count()).select_from(Chunk).where(Chunk.collection_id == store_id)
        return session.scalar(count) or 0


def _timed(wire: Wire, path: str, body: dict[str, str]) -> float:
    encoded = orjson.dumps(body)
    started = time.perf_counter()
    wire.post(path, encoded)
    return time.perf_counter() - started
