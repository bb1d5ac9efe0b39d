"""/v1/keys: the API keys of the caller's tenant, for its admins. A key's text is told once."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import Field, StringConstraints
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.access.auth import KeyMissing, NewKey, find_key, put_in_groups
from app.access.quotas import Quotas
from app.errors import BadRequest
from app.routes.body import Body
from app.routes.caller import Admin, UseServices
from app.routes.documents import NO_NUL
from app.routes.groups import Group
from app.routes.listing import Page, listing, one_more
from retrieval import audit
from retrieval.catalog import page_of
from retrieval.scope import Scope
from retrieval.tables import AuditEvent, Key, Role

router = APIRouter(prefix="/v1/keys")

LONGEST_GRACE_S = 30 * 86_400

KeyId = Annotated[str, Path(pattern="^key_[A-Za-z0-9_-]{1,64}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=NO_NUL)]
KeyGroups = Annotated[list[Group], Field(max_length=64)]


class CreateKey(Body):
    name: Name
    role: Role = Field(Role.READER, strict=False)
    groups: KeyGroups = Field(default_factory=list)
    expires_at: int | None = None
    """Seconds since 1970; null is never."""
    quotas: Quotas | None = None


class ModifyKey(Body):
    """What is left out stays. A key's role stays: make another key."""

    name: Name | None = None
    groups: KeyGroups | None = None
    expires_at: int | None = None
    quotas: Quotas | None = None


class RotateKey(Body):
    grace_seconds: int = Field(0, ge=0, le=LONGEST_GRACE_S)
    """How long the text that it had is taken beside the new one."""


@router.post("")
def create_key(body: CreateKey, services: UseServices, scope: Admin) -> dict[str, Any]:
    """The only reply that has its text, as `value`."""
    now = time.time()
    new = NewKey(body.name, body.role, body.groups, _later(body.expires_at, now), _told(body.quotas))
    with services.database.write() as session:
        key, text = services.keys.add_to(session, scope.tenant_id, new, now=now, by=scope)
        return {**_shape(key), "value": text}


@router.get("")
def list_keys(services: UseServices, scope: Admin, page: Page) -> dict[str, Any]:
    """Without those that were revoked."""
    with services.database.read() as session:
        rows = page_of(
            session,
            select(Key).where(Key.tenant_id == scope.tenant_id, Key.revoked_at.is_(None)),
            one_more(page),
            created_at=Key.created_at,
            row_id=Key.id,
            public_id=Key.id,
        )
        return listing(rows, page, _shape)


@router.get("/{key_id}")
def get_key(key_id: KeyId, services: UseServices, scope: Admin) -> dict[str, Any]:
    with services.database.read() as session:
        return _shape(find_key_of_tenant(session, scope, key_id))


@router.post("/{key_id}")
def modify_key(key_id: KeyId, body: ModifyKey, services: UseServices, scope: Admin) -> dict[str, Any]:
    sent = body.model_fields_set
    with services.database.write() as session:
        key = find_key_of_tenant(session, scope, key_id)
        if body.name is not None:
            key.name = body.name
        if "groups" in sent:
            put_in_groups(key, body.groups or ())
        if "expires_at" in sent:
            key.expires_at = _later(body.expires_at, time.time())
        if "quotas" in sent:
            key.quotas = _told(body.quotas)
        audit.record(session, AuditEvent.KEY_CHANGED, key_id, scope=scope)
        return _shape(key)


@router.post("/{key_id}/rotate")
def rotate_key(key_id: KeyId, body: RotateKey, services: UseServices, scope: Admin) -> dict[str, Any]:
    """Another text, told in this reply alone. Id, documents and links of the key stay."""
    with services.database.write() as session:
        key = find_key_of_tenant(session, scope, key_id)
        text = services.keys.rotate(session, key, now=time.time(), grace_s=body.grace_seconds, by=scope)
        return {**_shape(key), "value": text}


@router.delete("/{key_id}")
def delete_key(key_id: KeyId, services: UseServices, scope: Admin) -> dict[str, Any]:
    """It is refused within a second, everywhere, and so are its links; what it made stays."""
    with services.database.write() as session:
        find_key_of_tenant(session, scope, key_id)
        services.keys.revoke(session, key_id, now=time.time(), by=scope)
    return {"id": key_id, "object": "key.deleted", "deleted": True}


def find_key_of_tenant(session: Session, scope: Scope, key_id: str) -> Key:
    """One that is not revoked. Raises KeyMissing."""
    key = find_key(session, key_id)
    if key.tenant_id != scope.tenant_id or key.revoked_at is not None:
        raise KeyMissing(key_id)
    return key


def _later(expires_at: int | None, now: float) -> float | None:
    if expires_at is not None and expires_at <= now:
        raise BadRequest("expires_at must lie ahead; to end a key now, delete it.", param="expires_at")
    return expires_at


def _told(quotas: Quotas | None) -> dict[str, int] | None:
    return quotas.model_dump(exclude_none=True) if quotas is not None else None


def _shape(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "object": "key",
        "name": key.name,
        "role": key.role.value,
        "groups": key.groups,
        "issuer": key.issuer,
        "quotas": key.quotas,
        "created_at": int(key.created_at),
        "expires_at": int(key.expires_at) if key.expires_at is not None else None,
        "old_value_until": int(key.old_until) if key.old_until is not None else None,
        "last_used_at": int(key.used_at) if key.used_at is not None else None,
    }
