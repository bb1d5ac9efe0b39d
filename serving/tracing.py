"""Spans of a request on its way through the roles, for those who collect traces: names and numbers, never text.

Without an exporter (app/observing/tracing.py) they are objects that record nothing.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TRACER = trace.get_tracer("strongroom")
# Not baggage, which may be anything that a client wrote.
_PROPAGATOR = TraceContextTextMapPropagator()
LOOKED_AT = frozenset(("/health", "/ready", "/metrics"))
"""Asked every few seconds by what watches over the roles."""
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


def traceparent() -> Mapping[str, str]:
    """The headers that make what another process does part of this trace; none while nothing is traced."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers)
    return headers


def part(name: str) -> Span:
    """A part of what is recorded now, to be ended by the caller; else a span that does nothing, at no cost."""
    return TRACER.start_span(name) if trace.get_current_span().is_recording() else trace.INVALID_SPAN


@contextmanager
def span(name: str, **attributes: str | int) -> Iterator[None]:
    """What this task does inside is part of it. An error is told by its type alone: its message may quote a text."""
    with TRACER.start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield
        except BaseException as error:
            current.set_status(StatusCode.ERROR)
            current.set_attribute("error.type", type(error).__name__)
            raise


@contextmanager
def continuing(parent: str | None) -> Iterator[None]:
    """Makes what this task does inside part of a trace that began elsewhere; `parent` is a traceparent."""
    if parent is None:
        yield
        return
    token = attach(_PROPAGATOR.extract({"traceparent": parent}))
    try:
        yield
    finally:
        detach(token)


class TraceRequests:
    """ASGI middleware around a role: one span a request, named by the route's pattern."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in LOOKED_AT:
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        current = TRACER.start_span(method, context=_parent(scope), kind=SpanKind.SERVER)
        # Also of a request that is not recorded, so that nothing inside it begins a trace of its own.
        token = attach(trace.set_span_in_context(current))
        try:
            if current.is_recording():
                await self._record(current, method, scope, receive, send)
            else:
                await self._app(scope, receive, send)
        finally:
            current.end()
            detach(token)

    async def _record(self, current: Span, method: str, scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                current.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    current.set_status(StatusCode.ERROR)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", None) or _pattern(scope)
            current.update_name(f"{method} {route}")
            current.set_attributes({"http.request.method": method, "http.route": route})


def _parent(scope: Scope) -> Context | None:
    """What the caller is part of, if it says so."""
    for name, value in scope["headers"]:
        if name == b"traceparent":
            return _PROPAGATOR.extract({"traceparent": value.decode("latin-1")})
    return None


def _pattern(scope: Scope) -> str:
    """Starlette's own routes do not say which they are: those of the models role have fixed paths but one."""
    first = str(scope["path"]).split("/")[1]
    return f"/{first}" if "endpoint" in scope else "none"
