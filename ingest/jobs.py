"""The queue of documents to ingest, in SQL: claimed under a lease, kept by heartbeats, finished or given back."""

import secrets
from collections.abc import Sequence, Set
from dataclasses import dataclass

from sqlalchemy import Select, delete, select, update
from sqlalchemy.orm import Session

from retrieval.chunks import discard_staged
from retrieval.tables import Collection, Document, DocumentStatus, Job, JobState

NEVER = 1e15
"""When a job is due that has failed for good, but has to be seen."""


class LeaseLost(Exception):
    """Another worker claimed the job, or its document was deleted: nothing that was made of it may be written."""


@dataclass(frozen=True)
class ClaimedJob:
    job_id: int
    tenant_id: str
    document_id: int
    generation: int
    is_background: bool
    attempt: int
    """Counts failures that were not waits, from 0."""
    next_part: int
    lease: str


@dataclass
class Progress:
    """What a running job does now, for people. Written to SQL once a second, by the worker."""

    step: str = "queued"
    done: int = 0
    total: int | None = None
    unit: str | None = None
    since: float | None = None


def any_due(session: Session, *, now: float) -> bool:
    """A cheap look without a lock, before `claim` takes one."""
    return any(_next_tenant(session, "", background, now) is not None for background in (False, True))


def claim(session: Session, *, now: float, lease_s: float, after_tenant: str = "") -> ClaimedJob | None:
    """Takes the job that is due longest: one that waits, or one whose worker stopped renewing its lease.

    Of the tenants that have any, the next after `after_tenant` by id has its turn. Background jobs wait until
    nobody has another.
    """
    for background in (False, True):
        tenant_id = _next_tenant(session, after_tenant, background, now)
        if tenant_id is None:
            continue
        job = session.scalar(
            _due(background, now)
            .where(Job.tenant_id == tenant_id)
            .order_by(Job.due_at, Job.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        if job is None:
            continue
        job.state = JobState.RUNNING
        job.due_at = now + lease_s
        job.lease = secrets.token_hex(16)
        return ClaimedJob(
            job_id=job.id,
            tenant_id=job.tenant_id,
            document_id=job.document_id,
            generation=job.generation,
            is_background=job.is_background,
            attempt=job.attempt,
            next_part=job.next_part,
            lease=job.lease,
        )
    return None


def renew(session: Session, leases: Sequence[str], *, now: float, lease_s: float) -> None:
    session.execute(update(Job).where(Job.lease.in_(leases)).values(due_at=now + lease_s))


def held(session: Session, leases: Sequence[str]) -> Set[str]:
    """Those that are still there: a document that is deleted or cancelled loses its job."""
    return set(session.scalars(select(Job.lease).where(Job.lease.in_(leases)))) - {None}


def tell(session: Session, job: ClaimedJob, progress: Progress) -> None:
    session.execute(
        update(Job)
        .where(Job.id == job.job_id, Job.lease == job.lease)
        .values(
            step=progress.step,
            done=progress.done,
            total=progress.total,
            unit=progress.unit,
            step_since=progress.since,
        )
    )


def lock(session: Session, job: ClaimedJob) -> Document:
    """The job's document, for a transaction that writes what was made of it. Raises LeaseLost."""
    held = session.scalar(
        select(Job.id).where(Job.id == job.job_id, Job.lease == job.lease).with_for_update()
    )
    document = session.get(Document, job.document_id) if held is not None else None
    if document is None:
        raise LeaseLost
    return document


def finish(session: Session, job: ClaimedJob) -> None:
    """Forgets a job whose document is now completed or failed. The caller holds `lock`."""
    session.execute(delete(Job).where(Job.id == job.job_id))


def fail(session: Session, job: ClaimedJob, *, code: str, message: str) -> None:
    """Says once and for all that a document cannot be ingested. Raises LeaseLost.

    In a generation that does not answer, the document is as good as it was: the job stays, and says why.
    """
    document = lock(session, job)
    discard_staged(session, document.id, job.generation)
    answering = session.scalar(select(Collection.generation).where(Collection.id == document.collection_id))
    if job.generation != answering:
        session.execute(
            update(Job)
            .where(Job.id == job.job_id)
            .values(
                state=JobState.FAILED, due_at=NEVER, lease=None, next_part=0, step="failed", error=message
            )
        )
        return
    document.status = DocumentStatus.FAILED
    document.error_code = code
    document.error_message = message
    finish(session, job)


def give_back(session: Session, job: ClaimedJob, *, due_at: float, attempt: int) -> None:
    """Queues a job again for later, if it is still ours."""
    session.execute(
        update(Job)
        .where(Job.id == job.job_id, Job.lease == job.lease)
        .values(state=JobState.QUEUED, due_at=due_at, attempt=attempt, lease=None)
    )


def give_back_all(session: Session, leases: Sequence[str], *, now: float) -> None:
    """For a worker that stops: another may go on at once instead of waiting for the leases to end."""
    session.execute(
        update(Job).where(Job.lease.in_(leases)).values(state=JobState.QUEUED, due_at=now, lease=None)
    )


def _due(background: bool, now: float) -> Select[tuple[Job]]:
    return select(Job).where(Job.is_background.is_(background), Job.due_at <= now)


def _next_tenant(session: Session, after: str, background: bool, now: float) -> str | None:
    """The first tenant after `after` that has a job due; from the beginning again when there is none."""
    due = _due(background, now).with_only_columns(Job.tenant_id).order_by(Job.tenant_id, Job.due_at).limit(1)
    return session.scalar(due.where(Job.tenant_id > after)) or (session.scalar(due) if after else None)
