"""The ledger of what was deleted or revoked: in SQL, and in a file beside it that tells an older database of it."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from retrieval.tables import DeletedKind, Deletion

log = logging.getLogger("strongroom.ledger")

_PENDING = "deleted"


class Entry(NamedTuple):
    """Ids only, so that it tells nothing of what is gone."""

    kind: DeletedKind
    object_id: str
    tenant_id: str


def record(session: Session, kind: DeletedKind, object_id: str, tenant_id: str) -> None:
    """In the transaction that deletes it."""
    session.merge(Deletion(kind=kind, object_id=object_id, tenant_id=tenant_id))
    session.info.setdefault(_PENDING, []).append(Entry(kind, object_id, tenant_id))


def recorded(session: Session) -> list[Entry]:
    """What this session's transactions have entered."""
    entries: list[Entry] = session.info.get(_PENDING, [])
    return entries


def entries_in_sql(session: Session) -> set[Entry]:
    rows = session.execute(select(Deletion.kind, Deletion.object_id, Deletion.tenant_id))
    return {Entry(*row) for row in rows}


class LedgerFile:
    """One line for each entry. It only grows; several processes may append."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, entries: Iterable[Entry]) -> None:
        """Durable on return. A full disk keeps nobody from deleting: SQL has it, and the next start writes it."""
        lines = "".join(f"{entry.kind} {entry.object_id} {entry.tenant_id}\n" for entry in entries)
        if not lines:
            return
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                # Ends a line that was cut by a crash.
                os.write(descriptor, f"\n{lines}".encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.error("ledger_not_written", exc_info=error)

    def read(self) -> set[Entry]:
        """A line that was cut is left out."""
        if not self._path.exists():
            return set()
        fields = (line.split(" ") for line in self._path.read_text().splitlines())
        return {
            Entry(DeletedKind(each[0]), each[1], each[2])
            for each in fields
            if len(each) == 3 and each[0] in set(DeletedKind)
        }
