"""What a scope may see and change, as conditions on tables: the one place that decides. Admins see all of their tenant.

A collection may name the groups that read and that write it, a document the groups that read it. A file is read by who
may read one of its documents; in no collection, by the groups that could read it when it last was in one. What keys
wrote from documents is for the key itself and for keys with all groups that it ever held.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from sqlalchemy import ColumnElement, SQLColumnExpression, and_, exists, false, literal, or_, select, true
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Boolean

from retrieval.scope import Scope
from retrieval.tables import Collection, Document, File, Key, Role, Tenant

Condition = ColumnElement[bool]

ANSWERS_PURPOSE = "batch_output"
"""Files of this purpose hold answers that were written from documents."""


class _Shares(FunctionElement[bool]):
    """Whether two JSON lists of texts have one in common."""

    type = Boolean()
    inherit_cache = True


class _LiesIn(FunctionElement[bool]):
    """Whether all texts of a JSON list stand in a second one."""

    type = Boolean()
    inherit_cache = True


def readable_collections(scope: Scope) -> Condition:
    return and_(Collection.tenant_id == scope.tenant_id, _collection_is_open_to(scope))


def readable_documents(scope: Scope) -> Condition:
    """In collections that it may read."""
    if scope.is_admin:
        return Document.tenant_id == scope.tenant_id
    # Asked only of those that name groups, by their index: nearly always there is none.
    hidden = select(Collection.id).where(
        Collection.tenant_id == scope.tenant_id, ~_collection_is_open_to(scope)
    )
    return and_(
        Document.tenant_id == scope.tenant_id,
        or_(Document.readers.is_(None), _shares(Document.readers, scope)),
        Document.collection_id.not_in(hidden),
    )


def readable_files(scope: Scope) -> Condition:
    of_tenant = File.tenant_id == scope.tenant_id
    if scope.is_admin:
        return of_tenant
    is_in_one = exists().where(Document.file_id == File.id).correlate(File)
    is_read_in_one = exists().where(Document.file_id == File.id, readable_documents(scope)).correlate(File)
    was_read = or_(File.readers.is_(None), _shares(File.readers, scope), File.key_id == scope.key_id)
    holds_answers = File.purpose == ANSWERS_PURPOSE
    return and_(
        of_tenant,
        or_(is_read_in_one, and_(~is_in_one, was_read)),
        or_(~holds_answers, readable_answers(scope, File.key_id)),
    )


def readable_answers(scope: Scope, key_id: SQLColumnExpression[Any]) -> Condition:
    """Of rows that the key with this id wrote. The caller's query names the tenant."""
    if scope.is_admin:
        return true()
    held = literal(_as_json(scope.groups))
    by_lesser = select(Key.id).where(Key.tenant_id == scope.tenant_id, _LiesIn(Key.groups_held, held))
    restricts = exists().where(Tenant.id == scope.tenant_id, Tenant.restricts)
    return or_(key_id == scope.key_id, key_id.in_(by_lesser), ~restricts)


def would_read(session: Session, key_id: str, writer: Scope) -> bool:
    """Whether what this scope writes now is for the key with that id."""
    if key_id == writer.key_id or not session.get_one(Tenant, writer.tenant_id).restricts:
        return True
    reader, author = session.get(Key, key_id), session.get(Key, writer.key_id)
    if reader is None or author is None:
        return False
    return reader.role is Role.ADMIN or set(author.groups_held) <= set(reader.groups)


def may_change(scope: Scope, collection: Collection) -> bool:
    """Of a collection that it may read, and a key whose role allows changes."""
    return scope.is_admin or collection.writers is None or not scope.groups.isdisjoint(collection.writers)


def readers_of(collection: Collection, document: Document) -> list[str] | None:
    """The groups that may read a document in its collection; None is all."""
    if collection.readers is None:
        return document.readers
    outer = {*collection.readers, *(collection.writers or ())}
    return sorted(outer if document.readers is None else outer.intersection(document.readers))


def named(groups: Sequence[str] | None) -> list[str] | None:
    """As tables hold them."""
    return None if groups is None else sorted(set(groups))


def _collection_is_open_to(scope: Scope) -> Condition:
    if scope.is_admin:
        return true()
    return or_(
        Collection.readers.is_(None), _shares(Collection.readers, scope), _shares(Collection.writers, scope)
    )


def _shares(groups: SQLColumnExpression[Any], scope: Scope) -> Condition:
    """A list that is NULL shares nothing."""
    if not scope.groups:
        return false()
    return _Shares(groups, literal(_as_json(scope.groups)))


def _as_json(groups: Iterable[str]) -> str:
    return orjson.dumps(sorted(groups)).decode()


@compiles(_Shares, "sqlite")
def _(element: _Shares, compiler: SQLCompiler, **options: Any) -> str:
    one, other = (compiler.process(each, **options) for each in element.clauses)
    return (
        f"EXISTS (SELECT 1 FROM json_each({one}) AS one JOIN json_each({other}) AS other "  # noqa: S608 - parameters
        "ON one.value = other.value)"
    )


@compiles(_Shares, "postgresql")
def _(element: _Shares, compiler: SQLCompiler, **options: Any) -> str:
    one, other = (compiler.process(each, **options) for each in element.clauses)
    return (
        f"EXISTS (SELECT 1 FROM json_array_elements_text({one}) AS one (value) "  # noqa: S608 - parameters
        f"JOIN json_array_elements_text(CAST({other} AS JSON)) AS other (value) ON one.value = other.value)"
    )


@compiles(_LiesIn, "sqlite")
def _(element: _LiesIn, compiler: SQLCompiler, **options: Any) -> str:
    inner, outer = (compiler.process(each, **options) for each in element.clauses)
    return (
        f"NOT EXISTS (SELECT 1 FROM json_each({inner}) AS one "  # noqa: S608 - parameters
        f"WHERE one.value NOT IN (SELECT value FROM json_each({outer})))"
    )


@compiles(_LiesIn, "postgresql")
def _(element: _LiesIn, compiler: SQLCompiler, **options: Any) -> str:
    inner, outer = (compiler.process(each, **options) for each in element.clauses)
    return (
        f"NOT EXISTS (SELECT 1 FROM json_array_elements_text({inner}) AS one (value) "  # noqa: S608 - parameters
        f"WHERE one.value NOT IN (SELECT json_array_elements_text(CAST({outer} AS JSON))))"
    )
