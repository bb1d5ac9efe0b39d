"""Sessions of the console: a sealed cookie that names a key and holds none, its end, and what guards its requests."""

import base64
import binascii
import hmac
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated

import orjson
from fastapi import Depends, Request, Response
from sqlalchemy import exists, select

from app.access.auth import KeyInvalid, NotAllowed
from app.errors import Forged
from app.routes.caller import admit, noted, services_of
from app.services import Services
from ingest.sealing import SealBroken, Sealer
from retrieval import audit, ledger
from retrieval.scope import Scope
from retrieval.tables import AuditEvent, DeletedKind, Deletion, Key, Role, new_id
from retrieval.together import in_thread

COOKIE = "strongroom_session"
PATH = "/console"
"""The cookie goes nowhere else: the API takes keys alone."""
LASTS_S = 12 * 3600
SEALED_FOR = "console session"
CSRF_HEADER = "X-CSRF-Token"
UNSAFE = frozenset(("POST", "PUT", "PATCH", "DELETE"))


@dataclass(frozen=True)
class Session:
    """What the cookie holds."""

    id: str
    key_id: str
    ends_at: float
    since: float | None
    """The key's `sessions_since` when it began: once the key has another, this one is over."""


@dataclass(frozen=True)
class Visitor:
    """Who is signed in. `csrf` is what requests that change something bring along."""

    scope: Scope
    session_id: str
    csrf: str


async def sign_in(
    services: Services, scope: Scope, request: Request, response: Response, *, lasts_s: float = LASTS_S
) -> None:
    """The reply's cookie makes its bearer a visitor with this key's scope, until one of both ends. Nothing is stored,
    so that a full disk keeps nobody out.
    """
    since = await in_thread(_sessions_since, services, scope.key_id)
    session = Session(new_id("session_"), scope.key_id, time.time() + lasts_s, since)
    services.audit.note(scope, AuditEvent.SESSION_BEGUN, (session.id,))
    sealed = services.sealer.seal(orjson.dumps(session).decode(), owner=SEALED_FOR)
    response.set_cookie(
        COOKIE,
        base64.urlsafe_b64encode(sealed).decode(),
        max_age=int(lasts_s),
        path=PATH,
        secure=is_over_tls(services, request),
        httponly=True,
        samesite="strict",
    )


def sign_out(services: Services, visitor: Visitor, response: Response) -> None:
    """The ledger says that it is over, so that a copy of the cookie opens nothing, also after a restore."""
    with services.database.write() as session:
        ledger.record(session, DeletedKind.SESSION, visitor.session_id, visitor.scope.tenant_id)
        audit.record(session, AuditEvent.SESSION_ENDED, visitor.session_id, scope=visitor.scope)
    forget(response)


def forget(response: Response) -> None:
    response.delete_cookie(COOKIE, path=PATH, httponly=True, samesite="strict")


async def visitor_of(request: Request) -> Visitor:
    """Raises KeyInvalid, Forged."""
    services = await services_of(request)
    cookie = request.cookies.get(COOKIE, "")
    session = _opened(services.sealer, cookie)
    if time.time() > session.ends_at:
        raise KeyInvalid
    csrf = hmac.new(cookie.encode(), b"csrf", sha256).hexdigest()
    if request.method in UNSAFE:
        check_origin(request)
        if not hmac.compare_digest(request.headers.get(CSRF_HEADER, "").encode(), csrf.encode()):
            raise Forged
    scope = await in_thread(_scope_of, services, session)
    visitor = Visitor(await noted(request, services, scope), session.id, csrf)
    request.state.visitor = visitor  # For the page that tells of an error.
    return visitor


async def asking_visitor_of(request: Request) -> Visitor:
    """Of what takes the machine's time, and so counts as a request of the API does: the pages around it are free.

    Raises KeyInvalid, Forged, QuotaExceeded.
    """
    visitor = await visitor_of(request)
    await admit(request, await services_of(request), visitor.scope)
    return visitor


async def writing_visitor_of(request: Request) -> Visitor:
    """Raises KeyInvalid, Forged, NotAllowed."""
    visitor = await visitor_of(request)
    if not visitor.scope.may_write:
        raise NotAllowed(Role.WRITER)
    return visitor


async def admin_of(request: Request) -> Visitor:
    """Raises KeyInvalid, Forged, NotAllowed."""
    visitor = await visitor_of(request)
    if not visitor.scope.is_admin:
        raise NotAllowed(Role.ADMIN)
    return visitor


def check_origin(request: Request) -> None:
    """Browsers say where a request was made. Raises Forged for another site, or one beside this."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Forged
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise Forged


def is_over_tls(services: Services, request: Request) -> bool:
    return request.url.scheme == "https" or services.settings.public_url.startswith("https://")


def _sessions_since(services: Services, key_id: str) -> float | None:
    with services.storage.database.read() as read:
        return read.scalar(select(Key.sessions_since).where(Key.id == key_id))


def _scope_of(services: Services, session: Session) -> Scope:
    """Raises KeyInvalid."""
    is_over = exists().where(Deletion.kind == DeletedKind.SESSION, Deletion.object_id == session.id)
    with services.storage.database.read() as read:
        key = read.scalar(select(Key).where(Key.id == session.key_id, ~is_over))
        if key is None or key.sessions_since != session.since:
            raise KeyInvalid
        return services.keys.scope_of_row(read, key)


def _opened(sealer: Sealer, cookie: str) -> Session:
    """Raises KeyInvalid."""
    try:
        sealed = base64.urlsafe_b64decode(cookie)
        return Session(**orjson.loads(sealer.open(sealed, owner=SEALED_FOR)))
    except (SealBroken, binascii.Error, ValueError, TypeError) as error:
        # TypeError: one from before this version.
        raise KeyInvalid from error


SignedIn = Annotated[Visitor, Depends(visitor_of)]
SignedInToAsk = Annotated[Visitor, Depends(asking_visitor_of)]
SignedInWriter = Annotated[Visitor, Depends(writing_visitor_of)]
SignedInAdmin = Annotated[Visitor, Depends(admin_of)]
