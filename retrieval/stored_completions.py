"""Every query on stored chat completions. Each takes the caller's scope, and sees nothing outside it.

Errors, beside those of the catalog:
    CompletionMissing       (NotFound)
"""

from collections.abc import Collection, Mapping

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import Session

from retrieval.access import readable_answers, readable_files
from retrieval.catalog import NotFound, PageRequest, page_of
from retrieval.ledger import record
from retrieval.scope import Scope
from retrieval.tables import DeletedKind, File, StoredCompletion, StoredCompletionFile


class CompletionMissing(NotFound):
    kind = "stored chat completion"


def add_completion(
    session: Session, scope: Scope, completion: StoredCompletion, *, file_ids: Collection[str]
) -> bool:
    """False, and nothing is stored, when one of the files it was written from was deleted meanwhile."""
    # Locked, so that a deletion of one of them waits, and then takes this with it.
    present = session.scalars(
        select(File.id)
        .where(readable_files(scope), File.id.in_(file_ids))
        .order_by(File.id)
        .with_for_update(read=True)
    ).all()
    if len(present) < len(set(file_ids)):
        return False
    session.add(completion)
    session.flush()
    session.add_all(StoredCompletionFile(completion_id=completion.id, file_id=file_id) for file_id in present)
    return True


def get_completion(session: Session, scope: Scope, completion_id: str) -> StoredCompletion:
    completion = session.scalar(
        select(StoredCompletion).where(_readable(scope), StoredCompletion.id == completion_id)
    )
    if completion is None:
        raise CompletionMissing(completion_id)
    return completion


def list_completions(
    session: Session,
    scope: Scope,
    page: PageRequest,
    *,
    model: str | None = None,
    attributes: Mapping[str, str] | None = None,
) -> list[StoredCompletion]:
    """Those of a model, and with all these attributes."""
    query = select(StoredCompletion).where(_readable(scope))
    if model is not None:
        query = query.where(StoredCompletion.model == model)
    for key, value in (attributes or {}).items():
        query = query.where(_has(session, key, value))
    return page_of(
        session,
        query,
        page,
        created_at=StoredCompletion.created_at,
        row_id=StoredCompletion.id,
        public_id=StoredCompletion.id,
    )


def _has(session: Session, key: str, value: str) -> ColumnElement[bool]:
    """In SQLite by json_each, which takes a key as it is. A path would have to be put together and quoted."""
    if session.get_bind().dialect.name != "sqlite":
        is_so: ColumnElement[bool] = StoredCompletion.attributes[key].as_string() == value
        return is_so
    attribute = func.json_each(StoredCompletion.attributes).table_valued("key", "value")
    there = select(attribute.c.key).where(attribute.c.key == key, attribute.c.value == value)
    return there.correlate(StoredCompletion).exists()


def _readable(scope: Scope) -> ColumnElement[bool]:
    return and_(
        StoredCompletion.tenant_id == scope.tenant_id, readable_answers(scope, StoredCompletion.key_id)
    )


def delete_completion(session: Session, scope: Scope, completion_id: str) -> None:
    session.delete(get_completion(session, scope, completion_id))
    record(session, DeletedKind.COMPLETION, completion_id, scope.tenant_id)


def stored_before(session: Session, before: float, *, most: int) -> list[StoredCompletion]:
    """The oldest of all tenants."""
    old = select(StoredCompletion).where(StoredCompletion.created_at < before)
    ordered = old.order_by(StoredCompletion.created_at).limit(most)
    return list(session.scalars(ordered.with_for_update(skip_locked=True)))
