"""Documents of a collection as a table shows them: narrowed by status and name, sorted, one page after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select, tuple_
from sqlalchemy.orm import Session

from retrieval.access import readable_documents
from retrieval.catalog import get_collection
from retrieval.scope import Scope
from retrieval.tables import Document, DocumentStatus, File


class Sort(StrEnum):
    NEWEST = "newest"
    OLDEST = "oldest"
    NAME = "name"
    LARGEST = "largest"


@dataclass(frozen=True)
class Listed:
    """A document, and what of its file is shown."""

    document: Document
    filename: str
    media_type: str
    size_bytes: int


@dataclass(frozen=True)
class Wanted:
    """Which documents. `after` is the place of the last row of the page before, as `place_of` tells it."""

    status: DocumentStatus | None = None
    named: str = ""
    """Somewhere in the file's name, whatever its case."""
    sort: Sort = Sort.NEWEST
    after: tuple[Any, int] | None = None


def list_sorted(
    session: Session, scope: Scope, collection_id: str, wanted: Wanted, *, limit: int
) -> list[Listed]:
    """By key, not by offset: a page far down costs what the first does. Raises CollectionMissing."""
    get_collection(session, scope, collection_id)
    query = _listed(scope, collection_id)
    if wanted.status is not None:
        query = query.where(Document.status == wanted.status)
    if wanted.named:
        query = query.where(func.lower(File.filename).contains(wanted.named.lower(), autoescape=True))
    key, rises = _KEYS[wanted.sort]
    if wanted.after is not None:
        place = tuple_(key, Document.id)
        after = tuple_(*wanted.after)
        query = query.where(place > after if rises else place < after)
    order = (key, Document.id) if rises else (key.desc(), Document.id.desc())
    return [Listed(*row) for row in session.execute(query.order_by(*order).limit(limit))]


def list_named(session: Session, scope: Scope, collection_id: str, file_ids: Sequence[str]) -> list[Listed]:
    """Those of these files that are there."""
    query = _listed(scope, collection_id).where(Document.file_id.in_(file_ids))
    return [Listed(*row) for row in session.execute(query)]


def _listed(scope: Scope, collection_id: str) -> Select[Document, str, str, int]:
    return (
        select(Document, File.filename, File.media_type, File.size_bytes)
        .join(File, File.id == Document.file_id)
        .where(readable_documents(scope), Document.collection_id == collection_id)
    )


def place_of(listed: Listed, sort: Sort) -> tuple[Any, int]:
    match sort:
        case Sort.NEWEST | Sort.OLDEST:
            return listed.document.created_at, listed.document.id
        case Sort.NAME:
            return listed.filename.lower(), listed.document.id
        case Sort.LARGEST:
            return listed.size_bytes, listed.document.id


_KEYS: dict[Sort, tuple[ColumnElement[Any], bool]] = {
    Sort.NEWEST: (Document.created_at.expression, False),
    Sort.OLDEST: (Document.created_at.expression, True),
    Sort.NAME: (func.lower(File.filename), True),
    Sort.LARGEST: (File.size_bytes.expression, False),
}
"""What a list is sorted by, and whether it rises."""
