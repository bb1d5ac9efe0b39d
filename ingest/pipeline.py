"""One document's way in: parse, chunk, embed, and replace its chunks in a single transaction."""

import asyncio
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ingest import jobs
from ingest.chunk import ChunkDraft, TokenCounter, split
from ingest.elements import ParsedDocument
from ingest.jobs import ClaimedJob, LeaseLost
from retrieval.blobs import BlobStore
from retrieval.catalog import append_log, remove_chunks
from retrieval.database import Database
from retrieval.places import places_to_rows, under_headings
from retrieval.tables import Chunk, Collection, Document, DocumentStatus, File, LogOp, ParsedFile
from retrieval.together import in_thread, together
from serving.protocols import Embedder, EmbeddingModel, Lane

EMBED_AT_ONCE = 64
"""Texts a request to the models role: a few of its batches, and so few that a letter does not wait for a book."""
SLICES_AT_ONCE = 2
"""Requests of one document: while one is computed the next is there already. Getting a reply and sending the
next request takes some milliseconds, as long as a GPU takes for half a slice.
"""
DEFAULT_STATIC_TOKENS = 800
DEFAULT_STATIC_OVERLAP = 400
"""OpenAI's defaults for the static strategy."""


class WrongModel(Exception):
    """The collection holds vectors of another model than the one that its alias names now."""

    def __init__(self, alias: str) -> None:
        super().__init__(
            f"The vector store was made with another embedding model than '{alias}' is now. "
            f"Let '{alias}' in models.embedding be that model again, or add the file to a new vector store."
        )


class Parser(Protocol):
    async def parse(self, path: Path, media_type: str) -> ParsedDocument:
        """Raises ParseFailed."""
        ...


@dataclass(frozen=True)
class _Work:
    """What the steps need to know of a document."""

    collection_id: str
    blob_id: str
    media_type: str
    chunking: dict[str, Any]
    embedding_model: str
    """Its alias."""
    fingerprint: str | None
    parsed: ParsedDocument | None


class Pipeline:
    """Runs claimed jobs. A step whose result is in SQL is not done again after a crash.

    `embedder_of` gives the embedding model of an alias; `default_embedding` is the alias of collections that
    name none.
    """

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        parser: Parser,
        embedder_of: Callable[[str], Embedder],
        *,
        default_embedding: str,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._parser = parser
        self._embedder_of = embedder_of
        self._default_embedding = default_embedding
        self._counters: dict[str, TokenCounter] = {}
        """By fingerprint: as few as the models."""

    async def run(self, job: ClaimedJob) -> None:
        """Raises ParseFailed, ServingError, WrongModel, LeaseLost; on any of them nothing became searchable."""
        work = await in_thread(self._load, job)
        embedder = self._embedder_of(work.embedding_model)
        model = await embedder.describe()
        if work.fingerprint not in (None, model.fingerprint):
            raise WrongModel(work.embedding_model)
        parsed = work.parsed or await self._parse(work)
        drafts = await in_thread(self._split, parsed, work.chunking, model)
        embeddings = await _embed(embedder, drafts, cache_salt=job.tenant_id)
        await in_thread(self._write, job, work, drafts, embeddings, model)

    def _load(self, job: ClaimedJob) -> _Work:
        with self._database.read() as session:
            row = session.execute(
                select(
                    Document.collection_id,
                    File.blob_id,
                    File.media_type,
                    Document.chunking,
                    Collection.embedding_model,
                    Collection.fingerprint,
                )
                .join(Document, Document.file_id == File.id)
                .join(Collection, Collection.id == Document.collection_id)
                .where(Document.id == job.document_id)
            ).one_or_none()
            if row is None:
                raise LeaseLost
            parsed = session.get(ParsedFile, (row.blob_id, row.media_type))
            return _Work(
                collection_id=row.collection_id,
                blob_id=row.blob_id,
                media_type=row.media_type,
                chunking=row.chunking,
                embedding_model=row.embedding_model or self._default_embedding,
                fingerprint=row.fingerprint,
                parsed=ParsedDocument.from_json(zlib.decompress(parsed.elements)) if parsed else None,
            )

    async def _parse(self, work: _Work) -> ParsedDocument:
        document = await self._parser.parse(self._blobs.path(work.blob_id), work.media_type)
        await in_thread(self._keep_parsed, work, document)
        return document

    def _keep_parsed(self, work: _Work, document: ParsedDocument) -> None:
        # Another worker kept the same first, or the file was deleted: then `_write` finds the lease lost.
        with suppress(IntegrityError), self._database.write() as session:
            session.merge(
                ParsedFile(
                    blob_id=work.blob_id,
                    media_type=work.media_type,
                    text=document.text,
                    elements=zlib.compress(document.to_json(), level=1),
                    page_count=document.page_count,
                )
            )

    def _split(
        self, document: ParsedDocument, chunking: dict[str, Any], model: EmbeddingModel
    ) -> list[ChunkDraft]:
        max_tokens, overlap_tokens = chunk_sizes(chunking, model.max_tokens)
        return split(
            document,
            count_tokens=self._count_tokens(model),
            max_tokens=max_tokens,
            overlap_tokens=overlap_tokens,
        )

    def _count_tokens(self, model: EmbeddingModel) -> TokenCounter:
        if model.fingerprint not in self._counters:
            self._counters[model.fingerprint] = TokenCounter(model.tokenizer_json)
        return self._counters[model.fingerprint]

    def _write(
        self,
        job: ClaimedJob,
        work: _Work,
        drafts: Sequence[ChunkDraft],
        embeddings: NDArray[np.float32],
        model: EmbeddingModel,
    ) -> None:
        with self._database.write() as session:
            # The collection before the job, as in the catalog: a delete that has the one waits for the other.
            collection = session.get(Collection, work.collection_id, with_for_update=True)
            document = jobs.lock(session, job)
            assert collection is not None, "a document keeps its collection"
            if collection.fingerprint not in (None, model.fingerprint):
                raise WrongModel(work.embedding_model)
            collection.fingerprint = model.fingerprint
            remove_chunks(session, document)
            document.usage_bytes = _add_chunks(session, document, drafts, embeddings)
            document.status = DocumentStatus.COMPLETED
            document.error_code = document.error_message = None
            jobs.finish(session, job)


def chunk_sizes(chunking: dict[str, Any], model_max_tokens: int) -> tuple[int, int]:
    """Largest chunk and overlap in tokens, for a strategy in OpenAI's form. No chunk outgrows the model.

    `auto` fills the model's window and overlaps an eighth of it, where a section is longer than that.
    """
    if chunking.get("type") != "static":
        return model_max_tokens, model_max_tokens // 8
    static = chunking["static"]
    wanted = int(static.get("max_chunk_size_tokens", DEFAULT_STATIC_TOKENS))
    largest = min(wanted, model_max_tokens)
    overlap = int(static.get("chunk_overlap_tokens", DEFAULT_STATIC_OVERLAP))
    return largest, min(overlap, largest // 2)


async def _embed(embedder: Embedder, drafts: Sequence[ChunkDraft], *, cache_salt: str) -> NDArray[np.float32]:
    """float32 (len(drafts), dimensions). No text is cut: the chunker has counted with the model's tokenizer."""
    texts = [under_headings(draft.headings, draft.text) for draft in drafts]
    places = asyncio.Semaphore(SLICES_AT_ONCE)

    async def embed(some: Sequence[str]) -> NDArray[np.float32]:
        async with places:
            return await embedder.embed(some, lane=Lane.BULK, cache_salt=cache_salt)

    async with together() as tasks:
        slices = [
            tasks.create_task(embed(texts[start : start + EMBED_AT_ONCE]))
            for start in range(0, len(texts), EMBED_AT_ONCE)
        ]
    return np.concatenate([each.result() for each in slices])


def _add_chunks(
    session: Session, document: Document, drafts: Sequence[ChunkDraft], embeddings: NDArray[np.float32]
) -> int:
    """Adds and logs a document's chunks. Returns the bytes that they take."""
    rows = [
        Chunk(
            tenant_id=document.tenant_id,
            collection_id=document.collection_id,
            document_id=document.id,
            position=position,
            text=draft.text,
            start_char=draft.start_char,
            end_char=draft.end_char,
            headings=list(draft.headings),
            token_count=draft.token_count,
            places=places_to_rows(draft.places),
            embedding=embedding.astype(np.float16).tobytes(),
        )
        for position, (draft, embedding) in enumerate(zip(drafts, embeddings, strict=True))
    ]
    session.add_all(rows)
    session.flush()
    append_log(session, document.collection_id, LogOp.ADD, [row.id for row in rows])
    return sum(len(row.text.encode()) + len(row.embedding) for row in rows)
