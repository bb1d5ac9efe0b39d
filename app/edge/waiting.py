"""Waits a moment for small files: who adds one gets it back completed, if a worker has nothing better to do."""

import asyncio
import time
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from retrieval.beats import living_workers
from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.tables import Document, DocumentStatus, File, Job, JobState
from retrieval.together import in_thread

LONGEST_S = 5.0
LOOK_S = 0.05
SMALL_BYTES = 256 * 1024
"""Of the files together: what takes a parser well below a second."""
FEW = 8
"""Jobs that are in hand or wait. With more, the reply would only come later and say the same."""


async def until_ingested(
    database: Database, scope: Scope, collection_id: str, file_ids: Sequence[str]
) -> None:
    """Waits until none of them is in progress any more, but not for long."""
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        await asyncio.sleep(LOOK_S)
        if not await in_thread(_in_progress, database, scope, collection_id, file_ids):
            break


def is_soon(database: Database, scope: Scope, collection_id: str, file_ids: Sequence[str]) -> bool:
    """Whether they are in progress, and to wait for them is worth while. Blocks."""
    if not 0 < len(file_ids) <= FEW:
        return False
    with database.read() as session:
        # While many come in, the first question is the last.
        return (
            _jobs(session) <= FEW
            and _size_bytes(session, scope, file_ids) <= SMALL_BYTES
            and living_workers(session) > 0
            and _count(session, scope, collection_id, file_ids) > 0
        )


def _in_progress(database: Database, scope: Scope, collection_id: str, file_ids: Sequence[str]) -> bool:
    with database.read() as session:
        return _count(session, scope, collection_id, file_ids) > 0


def _count(session: Session, scope: Scope, collection_id: str, file_ids: Sequence[str]) -> int:
    query = select(func.count()).where(
        Document.tenant_id == scope.tenant_id,
        Document.collection_id == collection_id,
        Document.file_id.in_(file_ids),
        Document.status == DocumentStatus.IN_PROGRESS,
    )
    return session.scalars(query).one()


def _size_bytes(session: Session, scope: Scope, file_ids: Sequence[str]) -> int:
    sizes = select(File.size_bytes).where(File.tenant_id == scope.tenant_id, File.id.in_(file_ids))
    return sum(session.scalars(sizes))


def _jobs(session: Session) -> int:
    unfinished = select(Job.id).where(Job.state != JobState.FAILED, Job.is_background.is_(False))
    return session.scalars(select(func.count()).select_from(unfinished.limit(FEW + 1).subquery())).one()
