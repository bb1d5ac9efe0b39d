"""How far the generations of a collection are, and what holds a switch to one up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from retrieval.access import readable_documents
from retrieval.catalog import get_collection
from retrieval.scope import Scope
from retrieval.tables import Collection, Document, DocumentStatus, Generation, GenerationState, Job, JobState

FAILURES_SHOWN = 10


@dataclass(frozen=True)
class Failure:
    """Why a document is not in a generation."""

    file_id: str
    message: str


@dataclass(frozen=True)
class GenerationStanding:
    """A generation and how far it is; `state` is None for the one that answers."""

    number: int
    state: GenerationState | None
    embedding_model: str | None
    chunking: dict[str, Any] | None
    created_at: float
    total: int
    in_progress: int
    failed: int
    failures: Sequence[Failure]
    """The first of them."""
    waits_for: str | None
    """Why it could not be switched to now."""

    @property
    def completed(self) -> int:
        return self.total - self.in_progress - self.failed


def list_generations(session: Session, scope: Scope, collection_id: str) -> list[GenerationStanding]:
    """The one that answers, then the others by number. Raises CollectionMissing."""
    collection = get_collection(session, scope, collection_id)
    return [_answering(session, scope, collection)] + [
        _standing(session, scope, collection, generation)
        for generation in session.scalars(
            select(Generation).where(Generation.collection_id == collection.id).order_by(Generation.number)
        )
    ]


def is_complete(session: Session, collection: Collection, number: int) -> bool:
    """Whether nothing holds up a switch to this generation. Cheaper than to say what does."""
    answered = select(Document.id).where(
        Document.id == Job.document_id,
        Document.collection_id == collection.id,
        Document.status == DocumentStatus.COMPLETED,
    )
    # By the index of jobs that are due: one that is left is found at once, among as many documents as there may be.
    left = select(Job.id).where(
        Job.is_background,
        Job.tenant_id == collection.tenant_id,
        Job.generation == number,
        answered.correlate(Job).exists(),
    )
    return session.scalar(left.limit(1)) is None


def waits_for(session: Session, collection: Collection, number: int) -> str | None:
    """What holds up a switch to this generation: only what people would miss after it."""
    answered = _jobs_in(collection, number).where(Document.status == DocumentStatus.COMPLETED)
    counted = answered.with_only_columns(Job.state, func.count()).group_by(Job.state)
    counts: dict[JobState, int] = dict(session.execute(counted).all())
    failed = counts.pop(JobState.FAILED, 0)
    if unfinished := sum(counts.values()):
        return (
            f"Generation {number} lacks {unfinished} documents that can be found now and are in progress in it. "
            "Wait until they are done, or switch with force: each can be found again once it is done."
        )
    if failed:
        return (
            f"{failed} documents that can be found now failed in generation {number}. Discard it and begin "
            "another, or switch with force: then they are failed, and can be added again."
        )
    return None


def _jobs_in(collection: Collection, number: int) -> Select[Job]:
    return (
        select(Job)
        .join(Document, Document.id == Job.document_id)
        .where(Document.collection_id == collection.id, Job.generation == number)
    )


def _count_documents(session: Session, scope: Scope, collection: Collection) -> dict[DocumentStatus, int]:
    rows = session.execute(
        select(Document.status, func.count())
        .where(
            readable_documents(scope),
            Document.collection_id == collection.id,
            Document.status != DocumentStatus.CANCELLED,
        )
        .group_by(Document.status)
    )
    return dict(rows.all())


def _answering(session: Session, scope: Scope, collection: Collection) -> GenerationStanding:
    counts = _count_documents(session, scope, collection)
    failures = session.execute(
        select(Document.file_id, Document.error_message)
        .where(
            readable_documents(scope),
            Document.collection_id == collection.id,
            Document.status == DocumentStatus.FAILED,
        )
        .order_by(Document.id)
        .limit(FAILURES_SHOWN)
    )
    return GenerationStanding(
        number=collection.generation,
        state=None,
        embedding_model=collection.embedding_model,
        chunking=collection.chunking,
        created_at=collection.created_at,
        total=sum(counts.values()),
        in_progress=counts.get(DocumentStatus.IN_PROGRESS, 0),
        failed=counts.get(DocumentStatus.FAILED, 0),
        failures=[Failure(file_id, message or "") for file_id, message in failures],
        waits_for=None,
    )


def _standing(
    session: Session, scope: Scope, collection: Collection, generation: Generation
) -> GenerationStanding:
    jobs = _jobs_in(collection, generation.number).where(readable_documents(scope))
    in_progress = session.scalar(jobs.where(Job.state != JobState.FAILED).with_only_columns(func.count()))
    failed = jobs.where(Job.state == JobState.FAILED)
    failures = session.execute(
        failed.with_only_columns(Document.file_id, Job.error).order_by(Document.id).limit(FAILURES_SHOWN)
    )
    is_kept = generation.state is not GenerationState.DISCARDED
    return GenerationStanding(
        number=generation.number,
        state=generation.state,
        embedding_model=generation.embedding_model,
        chunking=generation.chunking,
        created_at=generation.created_at,
        total=sum(_count_documents(session, scope, collection).values()) if is_kept else 0,
        in_progress=in_progress or 0,
        failed=session.scalar(failed.with_only_columns(func.count())) or 0,
        failures=[Failure(file_id, message or "") for file_id, message in failures],
        waits_for=waits_for(session, collection, generation.number) if is_kept else None,
    )
