"""The api role on a port of its own, and the programs that are its clients."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import Api, api, models_url, parsers
from tests.fakes import ScriptedEngine
from tests.serving.hosting import served

__all__ = ["api", "models_url", "parsers"]

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / ".venv-clients"
PYTHON = CLIENTS / "bin" / "python"
NODE_MODULES = CLIENTS / "node" / "node_modules"
HARBOUR = "The harbour master of Vellmouth is Ondine Marsh."
ANSWER = "The harbour master is Ondine Marsh."
CITED = f"{ANSWER} [1]"
CALL = {"id": "call_1", "type": "function", "function": {"name": "ring", "arguments": '{"who": "Ondine"}'}}


@dataclass
class Served:
    """The api role as a client finds it."""

    api: Api
    url: str
    key: str
    home: Path

    @property
    def engine(self) -> ScriptedEngine:
        return self.api.engine

    async def run(self, *command: str | Path, stdin: str = "", **environment: str) -> str:
        """A program's output, which must end well. It sees of this process's environment where programs are."""
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            cwd=self.home,
            env={
                "PATH": os.environ["PATH"],  # noqa: TID251 - the child's environment
                "HOME": str(self.home),
                "STRONGROOM_URL": self.url,
                "STRONGROOM_KEY": self.key,
                **environment,
            },
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(120):
            output, errors = await process.communicate(stdin.encode())
        assert process.returncode == 0, errors.decode()[-4000:]
        return output.decode()


def answer(asked: dict[str, Any]) -> str:
    """As a model would that was trained for it."""
    in_schema = (asked.get("response_format") or {}).get("type") == "json_schema"
    return f'{{"name": "{ANSWER}"}}' if in_schema else ANSWER


@pytest.fixture
async def strongroom(api: Api, tmp_path: Path) -> AsyncIterator[Served]:
    api.engine.answer = answer
    api.engine.tool_calls = [CALL]
    await api.add_document(await api.store("harbour"), "harbour.txt", HARBOUR)
    key = api.http.headers["Authorization"].removeprefix("Bearer ")
    home = tmp_path / "home"
    home.mkdir()
    async with served(api.app, is_started=True) as url:
        yield Served(api, url, key, home)


@pytest.fixture
def python_clients() -> Path:
    if not PYTHON.is_file():
        pytest.skip("LangChain, LlamaIndex and llm are not installed: make test-clients")
    return PYTHON


@pytest.fixture
def node_clients(strongroom: Served) -> str:
    """Node, with its clients within reach of scripts in `home`."""
    node = shutil.which("node")
    if node is None or not NODE_MODULES.is_dir():
        pytest.skip("node's clients are not installed: make test-clients, where npm is")
    (strongroom.home / "node_modules").symlink_to(NODE_MODULES)
    return node
