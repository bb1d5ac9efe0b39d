"""The console's way in: `/`, signing in by key or at the issuer, signing out, its files, and what browsers refused."""

import asyncio
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated
from urllib.parse import urlsplit

import orjson
from fastapi import APIRouter, Form, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse

from app.access.auth import KeyInvalid, find_key
from app.access.issuer_sign_in import BEGUN_FOR_S, Begun, IssuerSignIn, SignInRefused
from app.console.session import LASTS_S, SignedIn, check_origin, forget, is_over_tls, sign_in, sign_out
from app.console.views import REPORTS, SIGN_IN, ConsoleRoute, views_of
from app.routes.caller import Reader, UseServices
from app.services import Services
from ingest.sealing import SealBroken
from retrieval.scope import Scope
from retrieval.together import in_thread

router = APIRouter(include_in_schema=False, route_class=ConsoleRoute)

ASK = "/console"
WRONG_KEY_WAIT_S = 0.5
BEGUN = "strongroom_sign_in"
"""The cookie of a sign-in at the issuer, until it is finished."""
SEALED_FOR = "console sign-in"
SIGN_OUT = "/console/sign-out"
VOUCHED = "strongroom_vouched"
"""The cookie of who signed in at the issuer: what the issuer signed, by which it signs that person out again."""
VOUCHED_SEALED_FOR = "console sign-out"
LONGEST_ID_TOKEN = 2_800
"""Sealed, a longer one makes a cookie that browsers drop. Without it the issuer asks who signs out."""


@router.get("/")
async def home() -> Response:
    return RedirectResponse(ASK, 303)


@router.get(SIGN_IN)
async def sign_in_page(request: Request, once: Annotated[str, Query(max_length=200)] = "") -> Response:
    # Only shown: a browser that looks ahead must not use the link up.
    return _sign_in_page(request, once=once)


@router.post(SIGN_IN)
async def enter(
    request: Request,
    services: UseServices,
    key: Annotated[str, Form(max_length=200)] = "",
    once: Annotated[str, Form(max_length=200)] = "",
) -> Response:
    check_origin(request)
    try:
        scope = await (_invited(request, services, once) if once else services.keys.scope_of(key.strip()))
    except KeyInvalid:
        await asyncio.sleep(WRONG_KEY_WAIT_S)
        _note_refusal(request, services, "invalid_api_key")
        return _sign_in_page(request, wrong_key=True, status=401)
    reply = RedirectResponse(ASK, 303)
    _forget_issuer(reply)
    await sign_in(services, scope, request, reply)
    return reply


@router.get(f"{SIGN_IN}/begin")
async def go_to_issuer(request: Request, services: UseServices) -> Response:
    """The browser keeps what was begun, so that nobody else's sign-in can be finished in it."""
    begun, address = _at_issuer(services).begin()
    sealed = services.sealer.seal(orjson.dumps(begun).decode(), owner=SEALED_FOR)
    reply = RedirectResponse(address, 303)
    reply.set_cookie(
        BEGUN,
        urlsafe_b64encode(sealed).decode(),
        max_age=int(BEGUN_FOR_S),
        path=SIGN_IN,
        secure=is_over_tls(services, request),
        httponly=True,
        # Not strict: it is the issuer's page that sends the browser back.
        samesite="lax",
    )
    return reply


@router.get(f"{SIGN_IN}/return")
async def come_back(request: Request, services: UseServices) -> Response:
    """From the issuer. It leads to our first page and nowhere else."""
    try:
        told = dict(request.query_params)
        admitted = await _at_issuer(services).finish(_begun(request, services), told)
    except SignInRefused as refused:
        _note_refusal(request, services, "sign_in_refused")
        reply = _sign_in_page(request, why=str(refused), status=401)
    else:
        # Not a redirect: browsers keep a strict cookie back from what another site's page led to.
        reply = views_of(request).page("signed_in.html", None)
        minutes = services.settings.oidc.session_minutes
        vouched_s = minutes * 60.0 if minutes else admitted.until - time.time()
        lasts_s = min(vouched_s, LASTS_S)
        await sign_in(services, admitted.scope, request, reply, lasts_s=lasts_s)
        _remember(services, request, reply, admitted.id_token, lasts_s)
    reply.delete_cookie(BEGUN, path=SIGN_IN, httponly=True, samesite="lax")
    return reply


def _at_issuer(services: Services) -> IssuerSignIn:
    if services.issuer_sign_in is None:
        raise HTTPException(404)
    return services.issuer_sign_in


def _remember(services: Services, request: Request, reply: Response, id_token: str, lasts_s: float) -> None:
    """What signs the person out at the issuer again, where the owner named an address for that."""
    if not services.settings.oidc.end_session_endpoint:
        return
    if len(id_token) > LONGEST_ID_TOKEN:
        id_token = ""
    sealed = services.sealer.seal(id_token, owner=VOUCHED_SEALED_FOR)
    reply.set_cookie(
        VOUCHED,
        urlsafe_b64encode(sealed).decode(),
        max_age=int(lasts_s),
        path=SIGN_OUT,
        secure=is_over_tls(services, request),
        httponly=True,
        samesite="strict",
    )


def _forget_issuer(reply: Response) -> None:
    reply.delete_cookie(VOUCHED, path=SIGN_OUT, httponly=True, samesite="strict")


def _left(request: Request, services: Services) -> Response:
    """To the issuer, if it was there that this browser signed in; else to the sign-in."""
    reply = Response(status_code=204, headers={"HX-Redirect": SIGN_IN})
    if VOUCHED not in request.cookies or services.issuer_sign_in is None:
        return reply
    _forget_issuer(reply)
    try:
        sealed = urlsafe_b64decode(request.cookies[VOUCHED])
        address = services.issuer_sign_in.end(services.sealer.open(sealed, owner=VOUCHED_SEALED_FOR))
    except (SealBroken, ValueError):
        return reply
    if address is not None:
        reply.headers["HX-Redirect"] = address
    return reply


def _begun(request: Request, services: Services) -> Begun | None:
    try:
        sealed = urlsafe_b64decode(request.cookies.get(BEGUN, ""))
        return Begun(**orjson.loads(services.sealer.open(sealed, owner=SEALED_FOR)))
    except (SealBroken, ValueError):
        return None


def _sign_in_page(
    request: Request, *, once: str = "", wrong_key: bool = False, why: str = "", status: int = 200
) -> Response:
    """`why` somebody was not let in by the issuer."""
    oidc = request.app.state.services.settings.oidc
    return views_of(request).page(
        "sign_in.html",
        None,
        once=once,
        wrong_key=wrong_key,
        why=why,
        issuer=urlsplit(oidc.issuer).hostname if oidc.client_id else None,
        status=status,
    )


def _note_refusal(request: Request, services: Services, reason: str) -> None:
    services.audit.refused(None, reason, request.client.host if request.client is not None else "none")


@router.post("/console/invitations")
async def invite(request: Request, services: UseServices, scope: Reader) -> dict[str, str]:
    """A link that signs in once with the key that asks for it. It is asked as the API is, with the key itself."""
    code = request.app.state.console_invitations.make(scope.key_id)
    return {"url": f"{services.settings.public_url}{SIGN_IN}?once={code}"}


async def _invited(request: Request, services: Services, once: str) -> Scope:
    """Raises KeyInvalid."""
    key_id = request.app.state.console_invitations.take(once)
    if key_id is None:
        raise KeyInvalid
    return await in_thread(services.keys.scope_of_id, key_id)


@router.post(SIGN_OUT)
def leave(request: Request, services: UseServices, visitor: SignedIn) -> Response:
    reply = _left(request, services)
    sign_out(services, visitor, reply)
    return reply


@router.post(f"{SIGN_OUT}/everywhere")
def leave_everywhere(request: Request, services: UseServices, visitor: SignedIn) -> Response:
    """All sessions of the visitor's key, on whatever machine."""
    with services.database.write() as session:
        key = find_key(session, visitor.scope.key_id)
        services.keys.end_sessions(session, key, now=time.time(), by=visitor.scope)
    reply = _left(request, services)
    forget(reply)
    return reply


@router.get("/console/static/{name}")
async def static(name: str, request: Request) -> Response:
    asset = views_of(request).assets.get(name)
    if asset is None:
        raise HTTPException(404)
    headers = {"Cache-Control": "no-cache", "ETag": asset.tag, "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == asset.tag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(asset.compressed, media_type=asset.media_type, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)


@router.post(REPORTS)
async def report(services: UseServices) -> Response:
    """What it says is not read: it may quote documents."""
    services.metrics.count_refused_by_browser()
    return Response(status_code=204)
