"""The id of the request that a task works for: in the log lines of each role that has a part in it."""

from collections.abc import Mapping
from contextvars import ContextVar

from starlette.types import ASGIApp, Receive, Scope, Send

HEADER = "x-request-id"
LONGEST = 128

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)


def request_id_header() -> Mapping[str, str]:
    """For what another role is asked on behalf of a request; none where there is none."""
    request_id = REQUEST_ID.get()
    return {} if request_id is None else {HEADER: request_id}


class TakeRequestIds:
    """ASGI middleware around a role that is asked by ours alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for name, value in scope.get("headers", ()):
            if name == HEADER.encode():
                REQUEST_ID.set(value.decode("latin-1")[:LONGEST])
        await self._app(scope, receive, send)
