"""/mcp: the Model Context Protocol over streamable HTTP, for applications that bring a model of their own."""

import asyncio
from contextlib import suppress

from fastapi import APIRouter, Depends, Request, Response
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.types import Message, Receive, Send
from starlette.types import Scope as AsgiScope

from app.edge.hosts import name_in, own_names
from app.edge.requests import MCP_PATH
from app.errors import WrongOrigin
from app.routes.caller import Reader, services_of
from serving.departure import Departed, unless_departed

router = APIRouter(include_in_schema=False)


async def own_page(request: Request) -> None:
    """A page of another site that asks has its origin told by the browser. Raises WrongOrigin."""
    origin = request.headers.get("origin")
    settings = (await services_of(request)).settings
    if origin is not None and name_in(origin) not in own_names(settings):
        raise WrongOrigin


@router.post(MCP_PATH, dependencies=[Depends(own_page)])
async def mcp(request: Request, _: Reader) -> Response:
    return _Handed(request.app.state.mcp, await request.body())


class _Handed(Response):
    """The protocol's own server replies. It does not notice a client that leaves, so we do."""

    def __init__(self, sessions: StreamableHTTPSessionManager, body: bytes) -> None:
        super().__init__()
        self._sessions = sessions
        self._read = [{"type": "http.request", "body": body, "more_body": False}]

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        with suppress(Departed):  # Nobody is left to be told.
            await unless_departed(receive, self._sessions.handle_request(scope, self._receive, send))

    async def _receive(self) -> Message:
        if not self._read:
            await asyncio.Event().wait()
        return self._read.pop()
