"""The commands of `strongroom eval` against the api role on a real port, over an engine that follows a script."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.cli import cli
from app.commands.remote import Remote
from app.storage.opening import keys_dir
from tests.app.conftest import Api
from tests.serving.hosting import served


@dataclass
class Commands:
    api: Api
    url: str

    @property
    def data_dir(self) -> Path:
        return self.api.settings.storage.data_dir

    @property
    def runs(self) -> list[Path]:
        return sorted((self.data_dir / "evaluations").glob("*"))

    def remote(self) -> Remote:
        return Remote(self.url, (keys_dir(self.api.settings) / "admin.key").read_text().strip())

    async def run(self, *arguments: str | Path) -> Result:
        """In a thread, since the server has this one."""
        address = [] if arguments[0] == "compare" else ["--url", self.url, "--data-dir", str(self.data_dir)]
        line = ["eval", *map(str, arguments), *address]
        return await asyncio.to_thread(lambda: CliRunner().invoke(cli, line))

    async def succeed(self, *arguments: str | Path) -> str:
        """What it printed."""
        result = await self.run(*arguments)
        assert result.exit_code == 0, result.output + repr(result.exception)
        return result.output

    async def fail(self, *arguments: str | Path) -> str:
        """What it said it could not do: on its own, or as `main` prints it."""
        result = await self.run(*arguments)
        assert result.exit_code != 0, result.output
        return result.output + str(result.exception)


@pytest.fixture
async def commands(api: Api) -> AsyncIterator[Commands]:
    async with served(api.app, is_started=True) as url:
        working = asyncio.create_task(api.worker.run())
        yield Commands(api, url)
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working
