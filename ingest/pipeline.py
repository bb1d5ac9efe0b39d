"""One document's way in: parse, chunk, embed, and replace its chunks in a single transaction."""

import asyncio
import zlib
from collections.abc import Sequence
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
from serving.protocols import Embedder, EmbeddingModel, Lane

EMBED_AT_ONCE = 64
"""Texts a request to the models role: a few of its batches, so that it is never idle between two requests."""
DEFAULT_STATIC_TOKENS = 800
DEFAULT_STATIC_OVERLAP = 400
"""OpenAI's defaults for the static strategy."""


class WrongModel(Exception):
    """The collection holds vectors of another embedding model than the one that is running."""


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
    fingerprint: str | None
    parsed: ParsedDocument | None


class Pipeline:
    """Runs claimed jobs. A step whose result is in SQL is not done again after a crash."""

    def __init__(self, database: Database, blobs: BlobStore, parser: Parser, embedder: Embedder) -> None:
        self._database = database
        self._blobs = blobs
        self._parser = parser
        self._embedder = embedder
        self._counter: tuple[str, TokenCounter] | None = None

    async def run(self, job: ClaimedJob) -> None:
        """Raises ParseFailed, ServingError, WrongModel, LeaseLost; on any of them nothing became searchable."""
        work = await asyncio.to_thread(self._load, job)
        model = await self._embedder.describe()
        if work.fingerprint not in (None, model.fingerprint):
            raise WrongModel
        parsed = work.parsed or await self._parse(work)
        drafts = await asyncio.to_thread(self._split, parsed, work.chunking, model)
        embeddings = await self._embed(drafts)
        await asyncio.to_thread(self._write, job, work, drafts, embeddings, model)

    def _load(self, job: ClaimedJob) -> _Work:
        with self._database.read() as session:
            row = session.execute(
                select(
                    Document.collection_id,
                    File.blob_id,
                    File.media_type,
                    Document.chunking,
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
                fingerprint=row.fingerprint,
                parsed=ParsedDocument.from_json(zlib.decompress(parsed.elements)) if parsed else None,
            )

    async def _parse(self, work: _Work) -> ParsedDocument:
        document = await self._parser.parse(self._blobs.path(work.blob_id), work.media_type)
        await asyncio.to_thread(self._keep_parsed, work, document)
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
        if self._counter is None or self._counter[0] != model.fingerprint:
            self._counter = (model.fingerprint, TokenCounter(model.tokenizer_json))
        return self._counter[1]

    async def _embed(self, drafts: Sequence[ChunkDraft]) -> NDArray[np.float32]:
        texts = [under_headings(draft.headings, draft.text) for draft in drafts]
        batches = [
            await self._embedder.embed(texts[start : start + EMBED_AT_ONCE], lane=Lane.BULK)
            for start in range(0, len(texts), EMBED_AT_ONCE)
        ]
        return np.concatenate(batches)

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
                raise WrongModel
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
