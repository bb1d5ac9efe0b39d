"""One document's way in: its file parsed, its parts cut and embedded one after the other, all of it shown at once."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from ingest import jobs
from ingest.chunk import ChunkDraft, split
from ingest.elements import ParsedPart
from ingest.jobs import ClaimedJob, JobProgress, LeaseLost
from ingest.joined import TEXTS_AT_ONCE, JoinedRequests
from ingest.parsed_files import (
    UNKNOWN_TYPE,
    Arrivals,
    FileToParse,
    ParsedFiles,
    depth_of,
    inner_files,
)
from ingest.tokens import TokenCounter
from retrieval.blobs import BlobStore
from retrieval.catalog import attach_file, delete_file, lock_collection, lock_tenant
from retrieval.chunks import log_chunks
from retrieval.database import Database
from retrieval.duplicates import similarity_hash
from retrieval.places import places_to_rows, under_headings
from retrieval.tables import Chunk, Collection, Document, DocumentStatus, File, Generation, Job, LogOp
from retrieval.together import in_thread, together
from serving.protocols import Embedder, EmbeddingModel, Lane
from serving.tracing import span

SLICES_AT_ONCE = 2
"""Requests of one document: while one is computed the next is there already. Getting a reply and sending the
next request takes some milliseconds, as long as a GPU takes for half a slice.
"""
SLICE_S = 10.0
"""A document that took so long lets others go first, if any wait, and goes on behind them."""
PARSER_PATIENCE_S = 2.0
"""So long a job keeps its place in the worker while others of its tenant are parsed."""
BIG_FILE_BYTES = 1 << 20
"""From here on parsing may take a minute."""
LONG_AT_ONCE = 3
"""Documents of more than one slice whose chunks are embedded at once: what a letter waits behind."""
DEFAULT_STATIC_TOKENS = 800
DEFAULT_STATIC_OVERLAP = 400
"""OpenAI's defaults for the static strategy."""


class WrongModel(Exception):
    """The collection holds vectors of another model than the one that its alias names now."""

    def __init__(self, alias: str) -> None:
        super().__init__(
            f"The vector store was made with another embedding model than '{alias}' is now. "
            f"Let '{alias}' in models.embedding be that model again, or rebuild the vector store with "
            "`strongroom collections rebuild`."
        )


class ParsersTaken(Exception):
    """As many files as may be parsed at once are: of this tenant, or large ones of any. Others find a parser."""


class Outcome(Enum):
    """How far a run got, when nothing failed."""

    DONE = auto()
    PAUSED = auto()
    """Others wait; what is done is kept."""
    AWAITS_OTHERS = auto()
    """All is done but what waits for the files inside, or for the generation that answers."""


@dataclass(frozen=True)
class _Work:
    """What the steps need to know of a document."""

    collection_id: str
    file: FileToParse
    size_bytes: int
    chunking: dict[str, Any]
    embedding_model: str
    """Its alias."""
    fingerprint: str | None
    replaces_id: int | None
    arrivals: Arrivals


@dataclass(frozen=True)
class _Window:
    """A part of the document, cut and embedded. `number` is the part's."""

    number: int
    drafts: Sequence[ChunkDraft]
    embeddings: NDArray[np.float32]


class Pipeline:
    """Runs claimed jobs. A step whose result is in SQL is not done again after a crash.

    `embedder_of` gives the embedding model of an alias; `default_embedding` is the alias of collections that
    name none. `parsers` is how many files the parser takes at once.
    """

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        parsed_files: ParsedFiles,
        embedder_of: Callable[[str], Embedder],
        *,
        default_embedding: str,
        parsers: int = 1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._parsed_files = parsed_files
        self._embedder_of = embedder_of
        self._default_embedding = default_embedding
        self._parsers_a_tenant = max(1, parsers - 1)
        self._big_files = asyncio.Semaphore(self._parsers_a_tenant)
        self._turns: dict[str, asyncio.Semaphore] = {}
        """Of each tenant: files that do their worst to a parser leave one to the others."""
        self._long = asyncio.Semaphore(LONG_AT_ONCE)
        self._clock = clock
        self._joined: WeakValueDictionary[tuple[Embedder, Lane, str], JoinedRequests] = WeakValueDictionary()
        """By embedder, lane and tenant; of those that embed just now."""
        self._counters: dict[str, TokenCounter] = {}
        """By fingerprint: as few as the models."""

    async def run(self, job: ClaimedJob, progress: JobProgress | None = None) -> Outcome:
        """Raises ParseFailed, ServingError, WrongModel, LeaseLost, ParsedElsewhere, ParsersTaken; on any of them
        nothing became searchable.
        """
        progress = progress or JobProgress()
        work = await in_thread(self._load, job)
        embedder = self._embedder_of(work.embedding_model)
        model = await embedder.describe()
        if work.fingerprint not in (None, model.fingerprint):
            raise WrongModel(work.embedding_model)
        async with together() as tasks:
            if not work.arrivals.is_whole:
                tasks.create_task(self._parse(job, work, progress))
            return await self._embed_parts(job, work, embedder, model, progress)

    def _load(self, job: ClaimedJob) -> _Work:
        with self._database.read() as session:
            # Columns, not objects: this and the writes below are most of what a small document costs here.
            row = session.execute(
                select(
                    Document.collection_id,
                    Document.chunking,
                    Document.replaces_id,
                    Document.file_id,
                    File.blob_id,
                    File.media_type,
                    File.password,
                    File.parent_id,
                    File.size_bytes,
                )
                .join(Document, Document.file_id == File.id)
                .where(Document.id == job.document_id)
            ).one_or_none()
            collection = None if row is None else session.get(Collection, row.collection_id)
            if row is None or collection is None:
                raise LeaseLost
            target = _target(session, collection, job.generation)
            file = FileToParse(
                file_id=row.file_id,
                blob_id=row.blob_id,
                media_type=row.media_type,
                password=row.password,
                depth=depth_of(session, row.parent_id),
            )
            return _Work(
                collection_id=collection.id,
                file=file,
                size_bytes=row.size_bytes,
                chunking=target.chunking or row.chunking,
                embedding_model=target.embedding_model or self._default_embedding,
                fingerprint=target.fingerprint,
                replaces_id=row.replaces_id,
                arrivals=self._parsed_files.arrived(session, file),
            )

    async def _parse(self, job: ClaimedJob, work: _Work, progress: JobProgress) -> None:
        is_big = work.size_bytes >= BIG_FILE_BYTES
        if is_big and self._big_files.locked():
            raise ParsersTaken
        turns = self._turns.setdefault(job.tenant_id, asyncio.Semaphore(self._parsers_a_tenant))
        try:
            async with asyncio.timeout(PARSER_PATIENCE_S):
                await turns.acquire()
        except TimeoutError as error:
            raise ParsersTaken from error
        try:
            async with self._big_files if is_big else nullcontext():
                with span("parse"):
                    await self._parsed_files.parse(job, work.file, work.arrivals, progress)
        finally:
            turns.release()

    async def _embed_parts(
        self, job: ClaimedJob, work: _Work, embedder: Embedder, model: EmbeddingModel, progress: JobProgress
    ) -> Outcome:
        arrivals, number = work.arrivals, job.next_part
        started = time.monotonic()
        while await arrivals.has(number):
            part = arrivals.only_part
            if part is None:
                part = await in_thread(self._parsed_files.part, work.file, number)
            if arrivals.is_whole and progress.step != "embedding":
                progress.step, progress.since, progress.done = "embedding", self._clock(), part.start_char
                progress.total, progress.unit = None, "characters"
            drafts = await in_thread(self._split, part, work.chunking, model)
            if not arrivals.is_kept and len(drafts) > TEXTS_AT_ONCE:
                await in_thread(self._keep_parsed, job, work)
            with span("embed", texts=len(drafts)):
                embeddings = await self._embed(job, embedder, drafts, model)
            number += 1
            is_last = arrivals.is_whole and number == arrivals.count
            window = _Window(number - 1, drafts, embeddings)
            if is_last and not arrivals.attachments:
                return await self._finish(job, work, model, window)
            await in_thread(self._write, job, work, model, window)
            if progress.step == "embedding":
                progress.done = part.end_char
            is_slow = time.monotonic() - started > SLICE_S
            if is_slow and arrivals.is_whole and not is_last and await in_thread(self._others_wait):
                return Outcome.PAUSED
        if arrivals.attachments:
            await in_thread(self._attach_inner_files, job, work)
        return await self._finish(job, work, model, None)

    def _keep_parsed(self, job: ClaimedJob, work: _Work) -> None:
        with self._database.write() as session:
            self._parsed_files.keep(session, job, work.file, work.arrivals)
        work.arrivals.is_kept = True

    def _split(self, part: ParsedPart, chunking: dict[str, Any], model: EmbeddingModel) -> list[ChunkDraft]:
        max_tokens, overlap_tokens = chunk_sizes(chunking, model.max_tokens)
        with span("chunk"):
            return split(
                part,
                count_tokens=self._count_tokens(model),
                max_tokens=max_tokens,
                overlap_tokens=overlap_tokens,
            )

    def _count_tokens(self, model: EmbeddingModel) -> TokenCounter:
        if model.fingerprint not in self._counters:
            self._counters[model.fingerprint] = TokenCounter(model.tokenizer_json)
        return self._counters[model.fingerprint]

    async def _embed(
        self, job: ClaimedJob, embedder: Embedder, drafts: Sequence[ChunkDraft], model: EmbeddingModel
    ) -> NDArray[np.float32]:
        """float32 (len(drafts), dimensions). No text is cut: the chunker has counted with the model's tokenizer."""
        if not drafts:
            return np.empty((0, model.dimensions), np.float32)
        texts = [under_headings(draft.headings, draft.text) for draft in drafts]
        places = asyncio.Semaphore(SLICES_AT_ONCE)
        joined = self._requests(embedder, Lane.BACKGROUND if job.is_background else Lane.BULK, job.tenant_id)

        async def embed(some: Sequence[str]) -> NDArray[np.float32]:
            async with places:
                return await joined.embed(some)

        if len(texts) <= TEXTS_AT_ONCE:
            return await embed(texts)
        async with self._long, together() as tasks:
            slices = [
                tasks.create_task(embed(texts[start : start + TEXTS_AT_ONCE]))
                for start in range(0, len(texts), TEXTS_AT_ONCE)
            ]
        return np.concatenate([each.result() for each in slices])

    def _requests(self, embedder: Embedder, lane: Lane, tenant_id: str) -> JoinedRequests:
        key = (embedder, lane, tenant_id)
        return self._joined.setdefault(key, JoinedRequests(embedder, lane=lane, cache_salt=tenant_id))

    def _others_wait(self) -> bool:
        with self._database.read() as session:
            return jobs.any_due(session, now=self._clock())

    def _write(self, job: ClaimedJob, work: _Work, model: EmbeddingModel, window: _Window) -> None:
        """Keeps a part's chunks, unseen."""
        rows = _rows(job, work, window)
        with span("write", chunks=len(rows)), self._database.write() as session:
            document = _lock(session, job, work, model)
            _stage(session, job, document, window, rows)
            session.execute(update(Job).where(Job.id == job.job_id).values(next_part=window.number + 1))

    async def _finish(
        self, job: ClaimedJob, work: _Work, model: EmbeddingModel, window: _Window | None
    ) -> Outcome:
        outcome, orphans = await in_thread(self._complete, job, work, model, window)
        for blob_id in orphans:
            await in_thread(self._blobs.remove, blob_id)
        return outcome

    def _complete(
        self, job: ClaimedJob, work: _Work, model: EmbeddingModel, window: _Window | None
    ) -> tuple[Outcome, Sequence[str]]:
        """Shows the whole document, and takes away the one that it replaces. Also returns blobs to remove."""
        orphans: Sequence[str] = ()
        rows = [] if window is None else _rows(job, work, window)
        with span("write", chunks=len(rows)), self._database.write() as session:
            if work.replaces_id is not None:
                lock_tenant(session, job.tenant_id)
            document = _lock(session, job, work, model)
            if not work.arrivals.is_kept:
                self._parsed_files.keep(session, job, work.file, work.arrivals)
            if window is not None:
                _stage(session, job, document, window, rows)
            has_inner_files = bool(work.arrivals.attachments)
            if (has_inner_files and _inner_files_in_progress(session, document)) or _answers_later(
                session, job
            ):
                if window is not None:
                    session.execute(
                        update(Job).where(Job.id == job.job_id).values(next_part=window.number + 1)
                    )
                return Outcome.AWAITS_OTHERS, ()
            log_chunks(session, document, job.generation, LogOp.ADD)
            jobs.finish(session, job)
            if not job.is_background:
                document.status = DocumentStatus.COMPLETED
                document.error_code = document.error_message = None
                document.replaces_id = None
                old = session.get(Document, work.replaces_id) if work.replaces_id is not None else None
                if old is not None:
                    session.flush()
                    orphans = delete_file(session, job.scope, old.file_id)
        return Outcome.DONE, orphans

    def _attach_inner_files(self, job: ClaimedJob, work: _Work) -> None:
        """A document of each file inside this one, in the same collection. Those that are there stay."""
        if job.is_background:
            return
        now = self._clock()
        with self._database.write() as session:
            lock_tenant(session, job.tenant_id)
            outer = session.get(Document, job.document_id)
            if outer is None:
                raise LeaseLost
            collection = lock_collection(session, job.scope, work.collection_id)
            for file in inner_files(session, job, work.file, now=now):
                known = select(Document.id).where(
                    Document.collection_id == work.collection_id, Document.file_id == file.id
                )
                if session.scalar(known) is not None:
                    continue
                document = attach_file(
                    session,
                    job.scope,
                    collection=collection,
                    file=file,
                    attributes=outer.attributes,
                    chunking=outer.chunking,
                    now=now,
                    parent_id=outer.id,
                )
                if file.media_type == UNKNOWN_TYPE:
                    _refuse(session, document)


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


def _target(session: Session, collection: Collection, generation: int) -> Collection | Generation:
    """What says how the chunks of a generation are made. Raises LeaseLost when it was discarded."""
    if generation == collection.generation:
        return collection
    beside = session.get(Generation, (collection.id, generation))
    if beside is None:
        raise LeaseLost
    return beside


def _lock(session: Session, job: ClaimedJob, work: _Work, model: EmbeddingModel) -> Document:
    """The document, for a transaction that writes chunks of it. Raises LeaseLost, WrongModel."""
    # The collection before the job, as in the catalog: a delete that has the one waits for the other.
    collection = session.get(Collection, work.collection_id, with_for_update=True)
    document = jobs.lock(session, job)
    assert collection is not None, "a document keeps its collection"
    target = _target(session, collection, job.generation)
    if target.fingerprint not in (None, model.fingerprint):
        raise WrongModel(work.embedding_model)
    target.fingerprint, target.window_tokens = model.fingerprint, model.max_tokens
    return document


def _rows(job: ClaimedJob, work: _Work, window: _Window) -> list[dict[str, Any]]:
    """Made before a transaction begins: while one writes, others wait. Positions count from 0."""
    return [
        {
            "tenant_id": job.tenant_id,
            "collection_id": work.collection_id,
            "document_id": job.document_id,
            "generation": job.generation,
            "position": position,
            "text": draft.text,
            "start_char": draft.start_char,
            "end_char": draft.end_char,
            "headings": list(draft.headings),
            "token_count": draft.token_count,
            "is_table": draft.is_table,
            "similarity_hash": similarity_hash(draft.text),
            "places": places_to_rows(draft.places),
            "embedding": embedding.astype(np.float16).tobytes(),
        }
        for position, (draft, embedding) in enumerate(zip(window.drafts, window.embeddings, strict=True))
    ]


def _stage(
    session: Session, job: ClaimedJob, document: Document, window: _Window, rows: list[dict[str, Any]]
) -> None:
    """Adds a part's chunks behind those that are there."""
    if not rows:
        return
    if window.number > 0:
        of_job = (Chunk.document_id == document.id, Chunk.generation == job.generation)
        last = session.scalar(select(func.max(Chunk.position)).where(*of_job))
        for row in rows:
            row["position"] += 0 if last is None else last + 1
    session.execute(insert(Chunk), rows)
    if not job.is_background:
        document.usage_bytes += sum(len(row["text"].encode()) + len(row["embedding"]) for row in rows)


def _inner_files_in_progress(session: Session, document: Document) -> bool:
    waited_for = select(Document.id).where(
        Document.parent_id == document.id, Document.status == DocumentStatus.IN_PROGRESS
    )
    return session.scalar(waited_for.limit(1)) is not None


def _answers_later(session: Session, job: ClaimedJob) -> bool:
    """Whether the document is still on its way into the generation that answers.

    Were it complete in another one first, a switch to that would find no job that could complete the document.
    """
    if not job.is_background:
        return False
    others = select(Job.id).where(Job.document_id == job.document_id, Job.is_background.is_(False))
    return session.scalar(others.limit(1)) is not None


def _refuse(session: Session, document: Document) -> None:
    document.status = DocumentStatus.FAILED
    document.error_code = "unsupported"
    document.error_message = "This file inside another is empty or of a type that cannot be read."
    for job in session.scalars(select(Job).where(Job.document_id == document.id)):
        session.delete(job)
