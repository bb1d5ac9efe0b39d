"""How far the ingestion of documents is, for people: read from their jobs, in a few queries for many documents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from retrieval.access import readable_documents
from retrieval.scope import Scope
from retrieval.tables import Collection, Document, DocumentStatus, File, Job, JobState


@dataclass(frozen=True)
class Progress:
    """Of the step that runs now. `done` and `total` are in `unit`; None is what nobody knows yet."""

    step: str
    done: int
    total: int | None
    unit: str | None
    rate: float | None
    """Units a second since the step began."""
    seconds_left: float | None
    waiting_for: int
    """Files inside that are in progress."""

    @property
    def facts(self) -> tuple[object, ...]:
        """What changes only when something happened: not the figures that follow the clock."""
        return (self.step, self.done, self.total, self.waiting_for)


@dataclass(frozen=True)
class Standing:
    """What is told of a document beside its own row. `progress` is None unless it is in progress."""

    path: str | None
    parent_file_id: str | None
    progress: Progress | None
    chunking: dict[str, Any]
    """The strategy that its chunks are made by, in OpenAI's form."""
    window_tokens: int | None
    """What its embedding model reads at once, once that is known."""


def standing_of_new(document: Document, file: File, collection: Collection) -> Standing:
    """Of a document that was just attached: what is known of it already, without a query."""
    queued = Progress(
        step="queued", done=0, total=None, unit=None, rate=None, seconds_left=None, waiting_for=0
    )
    return Standing(
        path=file.path,
        parent_file_id=file.parent_id,
        progress=queued,
        chunking=collection.chunking or document.chunking,
        window_tokens=collection.window_tokens,
    )


def standings(
    session: Session, scope: Scope, documents: Sequence[Document], *, now: float
) -> dict[int, Standing]:
    """By the document's id, of those that the caller has found. It may just have made them others' to read."""
    files = session.execute(
        select(
            Document.id,
            File.path,
            File.parent_id,
            Document.chunking,
            Collection.chunking,
            Collection.window_tokens,
        )
        .join(File, File.id == Document.file_id)
        .join(Collection, Collection.id == Document.collection_id)
        .where(Document.tenant_id == scope.tenant_id, Document.id.in_([each.id for each in documents]))
    )
    progress = progress_of(session, scope, documents, now=now)
    return {
        document_id: Standing(
            path=path,
            parent_file_id=parent_id,
            progress=progress.get(document_id),
            chunking=of_all or own,
            window_tokens=window_tokens,
        )
        for document_id, path, parent_id, own, of_all, window_tokens in files
    }


def progress_of(
    session: Session, scope: Scope, documents: Sequence[Document], *, now: float
) -> dict[int, Progress]:
    """By the id of those documents that are in progress."""
    ids = [each.id for each in documents if each.status is DocumentStatus.IN_PROGRESS]
    if not ids:
        return {}
    jobs = session.scalars(
        select(Job)
        .join(Document, Document.id == Job.document_id)
        .join(Collection, Collection.id == Document.collection_id)
        .where(
            Job.tenant_id == scope.tenant_id,
            Job.document_id.in_(ids),
            Job.generation == Collection.generation,
        )
    ).all()
    inside = session.execute(
        select(Document.parent_id, func.count())
        .where(Document.parent_id.in_(ids), Document.status == DocumentStatus.IN_PROGRESS)
        .group_by(Document.parent_id)
    )
    waiting_for = dict(inside.all())
    return {job.document_id: _progress(job, waiting_for.get(job.document_id, 0), now=now) for job in jobs}


def running_documents(
    session: Session, scope: Scope, collection_id: str, *, batch_id: str | None, limit: int
) -> list[Document]:
    """Those that a worker has in hand, the longest first; of one batch, or of the whole collection."""
    query = (
        select(Document)
        .join(Job, Job.document_id == Document.id)
        .join(Collection, Collection.id == Document.collection_id)
        .where(
            readable_documents(scope),
            Document.collection_id == collection_id,
            Document.status == DocumentStatus.IN_PROGRESS,
            Job.generation == Collection.generation,
            Job.state == JobState.RUNNING,
        )
        .order_by(Job.id)
        .limit(limit)
    )
    if batch_id is not None:
        query = query.where(Document.batch_id == batch_id)
    return list(session.scalars(query))


def _progress(job: Job, waiting_for: int, *, now: float) -> Progress:
    rate = None
    elapsed_s = now - job.step_since if job.step_since is not None else 0.0
    if job.state is JobState.RUNNING and job.done > 0 and elapsed_s > 0:
        rate = job.done / elapsed_s
    seconds_left = max(0, job.total - job.done) / rate if rate is not None and job.total is not None else None
    return Progress(
        step=job.step,
        done=job.done,
        total=job.total,
        unit=job.unit,
        rate=rate,
        seconds_left=seconds_left,
        waiting_for=waiting_for,
    )
