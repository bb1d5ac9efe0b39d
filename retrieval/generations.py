"""Other sets of chunks of a collection, beside the one that answers: begun, filled by jobs, switched to, discarded.

What a reader may rely on, in every transaction:
- The collection's own row describes the generation that answers; the documents' statuses are its.
- In any other generation that is kept, a document is complete unless it has a job there; one that failed keeps its
  job, which says why. A document completes where it is answered from first (ingest/pipeline.py).
- A number is given once: an index in memory is known by it, and by the ids of chunks, which are never given twice.

Errors:
    GenerationMissing       (NotFound)
    GenerationConflict      what was asked has to wait, or something else first; the message says what
"""

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Delete, Update, case, delete, func, insert, literal, select, update
from sqlalchemy.orm import Session

from retrieval.catalog import NotFound, lock_collection
from retrieval.generation_progress import is_complete, waits_for
from retrieval.scope import Scope
from retrieval.tables import (
    NEVER,
    Chunk,
    ChunkLog,
    Collection,
    Document,
    DocumentStatus,
    Generation,
    GenerationState,
    Job,
    JobState,
)
from retrieval.wakes import Topic, wake

OnJobs = TypeVar("OnJobs", Update, Delete)

SLICE = 1_000
"""Chunks or log entries that a transaction removes: so few that an upload hardly waits for it."""


class GenerationMissing(NotFound):
    kind = "generation"


class GenerationConflict(Exception):
    """What was asked of a collection's generations cannot be done now."""


def begin(
    session: Session,
    scope: Scope,
    collection_id: str,
    *,
    embedding_model: str | None,
    chunking: dict[str, Any] | None,
    now: float,
) -> Generation:
    """Begins a generation, with a job for each document that was not cancelled. Failed ones are tried again.

    `embedding_model` is an alias and `chunking` the strategy of all documents; None leaves each its own. Equal
    settings are fine: another model may have taken the alias. Raises CollectionMissing, GenerationConflict.
    """
    collection = lock_collection(session, scope, collection_id)
    for other in _others(session, collection):
        if other.state is not GenerationState.DISCARDED:
            raise GenerationConflict(
                f"Vector store '{collection.id}' has another generation already: {other.number}, which is "
                f"{other.state.value}. Switch to it or discard it first."
            )
    collection.last_generation += 1
    generation = Generation(
        collection_id=collection.id,
        number=collection.last_generation,
        state=GenerationState.BUILDING,
        embedding_model=embedding_model,
        fingerprint=None,
        window_tokens=None,
        chunking=chunking,
        head=0,
        created_at=now,
    )
    session.add(generation)
    session.flush()
    queued = select(
        Document.tenant_id,
        Document.id,
        literal(generation.number),
        literal(True),
        literal(JobState.QUEUED, Job.state.type),
        literal(now),
    ).where(Document.collection_id == collection.id, Document.status != DocumentStatus.CANCELLED)
    session.execute(
        insert(Job).from_select(
            ["tenant_id", "document_id", "generation", "is_background", "state", "due_at"],
            queued.order_by(Document.id),
        )
    )
    wake(session, Topic.JOBS)
    wake(session, Topic.INDEXES)
    return generation


def find(session: Session, collection: Collection, number: int) -> Generation:
    """A generation that does not answer and may. Raises GenerationMissing, GenerationConflict."""
    if number == collection.generation:
        raise GenerationConflict(
            f"Generation {number} is the one that answers. Switch to another to be able to discard it."
        )
    generation = session.get(Generation, (collection.id, number))
    if generation is None or generation.state is GenerationState.DISCARDED:
        raise GenerationMissing(str(number))
    return generation


def switch(
    session: Session, scope: Scope, collection_id: str, number: int, *, force: bool = False, now: float
) -> Collection:
    """Lets another generation answer, from this transaction's commit on. The one that did is kept as `previous`.

    Documents that the one has and the other does not have yet, or cannot have, hold the switch up; with `force`
    they are in progress or failed after it. Raises CollectionMissing, GenerationMissing, GenerationConflict.
    """
    collection = lock_collection(session, scope, collection_id)
    generation = find(session, collection, number)
    reason = None if force else waits_for(session, collection, number)
    if reason is not None:
        raise GenerationConflict(reason)
    _switch(session, collection, generation, now=now)
    return collection


def discard(session: Session, scope: Scope, collection_id: str, number: int) -> None:
    """Gives a generation up that does not answer. Its chunks are removed by and by, by `remove_slice`.

    Raises CollectionMissing, GenerationMissing, GenerationConflict.
    """
    collection = lock_collection(session, scope, collection_id)
    generation = find(session, collection, number)
    generation.state = GenerationState.DISCARDED
    wake(session, Topic.INDEXES)
    session.execute(_of_collection(delete(Job).where(Job.generation == number), collection))


# For the worker, which sees all tenants


def to_switch_to(session: Session) -> list[tuple[str, int]]:
    """Collections with the generation in building that is complete."""
    building = session.execute(
        select(Collection, Generation.number)
        .join(Generation, Generation.collection_id == Collection.id)
        .where(Generation.state == GenerationState.BUILDING)
    ).all()
    return [
        (collection.id, number) for collection, number in building if is_complete(session, collection, number)
    ]


def switch_if_complete(session: Session, collection_id: str, number: int, *, now: float) -> bool:
    """Does what `switch` does, unless it was done or undone meanwhile, or has to wait again."""
    collection = session.get(Collection, collection_id, with_for_update=True)
    generation = session.get(Generation, (collection_id, number))
    if collection is None or generation is None or generation.state is not GenerationState.BUILDING:
        return False
    if not is_complete(session, collection, number):
        return False
    _switch(session, collection, generation, now=now)
    return True


def to_remove(session: Session) -> list[tuple[str, int]]:
    """Discarded generations of which something is left."""
    discarded = select(Generation.collection_id, Generation.number).where(
        Generation.state == GenerationState.DISCARDED
    )
    return [(collection_id, number) for collection_id, number in session.execute(discarded)]


def remove_slice(
    session: Session, collection_id: str, number: int, *, after_id: int = 0, limit: int = SLICE
) -> int | None:
    """Removes some of a discarded generation. Returns what to call it with next, or None when nothing is left."""
    # A delete of a document may be adding to the log at this moment.
    session.get(Collection, collection_id, with_for_update=True)
    chunk_ids = session.scalars(
        select(Chunk.id)
        .where(Chunk.collection_id == collection_id, Chunk.generation == number, Chunk.id > after_id)
        .order_by(Chunk.id)
        .limit(limit)
    ).all()
    if chunk_ids:
        session.execute(delete(Chunk).where(Chunk.id.in_(chunk_ids)))
        return chunk_ids[-1]
    of_log = (ChunkLog.collection_id == collection_id, ChunkLog.generation == number)
    seqs = session.scalars(select(ChunkLog.seq).where(*of_log).order_by(ChunkLog.seq).limit(limit)).all()
    if seqs:
        session.execute(delete(ChunkLog).where(*of_log, ChunkLog.seq <= seqs[-1]))
        return after_id
    session.execute(
        delete(Generation).where(Generation.collection_id == collection_id, Generation.number == number)
    )
    return None


def _others(session: Session, collection: Collection) -> Sequence[Generation]:
    return session.scalars(
        select(Generation).where(Generation.collection_id == collection.id).order_by(Generation.number)
    ).all()


def _switch(session: Session, collection: Collection, generation: Generation, *, now: float) -> None:
    """The caller holds the collection's row: no document comes, goes or is completed meanwhile."""
    new, old = generation.number, collection.generation
    _keep_failures(session, collection)
    previous = Generation(
        collection_id=collection.id,
        number=old,
        state=GenerationState.PREVIOUS,
        embedding_model=collection.embedding_model,
        fingerprint=collection.fingerprint,
        window_tokens=collection.window_tokens,
        chunking=collection.chunking,
        head=collection.head,
        created_at=now,
    )
    collection.generation = new
    collection.embedding_model = generation.embedding_model
    collection.fingerprint = generation.fingerprint
    collection.window_tokens = generation.window_tokens
    collection.chunking = generation.chunking
    collection.head = generation.head
    session.delete(generation)
    session.add(previous)
    session.flush()
    _take_statuses(session, collection)
    _turn_jobs(session, collection, now=now)
    wake(session, Topic.JOBS)
    wake(session, Topic.INDEXES)
    session.expire_all()


def _keep_failures(session: Session, collection: Collection) -> None:
    """In the generation that answers, a failed document has no job. Before it steps back, each gets one."""
    number = collection.generation
    failed = select(
        Document.tenant_id,
        Document.id,
        literal(number),
        literal(True),
        literal(JobState.FAILED, Job.state.type),
        literal(NEVER),
        literal("failed"),
        Document.error_code,
        Document.error_message,
    ).where(
        Document.collection_id == collection.id,
        Document.status == DocumentStatus.FAILED,
        ~_has_job(number),
    )
    columns = ["tenant_id", "document_id", "generation", "is_background", "state", "due_at"]
    session.execute(insert(Job).from_select([*columns, "step", "error_code", "error"], failed))


def _take_statuses(session: Session, collection: Collection) -> None:
    """Makes the documents' statuses those of the generation that answers from now on."""
    number = collection.generation
    of_document = (Job.document_id == Document.id, Job.generation == number)
    of_chunk = (Chunk.document_id == Document.id, Chunk.generation == number)
    chunked = select(Chunk.id).where(*of_chunk)
    here = update(Document).where(
        Document.collection_id == collection.id, Document.status != DocumentStatus.CANCELLED
    )
    quietly = {"synchronize_session": False}
    session.execute(
        here.where(
            Document.status == DocumentStatus.FAILED, ~_has_job(number), chunked.correlate(Document).exists()
        ).values(status=DocumentStatus.COMPLETED, error_code=None, error_message=None),
        execution_options=quietly,
    )
    session.execute(
        here.where(_has_job(number, failed=False)).values(
            status=DocumentStatus.IN_PROGRESS, error_code=None, error_message=None
        ),
        execution_options=quietly,
    )
    session.execute(
        here.where(_has_job(number, failed=True)).values(
            status=DocumentStatus.FAILED,
            error_code=select(Job.error_code).where(*of_document).correlate(Document).scalar_subquery(),
            error_message=select(Job.error).where(*of_document).correlate(Document).scalar_subquery(),
        ),
        execution_options=quietly,
    )
    chunk_bytes = func.octet_length(Chunk.text) + func.octet_length(Chunk.embedding)
    used = select(func.coalesce(func.sum(chunk_bytes), 0)).where(*of_chunk).correlate(Document)
    session.execute(
        here.values(usage_bytes=used.scalar_subquery()),
        execution_options=quietly,
    )
    session.execute(
        _of_collection(delete(Job).where(Job.generation == number, Job.state == JobState.FAILED), collection)
    )


def _turn_jobs(session: Session, collection: Collection, *, now: float) -> None:
    """Jobs of the generation that answers go before others. A worker that has one in hand claims it again:
    it took it for a job of the other kind, and would complete the wrong thing.
    """
    unfinished = update(Job).where(Job.state != JobState.FAILED)
    turned = unfinished.values(
        is_background=Job.generation != collection.generation,
        state=JobState.QUEUED,
        lease=None,
        due_at=case((Job.state == JobState.RUNNING, now), else_=Job.due_at),
    )
    session.execute(_of_collection(turned, collection))


def _of_collection(statement: OnJobs, collection: Collection) -> OnJobs:
    """Bounds an update or delete of jobs to this collection's documents."""
    documents = select(Document.id).where(Document.collection_id == collection.id)
    return statement.where(Job.document_id.in_(documents)).execution_options(synchronize_session=False)


def _has_job(number: int, *, failed: bool | None = None) -> ColumnElement[bool]:
    """The condition on a document that it has a job in this generation."""
    jobs = select(Job.id).where(Job.document_id == Document.id, Job.generation == number)
    if failed is not None:
        jobs = jobs.where((Job.state == JobState.FAILED) == failed)
    return jobs.correlate(Document).exists()
