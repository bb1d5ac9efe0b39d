"""The backup that somebody asked for: one at a time among all api processes, and how far it is, in SQL."""

import secrets

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from app.storage.backup import BackupUnusable, Progress
from retrieval.database import Database
from retrieval.tables import BackupRun

ONLY = 1
LOST_AFTER_S = 60.0
"""After the last word of its maker: more than the clocks of two machines differ, and than a busy disk takes."""


def begin_run(database: Database, name: str, *, now: float) -> str:
    """The secret by which its maker tells how far it is. Raises BackupUnusable while another is made."""
    goes_on = "A backup is being made: wait for its end."
    maker = secrets.token_hex(16)
    run = BackupRun(
        id=ONLY,
        name=name,
        maker=maker,
        step="begins",
        done=0,
        total=0,
        began_at=now,
        told_at=now,
        ended_at=None,
        failed=None,
    )
    try:
        with database.write() as session:
            before = session.get(BackupRun, ONLY, with_for_update=True)
            if before is not None and is_going(before, now=now):
                raise BackupUnusable(goes_on)
            session.merge(run)
    except IntegrityError as error:
        # The first two ever, at the same moment.
        raise BackupUnusable(goes_on) from error
    return maker


def tell_run(database: Database, maker: str, progress: Progress, *, now: float) -> None:
    told = {"step": progress.step, "done": progress.done, "total": progress.total, "told_at": now}
    _write(database, maker, told)


def end_run(database: Database, maker: str, *, failed: str | None, now: float) -> None:
    _write(database, maker, {"ended_at": now, "told_at": now, "failed": failed})


def last_run(database: Database) -> BackupRun | None:
    with database.read() as session:
        return session.scalar(select(BackupRun).where(BackupRun.id == ONLY))


def is_going(run: BackupRun, *, now: float) -> bool:
    """Of one that is neither going nor ended, the process was killed."""
    return run.ended_at is None and now - run.told_at < LOST_AFTER_S


def _write(database: Database, maker: str, told: dict[str, object]) -> None:
    """Not over that of another process, which took this one for dead."""
    with database.write() as session:
        session.execute(update(BackupRun).where(BackupRun.maker == maker).values(told))
