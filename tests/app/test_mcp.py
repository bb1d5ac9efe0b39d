"""MCP as its official client speaks it, over HTTP and over stdio; and what hostile clients get."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

from app.access.auth import KeyRing
from app.context_protocol.reading import MOST_CHARS
from app.edge.requests import MAX_MCP_BYTES
from retrieval.tables import Role
from tests.app.conftest import Api
from tests.serving.hosting import served, until
from tests.stack import ROOT

HARBOUR = (
    "The harbour master of Vellmouth is Ondine Marsh. Her office is on the second floor of the Customs House."
)
LEAFLET = ROOT / "data" / "samples" / "visitor-leaflet.pdf"
PING = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
ACCEPT = {"Accept": "application/json, text/event-stream", "Host": "127.0.0.1"}


def key_of(api: Api) -> str:
    return api.http.headers["Authorization"].removeprefix("Bearer ")


def new_key(api: Api, role: Role, tenant: str = "default") -> str:
    with api.services.database.write() as session:
        return api.services.keys.add(session, tenant_name=tenant, name="model", role=role, now=1.0)[1]


@asynccontextmanager
async def speaking(api: Api, key: str, mode: str = "auto") -> AsyncIterator[Client]:
    transport = httpx2.ASGITransport(api.app)
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(transport=transport, headers=headers) as http,
        Client(streamable_http_client("http://localhost:8080/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


async def called(client: Client, name: str, **arguments: Any) -> Any:
    """What the tool tells, which its text tells as well."""
    result = await client.call_tool(name, arguments)
    assert not result.is_error, result
    (content,) = result.content
    assert isinstance(content, TextContent)
    assert orjson.loads(content.text) == result.structured_content
    return result.structured_content


async def refused(client: Client, name: str, **arguments: Any) -> str:
    result: CallToolResult = await client.call_tool(name, arguments)
    assert result.is_error
    assert isinstance(result.content[0], TextContent)
    return result.content[0].text


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_model_searches_fetches_and_asks(api: Api, mode: str) -> None:
    store = await api.store("harbour")
    file_id = await api.add_document(store, "harbour.txt", HARBOUR)
    api.engine.answer = lambda _: "The harbour master of Vellmouth is Ondine Marsh [1]."
    async with speaking(api, key_of(api), mode) as client:
        assert client.server_info is not None
        assert client.server_info.name == "strongroom"
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert names == ["search", "fetch", "ask", "list_collections", "add_document"]

        (listed,) = (await called(client, "list_collections"))["collections"]
        assert listed == {"id": store, "name": "harbour", "description": None, "documents": 1}

        (found,) = (await called(client, "search", query="Who is the harbour master?"))["results"]
        assert (found["id"], found["title"]) == (f"{store}/{file_id}", "harbour.txt")
        fetched = await called(client, "fetch", id=found["id"])
        assert fetched["text"] == HARBOUR
        assert fetched.keys() == {"id", "title", "text", "url", "metadata"}
        assert all(isinstance(value, str) for value in fetched["metadata"].values())

        told = await called(client, "ask", question="Who is the harbour master?", collection="harbour")
        assert told["grounded"]
        assert "Ondine Marsh" in told["answer"]
        (cited,) = told["citations"]
        assert cited["quote"] in HARBOUR
        for url in (found["url"], fetched["url"], cited["url"]):
            page = await api.http.get(url.removeprefix(api.settings.public_url))
            assert "Ondine Marsh" in page.text


async def test_documents_and_their_pages_are_resources(api: Api) -> None:
    store = await api.store("leaflets")
    file_id = await api.add_document(store, "leaflet.pdf", LEAFLET.read_bytes())
    async with speaking(api, key_of(api)) as client:
        (resource,) = (await client.list_resources()).resources
        assert (resource.uri, resource.name) == (f"strongroom://{store}/{file_id}", "leaflet.pdf")
        (whole,) = (await client.read_resource(resource.uri)).contents
        (page,) = (await client.read_resource(f"{resource.uri}/page/1")).contents
        assert page.text in whole.text  # type: ignore[union-attr]
        templates = [
            each.uri_template for each in (await client.list_resource_templates()).resource_templates
        ]
        assert templates == [
            "strongroom://{collection_id}/{file_id}",
            "strongroom://{collection_id}/{file_id}/page/{page}",
        ]
        results = (await called(client, "search", query="When is the museum open?"))["results"]
        for found in results:
            assert found["id"].startswith(f"{store}/{file_id}/page/")
            assert found["title"].startswith("leaflet.pdf, page ")
            assert found["text"] in (await called(client, "fetch", id=found["id"]))["text"]
        for absent in (f"{resource.uri}/page/99", f"strongroom://{store}/file-none", "file:///etc/passwd"):
            with pytest.raises(MCPError):
                await client.read_resource(absent)


async def test_a_long_document_is_read_piece_by_piece_and_found_where_it_says_so(api: Api) -> None:
    store = await api.store("long")
    lines = [f"Line {number} tells of nothing that anybody would look for." for number in range(700)]
    lines[600] = "The lighthouse keeper is called Barnaby Quill."
    text = "\n".join(lines)
    await api.add_document(store, "long.txt", text)
    async with speaking(api, key_of(api)) as client:
        (found,) = (await called(client, "search", query="Who is the lighthouse keeper?"))["results"]
        assert "Barnaby Quill" in (await called(client, "fetch", id=found["id"]))["text"]
        pieces, following = [], found["id"].split("/from/")[0]
        while following:
            piece = await called(client, "fetch", id=following)
            assert len(piece["text"]) <= MOST_CHARS
            pieces.append(piece["text"])
            following = piece["metadata"].get("following")
        assert "".join(pieces) == text


async def test_a_writers_key_adds_a_document_and_a_readers_sees_no_such_tool(api: Api) -> None:
    store = await api.store("minutes")
    async with speaking(api, new_key(api, Role.WRITER)) as client:
        told = await called(
            client, "add_document", collection="minutes", filename="minutes.md", text="We bought a boat."
        )
        await api.worker.drain()
        assert (await called(client, "fetch", id=told["id"]))["text"] == "We bought a boat."
    async with speaking(api, new_key(api, Role.READER)) as client:
        assert "add_document" not in [tool.name for tool in (await client.list_tools()).tools]
        with pytest.raises(MCPError, match="No tool 'add_document'"):
            await client.call_tool("add_document", {"collection": store, "filename": "a.md", "text": "a"})


async def test_arguments_beyond_the_keys_scope_look_absent(api: Api) -> None:
    store = await api.store("harbour")
    file_id = await api.add_document(store, "harbour.txt", HARBOUR)
    async with speaking(api, new_key(api, Role.WRITER, "south")) as client:
        assert (await called(client, "search", query="harbour master"))["results"] == []
        assert (await called(client, "list_collections"))["collections"] == []
        assert (await client.list_resources()).resources == []
        absent = "vs_" + "0" * 24
        for told, other in (
            (await refused(client, "search", query="harbour", collection=store), store),
            (await refused(client, "ask", question="Who?", collection=store), store),
            (await refused(client, "fetch", id=f"{store}/{file_id}"), file_id),
            (await refused(client, "add_document", collection=store, filename="a.md", text="a"), store),
        ):
            assert "No vector store" in told
            assert "harbour" not in told.replace(other, "")
        unseen = await refused(client, "fetch", id=f"{store}/{file_id}")
        assert unseen.replace(store, absent) == await refused(client, "fetch", id=f"{absent}/{file_id}")
        with pytest.raises(MCPError):
            await client.read_resource(f"strongroom://{store}/{file_id}")
        with pytest.raises(MCPError):
            await client.list_resources(cursor=f"{store}/{file_id}")


@pytest.mark.parametrize(
    ("tool", "arguments", "named"),
    [
        ("search", {}, "query"),
        ("search", {"query": " "}, "query"),
        ("search", {"query": "a\x00"}, "query"),
        ("search", {"query": "a", "tenant_id": "south"}, "tenant_id"),
        ("search", {"query": "a", "max_results": 10_000}, "max_results"),
        ("search", {"query": ["a"]}, "query"),
        ("fetch", {"id": "../../etc/passwd"}, "id"),
        ("fetch", {"id": "vs_a/file-b/page/0"}, "id"),
        ("ask", {"question": ""}, "question"),
        ("add_document", {"collection": "a", "filename": "../a.md", "text": "a"}, "filename"),
    ],
)
async def test_wrong_arguments_are_named(api: Api, tool: str, arguments: dict[str, Any], named: str) -> None:
    async with speaking(api, key_of(api)) as client:
        assert (await refused(client, tool, **arguments)).startswith(named)


async def test_half_a_surrogate_pair_is_refused(api: Api) -> None:
    params = '{"name": "search", "arguments": {"query": "a \\ud800"}}'
    body = f'{{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {params}}}'
    headers = {**ACCEPT, "Content-Type": "application/json"}
    told = (await api.http.post("/mcp", content=body, headers=headers)).json()
    assert told.get("error") or told["result"]["isError"]


async def test_a_foreign_host_or_origin_a_wrong_key_and_a_huge_body_are_refused(api: Api) -> None:
    async def status(body: Any = PING, **headers: str) -> tuple[int, str]:
        reply = await api.http.post("/mcp", json=body, headers={**ACCEPT, **headers})
        return reply.status_code, reply.json().get("error", {}).get("code") if reply.is_error else ""

    assert await status() == (200, "")
    assert await status(Origin="http://localhost:6274") == (200, "")
    assert await status(Host="evil.test") == (421, "wrong_host")
    for host in ("127.0.0.1.evil.test", "evil.test:8080", "localhost@evil.test", ""):
        assert await status(Host=host) == (421, "wrong_host")
    for origin in ("http://evil.test", "null", "http://localhost.evil.test", "file://"):
        assert await status(Origin=origin) == (403, "wrong_origin")
    assert await status(Authorization="Bearer sr-wrong") == (401, "invalid_api_key")
    assert await status({**PING, "params": {"text": "a" * MAX_MCP_BYTES}}) == (413, "request_too_large")
    assert (await api.http.get("/mcp")).headers["allow"] == "POST"


async def test_there_is_no_session_to_steal(api: Api) -> None:
    """A session id, whoever made it up, is no key: what is sent with it is done for the key beside it alone."""
    await api.add_document(await api.store("harbour"), "harbour.txt", HARBOUR)
    begun = await api.http.post(
        "/mcp",
        headers=ACCEPT,
        json={
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-06-18",
                "capabilities": {},
                "clientInfo": {"name": "test", "version": "1"},
            },
        },
    )
    assert begun.json()["result"]["protocolVersion"] == "2025-06-18"
    assert "mcp-session-id" not in begun.headers
    call = {**PING, "method": "tools/call", "params": {"name": "list_collections", "arguments": {}}}
    stolen = {**ACCEPT, "Mcp-Session-Id": "a" * 32}
    without = await api.http.post("/mcp", json=call, headers={**stolen, "Authorization": ""})
    assert without.status_code == 401
    south = {**stolen, "Authorization": f"Bearer {new_key(api, Role.READER, 'south')}"}
    seen = await api.http.post("/mcp", json=call, headers=south)
    assert seen.json()["result"]["structuredContent"] == {"collections": []}


async def test_a_revoked_key_is_refused_on_the_next_call(api: Api) -> None:
    key = new_key(api, Role.READER)
    async with speaking(api, key) as client:
        await client.list_tools()
        with api.services.database.write() as session:
            ring: KeyRing = api.services.keys
            ring.revoke(session, (await ring.scope_of(key)).key_id, now=2.0)
        await asyncio.sleep(0.6)
        with pytest.raises(MCPError):
            await client.call_tool("search", {"query": "harbour"})


@pytest.mark.parametrize("version", ["2025-06-18", "2026-07-28"])
async def test_the_engine_stops_when_the_client_leaves(api: Api, version: str) -> None:
    await api.add_document(await api.store("harbour"), "harbour.txt", HARBOUR)
    api.engine.gate.clear()
    meta = {
        "io.modelcontextprotocol/protocolVersion": version,
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    call = {"name": "ask", "arguments": {"question": "Who is the harbour master?"}, "_meta": meta}
    headers = {
        "Authorization": f"Bearer {key_of(api)}",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": version,
        "Mcp-Method": "tools/call",
        "Mcp-Name": "ask",
    }
    async with served(api.app, is_started=True) as url, httpx2.AsyncClient(headers=headers) as http:
        asking = asyncio.create_task(
            http.post(f"{url}/mcp", json={**PING, "method": "tools/call", "params": call})
        )
        await until(lambda: bool(api.engine.requests) or asking.done())
        assert not asking.done(), asking.result().text
        asking.cancel()
        await until(lambda: api.engine.departures == 1)


@pytest.mark.processes
async def test_over_stdio_the_same_tools_answer(api: Api, tmp_path: Path) -> None:
    store = await api.store("harbour")
    file_id = await api.add_document(store, "harbour.txt", HARBOUR)
    key_file = tmp_path / "model.key"
    key_file.write_text(new_key(api, Role.READER))
    async with served(api.app, is_started=True) as url:
        command = StdioServerParameters(
            command=sys.executable,
            args=["-m", "app.cli", "mcp", "--url", url, "--key-file", str(key_file)],
            cwd=ROOT,
        )
        async with Client(stdio_client(command)) as client:
            assert "add_document" not in [tool.name for tool in (await client.list_tools()).tools]
            (found,) = (await called(client, "search", query="Who is the harbour master?"))["results"]
            assert found["id"] == f"{store}/{file_id}"
            (contents,) = (await client.read_resource(f"strongroom://{found['id']}")).contents
            assert contents.text == HARBOUR  # type: ignore[union-attr]
            assert (await refused(client, "fetch", id="vs_a/file-b")).startswith("No vector store")


@pytest.mark.processes
def test_over_stdio_a_server_that_does_not_answer_is_told_on_one_line(tmp_path: Path) -> None:
    key_file = tmp_path / "model.key"
    key_file.write_text("sr-any")
    command = [
        sys.executable,
        "-m",
        "app.cli",
        "mcp",
        "--url",
        "http://127.0.0.1:1",
        "--key-file",
        str(key_file),
    ]
    ended = subprocess.run(command, cwd=ROOT, input="", capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
