"""What each request gets before a route sees it: an id that its reply carries, safe headers, a limit to its body."""

import re
import secrets

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.request_ids import REQUEST_ID

REQUEST_ID_HEADER = b"x-request-id"
RECEIPT = b"x-strongroom-receipt"
SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Of replies that do not say otherwise: a browser that is led to one shows nothing of it and runs nothing."""
SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
"""A client's own id is echoed if it can do no harm in a log."""
MAX_BODY_BYTES = 64 * 1024 * 1024
"""OpenAI's clients may send 50 MB of pictures in one request, and base64 makes a third more of them."""
MCP_PATH = "/mcp"
MAX_MCP_BYTES = 4 * 1024 * 1024
"""The largest argument is the text of a document, which a model has written."""
STREAMED = re.compile(r"/v1/files|/v1/uploads/[^/]+/parts|/console/collections/[^/]+/upload")
"""These read a body as it comes, and have limits of their own."""


class NameRequests:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(REQUEST_ID_HEADER, b"")
        request_id = told.decode() if SANE_ID.fullmatch(told) else "req_" + secrets.token_hex(16)
        # For the reply to an error that nobody expected, which is made outside of this.
        scope.setdefault("state", {})["request_id"] = request_id

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                said = {name for name, _ in message["headers"]}
                ours = [(REQUEST_ID_HEADER, request_id.encode()), *SAFE_HEADERS]
                if (receipt := scope["state"].get("receipt")) is not None:
                    ours.append((RECEIPT, receipt.encode()))
                message["headers"] = [*message["headers"], *(each for each in ours if each[0] not in said)]
            await send(message)

        # Some requests are asked inside of another task, as the lines of a batch are.
        token = REQUEST_ID.set(request_id)
        try:
            await self._app(scope, receive, named)
        finally:
            REQUEST_ID.reset(token)


class LimitBodies:
    """ASGI middleware: 413 for a body that is longer than a route would want to hold in memory."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or STREAMED.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        limit_bytes = MAX_MCP_BYTES if scope["path"] == MCP_PATH else MAX_BODY_BYTES
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit_bytes:
                raise HTTPException(413, f"The body is longer than {limit_bytes} bytes.")
            return message

        await self._app(scope, limited, send)
