"""Pages and fragments of the console: templates, the headers that keep them harmless, errors as a person reads them."""

import logging
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app.access.auth import KeyInvalid
from app.console.assets import Assets
from app.console.scripts import ScriptsMissing
from app.console.session import Visitor
from app.errors import BadRequest

PAGES = Path(__file__).parents[1] / "pages"
SIGN_IN = "/console/sign-in"
REPORTS = "/console/reports"

HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types default",
            f"report-uri {REPORTS}",
        )
    ),
    # Not "no-referrer": with that, browsers do not tell the origin of a form either.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Whatever a document or a model says, the browser loads nothing from elsewhere and runs nothing but our files."""

log = logging.getLogger("strongroom.console")

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class ConsoleRoute(APIRoute):
    """Tells errors as pages, and sends who is not signed in to the sign-in."""

    def get_route_handler(self) -> Endpoint:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                reply = await handle(request)
            except KeyInvalid:
                reply = _to_sign_in(request)
            except Exception as error:  # noqa: BLE001 - it is logged there, and told to who asked
                reply = await _told(request, error)
            for name, value in HEADERS.items():
                reply.headers.setdefault(name, value)
            return reply

        return handled


class Views:
    """The templates, which name scripts and styles by their content."""

    def __init__(self, assets: Assets) -> None:
        self.assets = assets
        self._environment = Environment(
            loader=FileSystemLoader(PAGES / "console"),
            # All that is filled in is text of somebody's, and never markup.
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "bytes": show_bytes,
            "count": show_count,
            "when": show_when,
            "ago": show_ago,
            "moment": show_moment,
            "minute": show_minute,
            "second": show_second,
        }
        self._environment.globals |= {"assets": assets}

    def page(self, name: str, visitor: Visitor | None, *, status: int = 200, **told: Any) -> HTMLResponse:
        return HTMLResponse(self.render(name, visitor=visitor, **told), status)

    def render(self, name: str, **told: Any) -> str:
        return self._environment.get_template(name).render(**told)


def views_of(request: Request) -> Views:
    """Raises ScriptsMissing."""
    views = request.app.state.console_views
    if isinstance(views, ScriptsMissing):
        raise views
    assert isinstance(views, Views)
    return views


def fragment(request: Request, name: str, **told: Any) -> HTMLResponse:
    """A part of a page, which htmx puts in its place."""
    return HTMLResponse(views_of(request).render(name, **told))


def is_fragment(request: Request) -> bool:
    """Whether htmx asks, which puts the reply into a page."""
    return "hx-request" in request.headers


def _to_sign_in(request: Request) -> Response:
    if is_fragment(request):
        return Response(status_code=401, headers={"HX-Redirect": SIGN_IN})
    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        return RedirectResponse(SIGN_IN, 303)
    return Response("Sign in again.", 401, media_type="text/plain")


async def _told(request: Request, error: Exception) -> Response:
    """As the API tells it, made readable, on a page that leads on."""
    if isinstance(error, ScriptsMissing):
        return Response(str(error) + "\n", 503, media_type="text/plain")
    handlers = request.app.exception_handlers
    kind = next(kind for kind in type(error).__mro__ if kind in handlers)
    if kind is Exception:
        # What nobody expected: the page hides it from the server, which would log it else.
        log.error("page_failed", exc_info=error)
    reply: Response = await handlers[kind](request, error)
    message = _in_our_words(orjson.loads(reply.body)["error"]["message"])
    views = views_of(request)
    if is_fragment(request):
        headers = {"HX-Retarget": "#notice", "HX-Reswap": "innerHTML"}
        return HTMLResponse(views.render("notice.html", message=message), reply.status_code, headers)
    if "text/html" not in request.headers.get("accept", ""):
        return Response(message, reply.status_code, media_type="text/plain")
    visitor = getattr(request.state, "visitor", None)
    status = reply.status_code
    shown = views.render("error.html", visitor=visitor, status=status, title=_title(status), message=message)
    return HTMLResponse(shown, status)


def _title(status: int) -> str:
    return {403: "Not for this key", 404: "Not here", 429: "Too much at once"}.get(
        status, "This did not work"
    )


def _in_our_words(message: str) -> str:
    """Pages call things as people do, not as OpenAI's API does."""
    return message.replace("vector store file", "document").replace("vector store", "collection")


def read_time(text: str, *, param: str) -> float | None:
    """Of a form's field, in UTC; None for an empty one. Raises BadRequest."""
    if not text.strip():
        return None
    try:
        return datetime.fromisoformat(text.strip()).replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise BadRequest("Write a time as 2030-12-31T18:00, in UTC.", param=param) from error


def read_groups(text: str) -> list[str] | None:
    """By commas or spaces; None where none is named."""
    return text.replace(",", " ").split() or None


def show_bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def show_count(number: int) -> str:
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def show_when(seconds: float) -> str:
    """In UTC, as every time that the console shows."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def show_moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def show_minute(seconds: float) -> str:
    """As a field for a time has it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M")


def show_second(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def show_ago(seconds: float) -> str:
    passed = time.time() - seconds
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if passed >= length:
            return f"{passed // length:.0f} {unit} ago"
    return "just now"
