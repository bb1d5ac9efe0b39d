"""When collections expire, and what keeps them: each search counts their days anew."""

from collections.abc import Sequence

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from retrieval.access import readable_collections
from retrieval.scope import Scope
from retrieval.tables import Collection

DAY_S = 86_400
RENEW_AFTER_S = 60.0
"""`last_active_at` is this exact, so that a search in a row of many writes nothing."""


class CollectionExpired(Exception):
    """It was not used for longer than it was made to last."""

    def __init__(self, collection_id: str) -> None:
        super().__init__(
            f"The vector store '{collection_id}' has expired and cannot be searched. "
            "Give it another expires_after to use it again."
        )


def expires_at(collection: Collection) -> float | None:
    if collection.expires_after_days is None:
        return None
    return collection.last_active_at + collection.expires_after_days * DAY_S


def is_expired(collection: Collection, *, now: float) -> bool:
    ends_at = expires_at(collection)
    return ends_at is not None and ends_at <= now


def renew(session: Session, scope: Scope, collection_ids: Sequence[str] | None, *, now: float) -> None:
    """Notes that these collections, or all of the tenant, are in use. What has expired stays so."""
    query = select(Collection.id).where(
        readable_collections(scope),
        Collection.last_active_at < now - RENEW_AFTER_S,
        or_(
            Collection.expires_after_days.is_(None),
            Collection.last_active_at + Collection.expires_after_days * DAY_S > now,
        ),
    )
    if collection_ids is not None:
        query = query.where(Collection.id.in_(collection_ids))
    # One that ingestion holds is renewed the next time: nothing may wait for this.
    ids = session.scalars(query.order_by(Collection.id).with_for_update(skip_locked=True)).all()
    if ids:
        session.execute(update(Collection).where(Collection.id.in_(ids)).values(last_active_at=now))
