"""Backups that somebody asked for or that are due: one at a time among all processes, and how far it is, in SQL."""

import logging
import secrets
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from app.access.audit import audited
from app.settings import Settings
from app.storage.backup import SUFFIX, BackupUnusable, Progress, back_up
from app.storage.opening import Storage
from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.tables import AuditEvent, BackupRun

log = logging.getLogger("strongroom.backup")

ONLY = 1
BEAT_S = 0.5
"""Between two words of how far it is."""
LOST_AFTER_S = 60.0
"""After the last word of its maker: more than the clocks of two machines differ, and than a busy disk takes."""


def back_up_when_due(settings: Settings, storage: Storage, *, now: float) -> None:
    """For the leader, every now and then: by the newest archive in the folder, so that it matters not who leads."""
    folder = Path(settings.backup.folder)
    newest = max((path.stat().st_mtime for path in folder.glob(f"*{SUFFIX}")), default=0.0)
    if now - newest < settings.backup.every_hours * 3600:
        return
    name = name_at(now)
    try:
        maker = begin_run(storage.database, name, now=time.time())
    except BackupUnusable:
        return  # An admin's goes on, and is the newest then.
    except SQLAlchemyError as error:
        log.error("backup_failed", exc_info=error)
        return
    try:
        make_run(settings, storage, name, maker)
    except (BackupUnusable, SQLAlchemyError, OSError) as error:
        log.error("backup_failed", exc_info=error)
        return
    log.info("backup_made", extra={"backup": name})
    for path in sorted(folder.glob(f"*{SUFFIX}"))[: -settings.backup.keep]:
        path.unlink(missing_ok=True)


def name_at(now: float) -> str:
    """Of an archive in the folder of backups: in the order of their times."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime(now)) + SUFFIX


def make_run(settings: Settings, storage: Storage, name: str, maker: str, scope: Scope | None = None) -> None:
    """Makes what `begin_run` began, and tells how far it is until its end. `scope` is who asked for it.

    Raises BackupUnusable, SQLAlchemyError, OSError.
    """
    reached = deque([Progress("begins")], maxlen=1)
    is_over = threading.Event()

    def tell() -> None:
        # From a thread of its own: the copy of a large database takes longer than a run may be silent.
        while not is_over.wait(BEAT_S):
            with suppress(SQLAlchemyError):  # The next word tells as much.
                tell_run(storage.database, maker, reached[-1], now=time.time())

    telling = threading.Thread(target=tell, name="backup progress")
    telling.start()
    failed: str | None = "It ended before it was whole."
    try:
        folder = Path(settings.backup.folder)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with audited(storage.database, AuditEvent.BACKED_UP, scope=scope):
            back_up(settings, storage, folder / name, told=reached.append)
        failed = None
    except (BackupUnusable, SQLAlchemyError, OSError) as error:
        failed = str(error)
        raise
    finally:
        is_over.set()
        telling.join()
        end_run(storage.database, maker, failed=failed, now=time.time())


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
