"""What stands in the database and on its disk at the moment, for /metrics: jobs, sources, workers, room."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select

from retrieval.beats import living_workers
from retrieval.database import Database
from retrieval.tables import AuditHead, Collection, Job, JobState, Source


@dataclass(frozen=True)
class StoredFigures:
    """Of all tenants together. `oldest_due_s`: how long the job that waits longest could have run already."""

    jobs: Mapping[JobState, int]
    oldest_due_s: float
    sources: Mapping[str, int]
    """By state: swept, paused or failing."""
    workers: int
    collections: int
    disk_free_bytes: int
    audit_entries: int
    """That were ever written, those that were pruned since included."""


def stored_figures(database: Database, data_dir: Path) -> StoredFigures:
    """Blocks. Raises OperationalError."""
    now = time.time()
    with database.read() as session:
        by_state = session.execute(select(Job.state, func.count().label("jobs")).group_by(Job.state))
        jobs = {row.state: row.jobs for row in by_state}
        oldest = session.scalar(
            select(func.min(Job.due_at)).where(Job.state == JobState.QUEUED, Job.due_at <= now)
        )
        sources = {"swept": 0, "paused": 0, "failing": 0}
        for is_paused, failures in session.execute(select(Source.is_paused, Source.failures)):
            sources["paused" if is_paused else "failing" if failures else "swept"] += 1
        return StoredFigures(
            jobs={state: jobs.get(state, 0) for state in JobState},
            oldest_due_s=0.0 if oldest is None else now - oldest,
            sources=sources,
            workers=living_workers(session),
            collections=session.scalars(select(func.count()).select_from(Collection)).one(),
            disk_free_bytes=shutil.disk_usage(data_dir).free,
            audit_entries=session.scalar(select(AuditHead.seq)) or 0,
        )
