"""Which workers live: each says so every few seconds, and one that was silent for long counts as gone."""

import time

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from retrieval.tables import WorkerBeat

BEAT_S = 5.0
SILENT_AFTER_S = 3 * BEAT_S


def living_workers(session: Session) -> int:
    """How many worker processes there are, on all machines."""
    beats = select(func.count()).where(WorkerBeat.seen_at > time.time() - SILENT_AFTER_S)
    return session.scalars(beats).one()
