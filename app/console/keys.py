"""Keys in the console: made, changed, given another text, signed out, kept from keeping anything, and revoked."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request, Response
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.access.quotas import Quotas
from app.access.retention import NONE, set_retention
from app.console.session import SignedInAdmin
from app.console.views import ConsoleRoute, fragment, is_fragment, read_groups, read_time, views_of
from app.errors import BadRequest
from app.routes.body import read_model
from app.routes.caller import UseServices
from app.routes.keys import (
    CreateKey,
    KeyId,
    ModifyKey,
    RotateKey,
    create_key,
    delete_key,
    find_key_of_tenant,
    modify_key,
    rotate_key,
)
from app.services import Services
from retrieval.scope import Scope
from retrieval.tables import Key, Role

router = APIRouter(prefix="/console/admin", include_in_schema=False, route_class=ConsoleRoute)

ROWS = 50
GRACES = {0: "at once", 3_600: "an hour later", 86_400: "a day later", 7 * 86_400: "a week later"}
"""When the text that a key had is no longer taken, in seconds."""


class KeyForm(BaseModel):
    """As a browser sends it: texts, which are empty where nothing was written."""

    name: str = ""
    groups: str = ""
    expires_at: str = ""
    requests_per_minute: str = ""
    input_tokens_per_minute: str = ""
    output_tokens_per_minute: str = ""
    streams: str = ""
    stored_bytes: str = ""

    def told(self) -> dict[str, Any]:
        """As the API takes it. Raises BadRequest."""
        at = read_time(self.expires_at, param="expires_at")
        written = {name: getattr(self, name).strip() for name in Quotas.model_fields}
        quotas = {name: int(text) if text.isdecimal() else text for name, text in written.items() if text}
        return {
            "name": self.name.strip(),
            "groups": read_groups(self.groups) or [],
            "expires_at": int(at) if at is not None else None,
            "quotas": quotas or None,
        }


class NewKeyForm(KeyForm):
    role: str = Role.READER


@router.get("")
def keys_page(
    request: Request,
    services: UseServices,
    visitor: SignedInAdmin,
    named: Annotated[str, Query(max_length=200)] = "",
    ended: bool = False,
    after: Annotated[str, Query(max_length=60)] = "",
) -> Response:
    """The whole page, or for htmx its table."""
    listed = _listed(services, visitor.scope, named, ended=ended, after=after)
    shown = listed[:ROWS]
    told: dict[str, Any] = {
        "keys": shown,
        "named": named,
        "ended": ended,
        "after": after,
        "next": shown[-1].id if len(listed) > ROWS else None,
        "now": time.time(),
    }
    if is_fragment(request):
        return fragment(request, "keys_table.html", visitor=visitor, **told)
    return views_of(request).page("keys.html", visitor, roles=list(Role), quotas=_QUOTAS, **told)


@router.post("/keys")
def add_key(
    request: Request, services: UseServices, visitor: SignedInAdmin, form: Annotated[NewKeyForm, Form()]
) -> Response:
    """Its text is in this reply alone."""
    asked = read_model(CreateKey, {**form.told(), "role": form.role})
    made = create_key(asked, services, visitor.scope)
    return _told_once(request, made)


@router.get("/keys/{key_id}")
def key_page(key_id: KeyId, request: Request, services: UseServices, visitor: SignedInAdmin) -> Response:
    with services.database.read() as session:
        key = find_key_of_tenant(session, visitor.scope, key_id)
    told: dict[str, Any] = {"key": key, "quotas": _QUOTAS, "graces": GRACES, "now": time.time()}
    return views_of(request).page("key.html", visitor, obstacles=services.retention.obstacles(), **told)


@router.post("/keys/{key_id}")
def change_key(
    key_id: KeyId, services: UseServices, visitor: SignedInAdmin, form: Annotated[KeyForm, Form()]
) -> Response:
    told = form.told()
    with services.database.read() as session:
        key = find_key_of_tenant(session, visitor.scope, key_id)
    if key.expires_at is not None and told["expires_at"] == int(key.expires_at) // 60 * 60:
        del told["expires_at"]  # As it was shown, to the minute: it was not changed.
    if key.issuer is not None:
        del told["groups"]  # Those are the issuer's to tell.
    modify_key(key_id, read_model(ModifyKey, told), services, visitor.scope)
    return Response(headers={"HX-Refresh": "true"})


@router.post("/keys/{key_id}/rotate")
def give_another_text(
    key_id: KeyId,
    request: Request,
    services: UseServices,
    visitor: SignedInAdmin,
    grace_seconds: Annotated[int, Form()] = 0,
) -> Response:
    """The new text is in this reply alone."""
    asked = read_model(RotateKey, {"grace_seconds": grace_seconds})
    return _told_once(request, rotate_key(key_id, asked, services, visitor.scope))


@router.post("/keys/{key_id}/sign-out")
def sign_out_everywhere(key_id: KeyId, services: UseServices, visitor: SignedInAdmin) -> Response:
    with services.database.write() as session:
        key = find_key_of_tenant(session, visitor.scope, key_id)
        services.keys.end_sessions(session, key, now=time.time(), by=visitor.scope)
    return Response(headers={"HX-Refresh": "true"})


@router.post("/keys/{key_id}/retention")
def change_retention(
    key_id: KeyId, services: UseServices, visitor: SignedInAdmin, retention: Annotated[str, Form()] = ""
) -> Response:
    keeps_nothing = retention == NONE
    if keeps_nothing:
        must_be_promised(services)
    with services.database.write() as session:
        key = find_key_of_tenant(session, visitor.scope, key_id)
        set_retention(session, key, keeps_nothing=keeps_nothing, by=visitor.scope)
    return Response(headers={"HX-Refresh": "true"})


@router.delete("/keys/{key_id}")
def revoke_key(key_id: KeyId, services: UseServices, visitor: SignedInAdmin) -> Response:
    delete_key(key_id, services, visitor.scope)
    return Response(headers={"HX-Redirect": "/console/admin"})


def must_be_promised(services: Services) -> None:
    """Else all that the key asks would be refused, from here on. Raises BadRequest."""
    if obstacles := services.retention.obstacles():
        raise BadRequest(
            f"Zero data retention cannot be promised here: {' '.join(obstacles)}", param="retention"
        )


def _listed(services: Services, scope: Scope, named: str, *, ended: bool, after: str) -> list[Key]:
    """One more than a page has, the newest first."""
    query = select(Key).where(Key.tenant_id == scope.tenant_id)
    query = query.where(Key.revoked_at.is_not(None) if ended else Key.revoked_at.is_(None))
    if named:
        query = query.where(Key.name.icontains(named, autoescape=True))
    with services.database.read() as session:
        if after:
            query = query.where(_stands_after(session, scope, after))
        rows = session.scalars(query.order_by(Key.created_at.desc(), Key.id.desc()).limit(ROWS + 1))
        return list(rows)


def _stands_after(session: Session, scope: Scope, key_id: str) -> Any:
    last = session.scalar(select(Key).where(Key.id == key_id, Key.tenant_id == scope.tenant_id))
    if last is None:
        raise BadRequest("This list cannot be shown so. Begin with its first page.", param="after")
    is_as_old = (Key.created_at == last.created_at) & (Key.id < last.id)
    return (Key.created_at < last.created_at) | is_as_old


def _told_once(request: Request, made: dict[str, Any]) -> Response:
    reply = fragment(request, "new_key.html", key=made)
    reply.headers["HX-Trigger"] = "keys-changed"
    return reply


_QUOTAS = {
    "requests_per_minute": "Requests a minute",
    "input_tokens_per_minute": "Tokens read a minute",
    "output_tokens_per_minute": "Tokens written a minute",
    "streams": "Streams at a time",
    "stored_bytes": "Bytes of files kept",
}
