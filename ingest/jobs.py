"""The queue of documents to ingest, in SQL: claimed under a lease, kept by heartbeats, finished or given back."""

import math
import secrets
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Select, Update, delete, func, select, update
from sqlalchemy.orm import Session

from retrieval.chunks import discard_staged
from retrieval.scope import Scope, within
from retrieval.tables import NEVER, Collection, Document, DocumentStatus, Job, JobState
from retrieval.wakes import Topic, wake

LONGEST_WAIT_S = 1_200.0
"""Longer than any job is put off, and than any lease."""


class LeaseLost(Exception):
    """Another worker claimed the job, or its document was deleted: nothing that was made of it may be written."""


Jobs = TypeVar("Jobs", Select[int], Update)


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
    trace: str | None = None
    request_id: str | None = None
    """Both of the request that queued it."""

    @property
    def scope(self) -> Scope:
        """The tenant's, for what is written on its behalf: no key is at hand."""
        return within(self.tenant_id, "ingestion")


@dataclass
class JobProgress:
    """What a running job does now, for people. Written to SQL once a second, by the worker."""

    step: str = "queued"
    done: int = 0
    total: int | None = None
    unit: str | None = None
    since: float | None = None


def any_due(session: Session, *, now: float) -> bool:
    """A cheap look without a lock, before `claim` takes one."""
    return session.scalar(select(Job.id).where(Job.due_at <= now).limit(1)) is not None


def next_due_at(session: Session) -> float:
    """When one is due, put off or under a lease that may end; NEVER where there is none."""
    return session.scalar(select(func.min(Job.due_at))) or NEVER


def wait_too_long(session: Session, *, now: float) -> bool:
    """Whether the clock was set back since a job was put off."""
    return session.scalar(_put_off_too_long(select(Job.id), now).limit(1)) is not None


def pull_back(session: Session, *, now: float) -> None:
    """After a clock was set back. A lease among them is lost: its job begins anew, as after a crash."""
    session.execute(_put_off_too_long(update(Job), now).values(due_at=now))
    wake(session, Topic.JOBS)


def claim(
    session: Session, *, now: float, lease_s: float, most: int = 1, after_tenant: str = ""
) -> list[ClaimedJob]:
    """Takes the jobs that are due longest: those that wait, and those whose worker stopped renewing its lease.

    Tenants that have any take turns, beginning after `after_tenant` by id. Background jobs wait until nobody has
    another.
    """
    taken: list[Job] = []
    for background in (False, True):
        tenants = _tenants(session, after_tenant, background, now, most=most - len(taken))
        for number, tenant_id in enumerate(tenants):
            share = math.ceil((most - len(taken)) / (len(tenants) - number))
            due = _due(background, now).where(Job.tenant_id == tenant_id).order_by(Job.due_at, Job.id)
            taken += session.scalars(due.limit(share).with_for_update(skip_locked=True))
        if len(taken) >= most:
            break
    leases = [{"id": job.id, "lease": secrets.token_hex(16)} for job in taken]
    if leases:
        session.execute(
            update(Job), [{**each, "state": JobState.RUNNING, "due_at": now + lease_s} for each in leases]
        )
    return [
        ClaimedJob(
            job_id=job.id,
            tenant_id=job.tenant_id,
            document_id=job.document_id,
            generation=job.generation,
            is_background=job.is_background,
            attempt=job.attempt,
            next_part=job.next_part,
            lease=str(lease["lease"]),
            trace=job.trace,
            request_id=job.request_id,
        )
        for job, lease in zip(taken, leases, strict=True)
    ]


def renew(session: Session, leases: Sequence[str], *, now: float, lease_s: float) -> None:
    session.execute(update(Job).where(Job.lease.in_(leases)).values(due_at=now + lease_s))


def held(session: Session, leases: Sequence[str]) -> Set[str]:
    """Those that are still there: a document that is deleted or cancelled loses its job."""
    rows = session.scalars(select(Job.lease).where(Job.lease.in_(leases)))
    return {lease for lease in rows if lease is not None}


def tell(session: Session, job: ClaimedJob, progress: JobProgress) -> None:
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
    document = session.scalar(
        select(Document)
        .join(Job, Job.document_id == Document.id)
        .where(Job.id == job.job_id, Job.lease == job.lease)
        .with_for_update(of=Job)
    )
    if document is None:
        raise LeaseLost
    return document


def finish(session: Session, job: ClaimedJob) -> None:
    """Forgets a job whose document is now completed or failed. The caller holds `lock`."""
    session.execute(delete(Job).where(Job.id == job.job_id))
    # It may have been the last that its generation waited for.
    wake(session, Topic.INDEXES)


def fail(session: Session, job: ClaimedJob, *, code: str, message: str) -> None:
    """Says once and for all that a document cannot be ingested. Raises LeaseLost.

    In a generation that does not answer, the document is as good as it was: the job stays, and says why.
    """
    # The collection before the job, as everywhere: a switch of generations comes before this or after it.
    answering = session.scalar(
        select(Collection.generation)
        .join(Document, Document.collection_id == Collection.id)
        .where(Document.id == job.document_id)
        .with_for_update(of=Collection)
    )
    document = lock(session, job)
    discard_staged(session, document.id, job.generation)
    if job.generation != answering:
        session.execute(
            update(Job)
            .where(Job.id == job.job_id)
            .values(
                state=JobState.FAILED,
                due_at=NEVER,
                lease=None,
                next_part=0,
                step="failed",
                error_code=code,
                error=message,
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
    wake(session, Topic.JOBS)


def give_back_all(session: Session, leases: Sequence[str], *, now: float) -> None:
    """For a worker that stops: another may go on at once instead of waiting for the leases to end."""
    session.execute(
        update(Job).where(Job.lease.in_(leases)).values(state=JobState.QUEUED, due_at=now, lease=None)
    )
    wake(session, Topic.JOBS)


def _put_off_too_long(jobs: Jobs, now: float) -> Jobs:
    return jobs.where(Job.due_at > now + LONGEST_WAIT_S, Job.due_at < NEVER)


def _due(background: bool, now: float) -> Select[Job]:
    return select(Job).where(Job.is_background.is_(background), Job.due_at <= now)


def _tenants(session: Session, after: str, background: bool, now: float, *, most: int) -> list[str]:
    """Up to `most` tenants that have a job due, in the order of their turns. A step of the index for each."""
    due = _due(background, now).with_only_columns(Job.tenant_id).order_by(Job.tenant_id).limit(1)
    found: list[str] = []
    last, has_wrapped = after, not after
    while len(found) < most:
        tenant_id = session.scalar(due.where(Job.tenant_id > last))
        if tenant_id is None:
            if has_wrapped:
                break
            last, has_wrapped = "", True
            continue
        if tenant_id in found:
            break
        found.append(tenant_id)
        last = tenant_id
    return found
