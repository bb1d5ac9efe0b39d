"""Every query on sources and their sweeps that people and schedules make. What people make takes their scope."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from retrieval.access import readable_collections
from retrieval.catalog import FileMissing, NotFound, delete_file, get_collection
from retrieval.ledger import record
from retrieval.scope import Scope, within
from retrieval.tables import Collection, DeletedKind, Document, Source, SourceEntry, Sweep, new_id

KEEP_SWEEPS = 50
"""Of each source, for its report."""


class SourceMissing(NotFound):
    kind = "source"


@dataclass(frozen=True)
class NewSource:
    collection_id: str
    url: str
    options: bytes | None
    include: Sequence[str]
    exclude: Sequence[str]
    max_bytes: int
    every_s: float | None
    cron: str | None
    is_watched: bool
    attributes: dict[str, Any]
    chunking: dict[str, Any]


def new_source_id() -> str:
    """Before the row, as its options are sealed for it."""
    return new_id("src_")


def add_source(session: Session, scope: Scope, source_id: str, new: NewSource, *, now: float) -> Source:
    """It is swept at once. Raises CollectionMissing."""
    source = Source(
        id=source_id,
        tenant_id=scope.tenant_id,
        collection_id=get_collection(session, scope, new.collection_id).id,
        url=new.url,
        options=new.options,
        include=list(new.include),
        exclude=list(new.exclude),
        max_bytes=new.max_bytes,
        every_s=new.every_s,
        cron=new.cron,
        is_watched=new.is_watched,
        is_paused=False,
        attributes=new.attributes,
        chunking=new.chunking,
        failures=0,
        due_at=now,
        created_at=now,
    )
    session.add(source)
    session.flush()
    return source


def get_source(session: Session, scope: Scope, source_id: str) -> Source:
    source = session.scalar(_readable(scope).where(Source.id == source_id))
    if source is None:
        raise SourceMissing(source_id)
    return source


def list_sources(session: Session, scope: Scope) -> list[Source]:
    return list(session.scalars(_readable(scope).order_by(Source.created_at, Source.id)))


def _readable(scope: Scope) -> Select[Source]:
    """Those of collections that the scope may read."""
    return (
        select(Source)
        .join(Collection, Collection.id == Source.collection_id)
        .where(Source.tenant_id == scope.tenant_id, readable_collections(scope))
    )


def pause_source(session: Session, scope: Scope, source_id: str) -> Source:
    """Scheduled sweeps end; one that is asked for still runs."""
    source = get_source(session, scope, source_id)
    source.is_paused = True
    return source


def resume_source(session: Session, scope: Scope, source_id: str, *, now: float) -> Source:
    """Swept at once, and its failures are forgotten."""
    source = get_source(session, scope, source_id)
    source.is_paused = False
    source.failures = 0
    source.due_at = now
    return source


def set_options(
    session: Session, scope: Scope, source_id: str, options: bytes | None, *, now: float
) -> Source:
    """Swept at once with them, and what failed with the ones before is forgotten."""
    source = get_source(session, scope, source_id)
    source.options = options
    source.failures = 0
    source.due_at = now
    return source


def ask_sweep(
    session: Session, scope: Scope, source_id: str, *, is_dry: bool, may_empty: bool, now: float
) -> Sweep:
    """The leader runs it within a second or so. One that waits already is the same."""
    source = get_source(session, scope, source_id)
    waiting = session.scalar(
        select(Sweep)
        .where(
            Sweep.source_id == source.id,
            Sweep.started_at.is_(None),
            Sweep.is_dry == is_dry,
            Sweep.may_empty == may_empty,
        )
        .limit(1)
    )
    if waiting is not None:
        return waiting
    asked = Sweep(source_id=source.id, due_at=now, is_dry=is_dry, may_empty=may_empty, counts={})
    session.add(asked)
    session.flush()
    return asked


def last_sweeps(session: Session, source_id: str, *, most: int = KEEP_SWEEPS) -> list[Sweep]:
    """The newest first. The caller holds the source, and so may see them."""
    query = select(Sweep).where(Sweep.source_id == source_id).order_by(Sweep.id.desc()).limit(most)
    return list(session.scalars(query))


def refusals(session: Session, source_id: str, *, most: int = 100) -> list[tuple[str, str]]:
    """Paths that were not taken, and why."""
    query = select(SourceEntry.path, SourceEntry.error).where(
        SourceEntry.source_id == source_id, SourceEntry.error.is_not(None)
    )
    return [
        (path, str(error)) for path, error in session.execute(query.order_by(SourceEntry.path).limit(most))
    ]


def remove_some_files(session: Session, scope: Scope, source_id: str, *, most: int = 50) -> list[str] | None:
    """For a source that is to go with its files: deletes some. Returns blobs to remove after the commit, or None
    when no file is left.
    """
    get_source(session, scope, source_id).is_paused = True
    entries = session.scalars(select(SourceEntry).where(SourceEntry.source_id == source_id).limit(most)).all()
    if not entries:
        return None
    orphans: list[str] = []
    for entry in entries:
        if entry.file_id is not None:
            orphans += remove_file(session, scope, entry.file_id)
        session.delete(entry)
    return orphans


def remove_source(session: Session, scope: Scope, source_id: str) -> None:
    """Files that are still there stay, as ordinary ones."""
    session.delete(get_source(session, scope, source_id))
    record(session, DeletedKind.SOURCE, source_id, scope.tenant_id)


def remove_file(session: Session, scope: Scope, file_id: str) -> list[str]:
    """A file of a source, if nobody has deleted it before, and the older version that answers in its place.

    Returns blobs to remove after the commit.
    """
    older = select(Document.file_id).where(
        Document.tenant_id == scope.tenant_id,
        Document.id.in_(select(Document.replaces_id).where(Document.file_id == file_id)),
    )
    orphans: list[str] = []
    for each in [file_id, *session.scalars(older)]:
        with suppress(FileMissing):
            orphans += delete_file(session, scope, each)
    return orphans


def scope_of(source: Source) -> Scope:
    """What a sweep may do: an admin added the source."""
    return within(source.tenant_id, source.id)
