"""MCP over stdin and stdout, for applications that start their servers: passes each call on to a running Strongroom."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequestParams, PaginatedRequestParams, ReadResourceRequestParams

from app.commands.remote import RemoteRefused, RemoteUnreachable
from app.commands.terminal import refuse
from app.context_protocol.server import INSTRUCTIONS, NAME
from app.edge.requests import MCP_PATH

TIMEOUT_S = 600.0


async def relay(url: str, key: str) -> None:
    """Until stdin ends. Raises RemoteUnreachable, also when the server refuses the key."""
    try:
        await _relay(url, key)
    except (MCPError, ExceptionGroup) as error:
        reason: BaseException = error
        while isinstance(reason, BaseExceptionGroup):
            reason = reason.exceptions[0]
        if not isinstance(reason, (MCPError, httpx2.HTTPError)):
            raise
        raise RemoteUnreachable(f"{url} does not answer, or not to this key: {reason}") from error


async def _relay(url: str, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    # No proxy of the environment: what is asked and found stays between the two.
    async with (
        httpx2.AsyncClient(headers=headers, timeout=TIMEOUT_S, trust_env=False) as http,
        Client(streamable_http_client(url.rstrip("/") + MCP_PATH, http_client=http), cache=None) as remote,
        stdio_server() as (reading, writing),
    ):
        server = _relaying(remote)
        await server.run(reading, writing, server.create_initialization_options())


def _relaying(remote: Client) -> Server[Any]:
    async def list_tools(_: Any, params: PaginatedRequestParams | None) -> Any:
        return await remote.list_tools(cursor=params.cursor if params else None)

    async def call_tool(_: Any, params: CallToolRequestParams) -> Any:
        return await remote.call_tool(params.name, params.arguments)

    async def list_resources(_: Any, params: PaginatedRequestParams | None) -> Any:
        return await remote.list_resources(cursor=params.cursor if params else None)

    async def list_templates(_: Any, params: PaginatedRequestParams | None) -> Any:
        return await remote.list_resource_templates(cursor=params.cursor if params else None)

    async def read_resource(_: Any, params: ReadResourceRequestParams) -> Any:
        return await remote.read_resource(params.uri)

    return Server(
        NAME,
        title="Strongroom",
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
    )


def main() -> None:
    """`python -m app.context_protocol.relay URL KEY_FILE`, which `strongroom mcp` becomes."""
    url, key_file = sys.argv[1:]
    try:
        asyncio.run(relay(url, Path(key_file).read_text().strip()))
    except RemoteRefused as error:
        refuse(str(error))


if __name__ == "__main__":
    main()
