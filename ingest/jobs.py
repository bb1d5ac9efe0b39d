"""The queue of documents to ingest, in SQL: claimed under a lease, kept by heartbeats, finished or given back."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from retrieval.tables import Document, DocumentStatus, Job, JobState


class LeaseLost(Exception):
    """Another worker claimed the job, or its document was deleted: nothing that was made of it may be written."""


@dataclass(frozen=True)
class ClaimedJob:
    job_id: int
    tenant_id: str
    document_id: int
    attempt: int
    """Counts failures that were not waits, from 0."""
    lease: str


def any_due(session: Session, *, now: float) -> bool:
    """A cheap look without a lock, before `claim` takes one."""
    return session.scalar(select(Job.id).where(Job.due_at <= now).limit(1)) is not None


def claim(session: Session, *, now: float, lease_s: float) -> ClaimedJob | None:
    """Takes the job that has been due longest: one that waits, or one whose worker stopped renewing its lease."""
    job = session.scalar(
        select(Job)
        .where(Job.due_at <= now)
        .order_by(Job.due_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if job is None:
        return None
    job.state = JobState.RUNNING
    job.due_at = now + lease_s
    job.lease = secrets.token_hex(16)
    return ClaimedJob(
        job_id=job.id,
        tenant_id=job.tenant_id,
        document_id=job.document_id,
        attempt=job.attempt,
        lease=job.lease,
    )


def renew(session: Session, leases: Sequence[str], *, now: float, lease_s: float) -> None:
    session.execute(update(Job).where(Job.lease.in_(leases)).values(due_at=now + lease_s))


def lock(session: Session, job: ClaimedJob) -> Document:
    """The job's document, for the transaction that finishes it. Raises LeaseLost."""
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
    """Says once and for all that a document cannot be ingested. Raises LeaseLost."""
    document = lock(session, job)
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
