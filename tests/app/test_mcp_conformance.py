"""MCP as the protocol's own conformance suite sees it, scenario by scenario."""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.app.conftest import Api
from tests.serving.hosting import served
from tests.stack import ROOT

pytestmark = pytest.mark.slow

SUITE = ROOT / ".venv" / "conformance" / "node_modules" / ".bin" / "conformance"

APPLIES = ["server-initialize", "ping", "tools-list", "resources-list", "dns-rebinding-protection"]

_ITS_OWN_TOOL = "calls a tool that a server has for this suite alone"
_ITS_OWN_RESOURCE = "reads a resource that a server has for this suite alone"
_NO_PROMPTS = "there are no prompts, and none are declared"
_NO_SUBSCRIPTIONS = "resources cannot be subscribed to, and it is not declared"
_NO_SESSIONS = "there are no sessions, so that any api process can answer; each request has its reply"
DOES_NOT_APPLY = {
    "logging-set-level": "no logs are sent to clients, and none are declared",
    "completion-complete": "no arguments are completed, and it is not declared",
    "json-schema-2020-12": _ITS_OWN_TOOL,
    "tools-call-simple-text": _ITS_OWN_TOOL,
    "tools-call-image": _ITS_OWN_TOOL,
    "tools-call-audio": _ITS_OWN_TOOL,
    "tools-call-embedded-resource": _ITS_OWN_TOOL,
    "tools-call-mixed-content": _ITS_OWN_TOOL,
    "tools-call-with-logging": _ITS_OWN_TOOL,
    "tools-call-error": _ITS_OWN_TOOL,
    "tools-call-with-progress": _ITS_OWN_TOOL,
    "tools-call-sampling": _ITS_OWN_TOOL,
    "tools-call-elicitation": _ITS_OWN_TOOL,
    "elicitation-sep1034-defaults": _ITS_OWN_TOOL,
    "elicitation-sep1330-enums": _ITS_OWN_TOOL,
    "server-sse-polling": _NO_SESSIONS,
    "server-sse-multiple-streams": _NO_SESSIONS,
    "resources-read-text": _ITS_OWN_RESOURCE,
    "resources-read-binary": _ITS_OWN_RESOURCE,
    "resources-templates-read": _ITS_OWN_RESOURCE,
    "resources-subscribe": _NO_SUBSCRIPTIONS,
    "resources-unsubscribe": _NO_SUBSCRIPTIONS,
    "prompts-list": _NO_PROMPTS,
    "prompts-get-simple": _NO_PROMPTS,
    "prompts-get-with-args": _NO_PROMPTS,
    "prompts-get-embedded-resource": _NO_PROMPTS,
    "prompts-get-with-image": _NO_PROMPTS,
}


class WithKey:
    """The suite knows no keys: each of its requests gets this one."""

    def __init__(self, app: ASGIApp, authorization: str) -> None:
        self._app = app
        self._header = (b"authorization", authorization.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, "headers": [*scope["headers"], self._header]}, receive, send)


@pytest.fixture
async def address(api: Api) -> AsyncIterator[str]:
    await api.add_document(await api.store("harbour"), "harbour.txt", "The harbour master is Ondine Marsh.")
    async with served(WithKey(api.app, api.http.headers["Authorization"]), is_started=True) as url:
        yield f"{url}/mcp"


async def conformance(*arguments: str, at: Path) -> str:
    """What the suite prints. Fails when a check fails."""
    if not SUITE.exists() or shutil.which("node") is None:
        pytest.skip("MCP's conformance suite is not installed: make test-packages, where npm is")
    process = await asyncio.create_subprocess_exec(
        "node",
        SUITE,
        *arguments,
        cwd=at,
        env={"PATH": os.environ["PATH"]},  # noqa: TID251 - the child's environment
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()[-4000:]
    return output.decode()


@pytest.mark.parametrize("scenario", APPLIES)
async def test_a_scenario_passes(address: str, scenario: str, tmp_path: Path) -> None:
    told = await conformance("server", "--url", address, "--scenario", scenario, at=tmp_path)
    assert re.search(r"Passed: (\d+)/\1, 0 failed, 0 warnings", told), told


async def test_each_scenario_of_the_suite_is_tried_or_told_why_not(tmp_path: Path) -> None:
    told = await conformance("list", "--server", at=tmp_path)
    assert set(re.findall(r"^  - (\S+)$", told, re.MULTILINE)) == {*APPLIES, *DOES_NOT_APPLY}


async def test_what_does_not_apply_is_not_declared(api: Api) -> None:
    started = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "t", "version": "1"},
        },
    }
    accepts = {"Accept": "application/json, text/event-stream", "Host": "127.0.0.1"}
    reply = await api.http.post("/mcp", json=started, headers=accepts)
    declared = reply.json()["result"]["capabilities"]
    assert declared.keys() == {"tools", "resources"}
    assert not declared["resources"].get("subscribe")
    assert "mcp-session-id" not in reply.headers
