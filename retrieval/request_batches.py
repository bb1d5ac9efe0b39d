"""Batches of requests in SQL: for people, who see their tenant's, and for the processes that run them, under a lease.

Errors, beside those of the catalog:
    BatchMissing            (NotFound)
    LeaseLost               another process runs the batch by now
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, select
from sqlalchemy.orm import Session

from retrieval.access import readable_answers
from retrieval.catalog import NotFound, PageRequest, page_of
from retrieval.scope import Scope
from retrieval.tables import Batch, BatchLine, BatchStatus, new_id

COMPLETION_WINDOW_S = 24 * 3600
ENDED = frozenset({BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})


class BatchMissing(NotFound):
    kind = "batch"


class LeaseLost(Exception):
    """Another process runs the batch by now."""


@dataclass(frozen=True)
class LineResult:
    """What became of the request in one line."""

    number: int
    is_ok: bool
    told: str
    usage: Mapping[str, int]


# For people


def create_batch(
    session: Session,
    scope: Scope,
    *,
    endpoint: str,
    input_file_id: str,
    attributes: Mapping[str, str],
    output_life_s: int | None,
    now: float,
) -> Batch:
    batch = Batch(
        id=new_id("batch_"),
        tenant_id=scope.tenant_id,
        key_id=scope.key_id,
        endpoint=endpoint,
        input_file_id=input_file_id,
        output_life_s=output_life_s,
        attributes=dict(attributes),
        status=BatchStatus.VALIDATING,
        reached={},
        usage={},
        created_at=now,
        expires_at=now + COMPLETION_WINDOW_S,
        due_at=now,
    )
    session.add(batch)
    session.flush()
    return batch


def get_batch(session: Session, scope: Scope, batch_id: str) -> Batch:
    batch = session.scalar(select(Batch).where(_readable(scope), Batch.id == batch_id))
    if batch is None:
        raise BatchMissing(batch_id)
    return batch


def list_batches(session: Session, scope: Scope, page: PageRequest) -> list[Batch]:
    query = select(Batch).where(_readable(scope))
    return page_of(session, query, page, created_at=Batch.created_at, row_id=Batch.id, public_id=Batch.id)


def _readable(scope: Scope) -> ColumnElement[bool]:
    return and_(Batch.tenant_id == scope.tenant_id, readable_answers(scope, Batch.key_id))


def cancel_batch(session: Session, scope: Scope, batch_id: str, *, now: float) -> Batch:
    """Who runs it notices, and ends it with what is answered so far. One that has ended stays as it is."""
    get_batch(session, scope, batch_id)
    batch = _locked(session, batch_id)
    if batch.status in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
        reach(batch, BatchStatus.CANCELLING, now=now)
    return batch


# For those who run them


def claim_batch(session: Session, *, now: float, lease_s: float) -> Batch | None:
    """The one that has waited longest: new, or left by a process that died. It is the caller's for so long."""
    batch = session.scalar(
        select(Batch)
        .where(Batch.due_at <= now)
        .order_by(Batch.due_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if batch is not None:
        batch.lease, batch.due_at = secrets.token_hex(16), now + lease_s
    return batch


def is_any_due(session: Session, *, now: float) -> bool:
    return session.scalar(select(Batch.id).where(Batch.due_at <= now).limit(1)) is not None


def held_batch(session: Session, batch_id: str, lease: str) -> Batch:
    """The batch, locked. Raises LeaseLost."""
    batch = _locked(session, batch_id)
    if batch.lease != lease:
        raise LeaseLost
    return batch


def reach(batch: Batch, status: BatchStatus, *, now: float) -> None:
    batch.status = status
    batch.reached = {**batch.reached, status.value: now}
    if status in ENDED:
        batch.due_at = batch.lease = None


def fail_batch(batch: Batch, errors: Sequence[dict[str, Any]], *, now: float) -> None:
    batch.errors = list(errors)
    reach(batch, BatchStatus.FAILED, now=now)


def add_result(session: Session, batch: Batch, result: LineResult) -> None:
    session.add(BatchLine(batch_id=batch.id, number=result.number, is_ok=result.is_ok, told=result.told))
    batch.completed += result.is_ok
    batch.failed += not result.is_ok
    if result.usage:
        batch.usage = {
            name: batch.usage.get(name, 0) + result.usage.get(name, 0)
            for name in {**batch.usage, **result.usage}
        }


def answered_lines(session: Session, batch_id: str) -> set[int]:
    return set(session.scalars(select(BatchLine.number).where(BatchLine.batch_id == batch_id)))


def results_after(session: Session, batch_id: str, number: int, *, limit: int) -> Sequence[BatchLine]:
    return session.scalars(
        select(BatchLine)
        .where(BatchLine.batch_id == batch_id, BatchLine.number > number)
        .order_by(BatchLine.number)
        .limit(limit)
    ).all()


def delete_results(session: Session, batch_id: str) -> None:
    session.execute(delete(BatchLine).where(BatchLine.batch_id == batch_id))


def _locked(session: Session, batch_id: str) -> Batch:
    batch = session.get(Batch, batch_id, with_for_update=True, populate_existing=True)
    if batch is None:
        raise LeaseLost
    return batch
