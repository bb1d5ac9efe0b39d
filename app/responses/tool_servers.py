"""Speaks to the MCP servers that the owner named, and to no other: lists and calls their tools, within limits."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import httpx2
import orjson
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, Implementation, TextContent, TextResourceContents
from mcp_types import Tool as Listed

from app.errors import BadRequest
from app.responses.items import Json
from app.settings import Settings, ToolServer

LISTING_S = 10.0
MOST_LISTED = 1_000
MOST_REPLY_BYTES = 4 * 1024 * 1024
MOST_RESULT_CHARS = 100_000
MOST_MESSAGE_CHARS = 500
HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
WRITTEN_BY_TRANSPORT = {"content-length", "content-type", "transfer-encoding", "accept", "accept-encoding"}
OF_CONNECTIONS = {"host", "connection", "keep-alive", "upgrade", "te", "trailer", "expect"}
OURS = WRITTEN_BY_TRANSPORT | OF_CONNECTIONS | {"cookie", "proxy-authorization"}
"""Headers that the transport writes, or that would change whom it speaks to."""


class ToolFailed(Exception):
    """What went wrong at a server; `told` is it in the form of OpenAI's items."""

    def __init__(self, message: str, told: Json) -> None:
        super().__init__(message)
        self.told = told

    @classmethod
    def unreachable(cls, message: str, code: int) -> "ToolFailed":
        return cls(message, {"type": "http_error", "code": code, "message": message})

    @classmethod
    def refused(cls, message: str, code: int) -> "ToolFailed":
        message = message[:MOST_MESSAGE_CHARS]
        return cls(message, {"type": "mcp_protocol_error", "code": code, "message": message})


@dataclass(frozen=True)
class Access:
    """A server, and what a client sends it beside what the owner does."""

    server: ToolServer
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def access_to(
    settings: Settings,
    label: str,
    *,
    url: str | None,
    authorization: str | None,
    headers: Mapping[str, str] | None,
    at: str,
) -> Access:
    """By its address if one is given, as labels are the client's own then. Raises BadRequest."""
    servers = settings.tools.servers
    if url is None:
        found = next((each for each in servers if each.label == label), None)
    else:
        found = next((each for each in servers if each.url.rstrip("/") == url.rstrip("/")), None)
    if found is None:
        wrong = "server_label" if url is None else "server_url"
        raise BadRequest(
            f"{at}.{wrong}: this server calls only MCP servers that its owner named in the setting tools.mcp_servers, "
            "and this is none of them.",
            param=f"{at}.{wrong}",
        )
    for name, value in (headers or {}).items():
        if not HEADER.fullmatch(name) or name.lower() in OURS or name.lower().startswith("mcp-"):
            raise BadRequest(f"{at}.headers: this name cannot be sent along.", param=f"{at}.headers")
        if not value.isprintable() or not value.isascii():
            raise BadRequest(f"{at}.headers: {name} is not of printable ASCII.", param=f"{at}.headers")
    if authorization is not None and not (authorization.isprintable() and authorization.isascii()):
        raise BadRequest(f"{at}.authorization is not of printable ASCII.", param=f"{at}.authorization")
    sent = {name.lower(): value for name, value in (headers or {}).items()}
    if authorization is not None:
        sent["authorization"] = f"Bearer {authorization}"
    return Access(replace(found, label=label), sent)


async def list_tools(access: Access) -> list[Json]:
    """As OpenAI's items tell them. Raises ToolFailed."""
    listed: list[Listed] = []
    async with _asking(LISTING_S), _client(access, timeout_s=LISTING_S) as client:
        cursor: str | None = None
        while True:
            page = await client.list_tools(cursor=cursor)
            listed += page.tools
            if len(listed) > MOST_LISTED:
                raise ToolFailed.refused(f"It has more than {MOST_LISTED} tools.", 0)
            cursor = page.next_cursor
            if not cursor or not page.tools:
                break
    return [
        {
            "name": tool.name,
            "description": tool.description,
            "input_schema": tool.input_schema,
            "annotations": None
            if tool.annotations is None
            else tool.annotations.model_dump(by_alias=True, exclude_none=True),
        }
        for tool in listed
    ]


async def call_tool(access: Access, name: str, arguments: str, *, timeout_s: float) -> str:
    """What it tells as text. `arguments` are as the model wrote them. Raises ToolFailed."""
    try:
        sent = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError as error:
        raise ToolFailed.refused("The arguments are not JSON.", -32602) from error
    if not isinstance(sent, dict):
        raise ToolFailed.refused("The arguments are not a JSON object.", -32602)
    async with _asking(timeout_s), _client(access, timeout_s=timeout_s) as client:
        result = await client.call_tool(name, sent)
    text = _cut(_text_of(result))
    if result.is_error:
        content = [{"type": "text", "text": text}]
        raise ToolFailed(text, {"type": "mcp_tool_execution_error", "content": content})
    return text


def _text_of(result: CallToolResult) -> str:
    told = []
    for part in result.content:
        match part:
            case TextContent():
                told.append(part.text)
            case _ if isinstance(resource := getattr(part, "resource", None), TextResourceContents):
                told.append(resource.text)
            case _:
                told.append(f"[{part.type}: {getattr(part, 'mime_type', None) or 'unknown'}, not shown]")
    if not told and result.structured_content is not None:
        return orjson.dumps(result.structured_content).decode()
    return "\n".join(told)


def _cut(text: str) -> str:
    if len(text) <= MOST_RESULT_CHARS:
        return text
    return f"{text[:MOST_RESULT_CHARS]}\n[cut after {MOST_RESULT_CHARS} of {len(text)} characters]"


@asynccontextmanager
async def _asking(timeout_s: float) -> AsyncIterator[None]:
    """Whatever goes wrong there is a ToolFailed: servers are others' programs."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except ToolFailed:
        raise
    except TimeoutError as error:
        raise ToolFailed.unreachable(f"It did not answer within {timeout_s:g} s.", 504) from error
    except Exception as error:
        raise _failure(error) from error


def _failure(error: BaseException) -> ToolFailed:
    # The SDK's task groups wrap what happened in them.
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case ToolFailed():
            return error
        case MCPError():
            return ToolFailed.refused(error.message, error.code)
        case httpx2.HTTPStatusError():
            status = error.response.status_code
            return ToolFailed.unreachable(f"It answered with the status {status}.", status)
        case httpx2.TimeoutException():
            return ToolFailed.unreachable("It did not answer in time.", 504)
        case _:
            return ToolFailed.unreachable("It cannot be reached, or does not speak MCP.", 502)


@asynccontextmanager
async def _client(access: Access, *, timeout_s: float) -> AsyncIterator[Client]:
    """A connection for one errand. Redirects stay at the address, as the SDK has it; no proxy of the environment is
    asked.
    """
    headers = {"accept-encoding": "identity"}
    if access.server.token:
        headers["authorization"] = f"Bearer {access.server.token}"
    headers |= access.headers
    async with (
        httpx2.AsyncClient(
            transport=_Bounded(httpx2.AsyncHTTPTransport(trust_env=False)),
            headers=headers,
            timeout=timeout_s,
            trust_env=False,
        ) as http,
        Client(
            streamable_http_client(access.server.url, http_client=http),
            cache=None,
            client_info=Implementation(name="strongroom", version=version("strongroom")),
            read_timeout_seconds=timeout_s,
        ) as client,
    ):
        yield client


class _Bounded(httpx2.AsyncBaseTransport):
    """Ends replies that are longer than any result may be, packed ones too."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise ToolFailed.refused("It sends packed replies, which were not asked for.", 0)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Counted(response.stream)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Counted(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for piece in self._inner:
            read += len(piece)
            if read > MOST_REPLY_BYTES:
                raise ToolFailed.refused(f"Its reply has more than {MOST_REPLY_BYTES} bytes.", 0)
            yield piece

    async def aclose(self) -> None:
        await self._inner.aclose()


def is_read_only(listed: Mapping[str, Any]) -> bool:
    return bool((listed.get("annotations") or {}).get("readOnlyHint"))
