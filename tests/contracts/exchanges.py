"""Notes what an application is asked and what it answers, between it and any client."""

from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(frozen=True)
class Exchange:
    """A request and the whole of its reply."""

    method: str
    path: str
    query: str
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Recorder:
    """An ASGI application around another."""

    app: ASGIApp
    exchanges: list[Exchange] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, headers, body = 0, dict[str, str](), bytearray()

        async def noted(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = {name.decode(): value.decode("latin-1") for name, value in message["headers"]}
            else:
                body.extend(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            self.exchanges.append(
                Exchange(
                    method=scope["method"],
                    path=scope["path"],
                    query=scope["query_string"].decode("latin-1"),
                    status=status,
                    headers=headers,
                    body=bytes(body),
                )
            )
