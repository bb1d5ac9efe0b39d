"""What time makes superfluous is deleted: files, collections, uploads, stored answers. The leader runs it."""

import logging
import time
from collections.abc import Callable
from threading import Event

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from retrieval import audit, responses, stored_completions
from retrieval.blobs import BlobStore
from retrieval.catalog import CollectionMissing, FileMissing, delete_collection, delete_file
from retrieval.database import Database
from retrieval.expiry import is_expired
from retrieval.scope import Scope, within
from retrieval.tables import AuditEvent, Collection, Deletion, File, GoneRow
from retrieval.uploads import drop_expired

log = logging.getLogger("strongroom.upkeep")

JUMP_S = 60.0
"""A clock that goes on by more than this without time passing was set."""
DISTRUST_S = 3600.0
"""For which nothing expires after that: a clock that was set wrongly is mostly set right again."""
FILES_AT_ONCE = 20
ANSWERS_AT_ONCE = 100
GONE_ROWS_S = 86_400.0
"""Longer than anybody goes through a list."""


class SteadyClock:
    """Tells the time, and whether the clock has gone as steadily as time itself."""

    def __init__(
        self, clock: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._last = (clock(), monotonic())
        self._jumped_at: float | None = None

    def look(self) -> float:
        """The time. Call it often: what happens between two calls is judged as a whole."""
        now, passed = self._clock(), self._monotonic()
        if abs((now - self._last[0]) - (passed - self._last[1])) > JUMP_S:
            self._jumped_at = passed
            log.warning("clock_was_set")
        self._last = (now, passed)
        return now

    @property
    def is_steady(self) -> bool:
        return self._jumped_at is None or self._monotonic() - self._jumped_at > DISTRUST_S


class Upkeep:
    """Run now and then, in a thread. `check` is called in each transaction, and raises to forbid it."""

    def __init__(self, database: Database, blobs: BlobStore, *, keep_answers_s: float | None = None) -> None:
        self._database = database
        self._blobs = blobs
        self._keep_answers_s = keep_answers_s
        """None keeps stored responses and completions for ever."""
        self._settled = 0
        """Deletions after which the database's log was emptied."""

    def run(self, *, now: float, check: Callable[[Session], None], stopping: Event) -> None:
        for tenant_id, collection_id in self._expired_collections(now):
            if stopping.is_set():
                return
            self._delete_collection(tenant_id, collection_id, now, check)
        while not stopping.is_set() and self._delete_files(now, check):
            pass
        while not stopping.is_set() and self._forget_uploads(now, check):
            pass
        if self._keep_answers_s is not None:
            before = now - self._keep_answers_s
            while not stopping.is_set() and self._delete_answers(before, check):
                pass
        with self._database.read() as session:
            deletions = session.scalar(select(func.count()).select_from(Deletion)) or 0
        if deletions != self._settled:
            self._database.settle()
            self._settled = deletions

    def _expired_collections(self, now: float) -> list[tuple[str, str]]:
        with self._database.read() as session:
            rows = session.scalars(select(Collection).where(Collection.expires_after_days.is_not(None)))
            return [(row.tenant_id, row.id) for row in rows if is_expired(row, now=now)]

    def _delete_collection(
        self, tenant_id: str, collection_id: str, now: float, check: Callable[[Session], None]
    ) -> None:
        with self._database.write() as session:
            check(session)
            # Looked at again: it may have been used, or given more days, since.
            collection = session.get(Collection, collection_id, with_for_update=True)
            if collection is None or not is_expired(collection, now=now):
                return
            try:
                delete_collection(session, _scope(tenant_id), collection_id)
            except CollectionMissing:
                return
            audit.record(session, AuditEvent.COLLECTION_DELETED, collection_id, scope=_scope(tenant_id))
        log.info("collection_expired", extra={"collection": collection_id})

    def _delete_files(self, now: float, check: Callable[[Session], None]) -> bool:
        """Deletes some, and tells whether there were any."""
        orphans: list[str] = []
        with self._database.write() as session:
            check(session)
            expired = session.execute(
                select(File.tenant_id, File.id).where(File.expires_at <= now).limit(FILES_AT_ONCE)
            ).all()
            for tenant_id, file_id in expired:
                try:
                    orphans += delete_file(session, _scope(tenant_id), file_id)
                except FileMissing:
                    continue  # It went with the archive that it came in.
                audit.record(session, AuditEvent.FILE_DELETED, file_id, scope=_scope(tenant_id))
        for blob_id in orphans:
            self._blobs.remove(blob_id)
        return bool(expired)

    def _forget_uploads(self, now: float, check: Callable[[Session], None]) -> bool:
        """Forgets some that have expired or were completed long ago, and tells whether there were any."""
        with self._database.write() as session:
            check(session)
            forgotten, part_ids = drop_expired(session, now=now, most=FILES_AT_ONCE)
            session.execute(delete(GoneRow).where(GoneRow.gone_at < now - GONE_ROWS_S))
        for part_id in part_ids:
            self._blobs.remove(part_id)
        return forgotten > 0

    def _delete_answers(self, before: float, check: Callable[[Session], None]) -> bool:
        """Deletes some that were stored before then, and tells whether there were any."""
        with self._database.write() as session:
            check(session)
            ended = responses.stored_before(session, before, most=ANSWERS_AT_ONCE)
            for response in ended:
                responses.delete_response(session, response)
                scope = _scope(response.tenant_id)
                audit.record(session, AuditEvent.RESPONSE_DELETED, response.id, scope=scope)
            completions = stored_completions.stored_before(session, before, most=ANSWERS_AT_ONCE)
            for completion in completions:
                scope = _scope(completion.tenant_id)
                stored_completions.delete_completion(session, scope, completion.id)
                audit.record(session, AuditEvent.COMPLETION_DELETED, completion.id, scope=scope)
        return bool(ended or completions)


def _scope(tenant_id: str) -> Scope:
    return within(tenant_id, "upkeep")
