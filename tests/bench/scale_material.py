"""What large collections are made of in benchmarks: real texts, real and mixed vectors, and the way into SQL.

Embedding a million texts on a CPU takes hours, so only the first few thousand vectors are a model's own. The others are
mixtures of two of those with some noise: they lie where texts lie, and are as hard to tell apart.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence

import httpx
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from retrieval.database import Database
from retrieval.duplicates import similarity_hash
from retrieval.tables import Chunk, ChunkLog, Collection, Document, DocumentStatus, File, LogOp, new_id
from tests.bench.corpora import SEED, SHARED, prose, read_beir
from tests.bench.ingestion import MEDQUAD, read_medquad
from tests.stack import ROOT

KEPT = ROOT / ".bench" / "vectors"
"""Embedded once, by the texts' hash."""
BEIR = ("squad/beir-v1.1", "scifact/beir", "cranfield/beir", "clapnq_dev/beir")
MEDQUAD_TEXTS = 20_000
STRETCH_WORDS = 17
STRETCHES = 3
"""A text is so many stretches from anywhere: some 65 tokens, the frequencies of real words, and no two alike."""
CHUNKS_A_DOCUMENT = 10
SHELVES = 100
"""Each document has one, so that a filter on one admits 1 % of the chunks."""
WINDOW = 10_000
BATCH = 64


def words() -> list[str]:
    """Of all the texts that there are."""
    found = [
        word
        for name in BEIR
        if (SHARED / name).is_dir()
        for text in read_beir(SHARED / name).texts.values()
        for word in text.split()
    ]
    if MEDQUAD.exists():
        found += [word for text in read_medquad(MEDQUAD_TEXTS).values() for word in text.split()]
    return found or prose(words=300_000)


def questions(count: int) -> list[str]:
    """Distinct ones, real where SQuAD is there."""
    squad = SHARED / BEIR[0]
    if not squad.is_dir():
        return [" ".join(prose(words=9, seed=seed)) for seed in range(count)]
    distinct = list(dict.fromkeys(read_beir(squad).queries.values()))
    return distinct[:: max(1, len(distinct) // count)][:count]


def texts(source: Sequence[str], count: int) -> Iterator[str]:
    chance = random.Random(SEED)
    for _ in range(count):
        starts = [chance.randrange(len(source) - STRETCH_WORDS) for _ in range(STRETCHES)]
        yield " ".join(word for start in starts for word in source[start : start + STRETCH_WORDS])


def embedded(client: httpx.Client, wanted: Sequence[str], *, model: str) -> NDArray[np.float32]:
    """(n, dimensions), unit rows, by the API; kept on disk, since thousands take minutes."""
    digest = hashlib.sha256("\0".join([model, *wanted]).encode()).hexdigest()
    kept = KEPT / f"{digest[:32]}.npy"
    if kept.exists():
        return np.asarray(np.load(kept), np.float32)
    rows: list[list[float]] = []
    for start in range(0, len(wanted), BATCH):
        body = {"model": model, "input": wanted[start : start + BATCH]}
        reply = client.post("/v1/embeddings", json=body, timeout=600).raise_for_status()
        rows += [each["embedding"] for each in reply.json()["data"]]
    vectors = np.array(rows, np.float32)
    KEPT.mkdir(parents=True, exist_ok=True)
    np.save(kept, vectors)
    return vectors


def mixtures(real: NDArray[np.float32], count: int) -> NDArray[np.float16]:
    """(count, dimensions), unit rows: the real ones first."""
    chance = np.random.default_rng(SEED)
    mixed = np.empty((count, real.shape[1]), np.float16)
    mixed[: len(real)] = real[:count]
    for start in range(len(real), count, WINDOW):
        size = min(WINDOW, count - start)
        first, second = chance.integers(len(real), size=(2, size))
        share = chance.uniform(0.5, 0.95, (size, 1)).astype(np.float32)
        noise = chance.normal(0, 0.3 / np.sqrt(real.shape[1]), (size, real.shape[1])).astype(np.float32)
        rows = share * real[first] + (1 - share) * real[second] + noise
        mixed[start : start + size] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return mixed


def fill(
    database: Database, collection_id: str, chunk_texts: Iterator[str], vectors: NDArray[np.float16]
) -> None:
    """Into a collection that has a document already, whose file's bytes and whose model's fingerprint are theirs."""
    with database.read() as session:
        collection = session.get_one(Collection, collection_id)
        blob_id, tenant_id = session.scalars(select(File.blob_id).limit(1)).one(), collection.tenant_id
        next_chunk = (session.scalar(select(func.max(Chunk.id))) or 0) + 1
        next_document = (session.scalar(select(func.max(Document.id))) or 0) + 1
    for start in range(0, len(vectors), WINDOW):
        rows = vectors[start : start + WINDOW]
        with database.write() as session:
            documents = [next_document + n for n in range(-(-len(rows) // CHUNKS_A_DOCUMENT))]
            _add_documents(session, collection, documents, blob_id)
            chunk_ids = [next_chunk + n for n in range(len(rows))]
            session.execute(
                insert(Chunk),
                [
                    {
                        "id": chunk_id,
                        "tenant_id": tenant_id,
                        "collection_id": collection_id,
                        "document_id": documents[n // CHUNKS_A_DOCUMENT],
                        "generation": 0,
                        "position": n % CHUNKS_A_DOCUMENT,
                        "text": text,
                        "start_char": 0,
                        "end_char": len(text),
                        "headings": [],
                        "token_count": 65,
                        "is_table": False,
                        "similarity_hash": similarity_hash(text),
                        "places": [[0, len(text), 1, None]],
                        "embedding": row.tobytes(),
                    }
                    for n, (chunk_id, row, text) in enumerate(zip(chunk_ids, rows, chunk_texts, strict=False))
                ],
            )
            _log(session, collection_id, chunk_ids)
        next_chunk, next_document = next_chunk + len(rows), next_document + len(documents)


def _add_documents(
    session: Session, collection: Collection, document_ids: Sequence[int], blob_id: str
) -> None:
    files = {document_id: new_id("file-") for document_id in document_ids}
    session.execute(
        insert(File),
        [
            {
                "id": file_id,
                "tenant_id": collection.tenant_id,
                "blob_id": blob_id,
                "filename": f"{document_id}.txt",
                "purpose": "assistants",
                "media_type": "text/plain",
                "size_bytes": 1,
                "created_at": 1.0,
            }
            for document_id, file_id in files.items()
        ],
    )
    session.execute(
        insert(Document),
        [
            {
                "id": document_id,
                "tenant_id": collection.tenant_id,
                "collection_id": collection.id,
                "file_id": file_id,
                "status": DocumentStatus.COMPLETED,
                "attributes": {"shelf": document_id % SHELVES},
                "chunking": {"type": "auto"},
                "usage_bytes": 0,
                "created_at": 1.0,
            }
            for document_id, file_id in files.items()
        ],
    )


def _log(session: Session, collection_id: str, chunk_ids: Sequence[int]) -> None:
    head = session.scalars(
        update(Collection)
        .where(Collection.id == collection_id)
        .values(head=Collection.head + len(chunk_ids))
        .returning(Collection.head)
    ).one()
    first = head - len(chunk_ids) + 1
    session.execute(
        insert(ChunkLog),
        [
            {
                "collection_id": collection_id,
                "generation": 0,
                "seq": first + n,
                "op": LogOp.ADD,
                "chunk_id": chunk_id,
            }
            for n, chunk_id in enumerate(chunk_ids)
        ],
    )
