"""Asks a route of this process as a client would, for work that has no client any more: the lines of a batch."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message

KEY_ID = "strongroom.key_id"
"""In the scope of such a request stands the id of the key that it is made for. No header can put it there."""


@dataclass(frozen=True)
class InsideReply:
    """A whole reply."""

    status: int
    headers: Mapping[str, str]
    """Their names in lower case."""
    body: bytes


async def ask_inside(app: ASGIApp, path: str, body: bytes, *, key_id: str) -> InsideReply:
    """Posts JSON for this key. It never departs: cancel it instead."""
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"inside"), (b"content-type", b"application/json")],
        "client": None,
        "server": None,
        "state": {},
        KEY_ID: key_id,
    }
    waiting = [{"type": "http.request", "body": body, "more_body": False}]
    start: Message = {}
    parts: list[bytes] = []

    async def receive() -> Message:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    headers = {name.decode().lower(): value.decode("latin-1") for name, value in start["headers"]}
    return InsideReply(start["status"], headers, b"".join(parts))
