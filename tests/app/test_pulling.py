"""`strongroom models pull` against a hub on this machine: what it fetches, what it leaves, what it says."""

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from tests.stack import ROOT, free_port

pytestmark = pytest.mark.processes
SHA = "a" * 40
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"w" * 5000,
    "pytorch_model.bin": b"pickled",
    "README.md": b"words",
    "setup.py": b"code",
}


@dataclass
class Hub:
    """Has one model, owner/small."""

    url: str
    fetched: list[str] = field(default_factory=list)


@asynccontextmanager
async def hub() -> AsyncIterator[Hub]:
    port = free_port()
    there = Hub(f"http://127.0.0.1:{port}")

    async def described(request: web.Request) -> web.Response:
        if request.match_info["model"] != "small":
            return web.json_response({"error": "Repository not found"}, status=404)
        siblings = [{"rfilename": name} for name in FILES]
        return web.json_response({"id": "owner/small", "sha": SHA, "siblings": siblings})

    async def listed(_: web.Request) -> web.Response:
        return web.json_response(
            [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in FILES.items()
            ]
        )

    async def file(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        data = FILES[name]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": SHA}
        if request.method == "GET":
            there.fetched.append(name)
        return web.Response(body=data, headers=headers)

    app = web.Application()
    app.router.add_get("/api/models/owner/{model}", described)
    app.router.add_get("/api/models/owner/{model}/revision/{revision}", described)
    app.router.add_get("/api/models/owner/{model}/tree/{revision}", listed)
    app.router.add_get("/owner/{model}/resolve/{revision}/{name}", file)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield there
    await runner.cleanup()


async def pulled(name: str, url: str, folder: Path) -> tuple[int, str]:
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}  # noqa: TID251
    environment |= {
        "HF_ENDPOINT": url,
        "HF_HOME": str(folder / "hub"),
        "STRONGROOM_MODELS__FOLDER": str(folder),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app.cli", "models", "pull", name),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, error = await process.communicate()
    return process.returncode or 0, (out or error).decode()


async def test_weights_and_configurations_are_fetched_once_and_nothing_that_runs(tmp_path: Path) -> None:
    async with hub() as there:
        status, told = await pulled("owner/small", there.url, tmp_path)
        assert status == 0, told
        assert "'small'" in told
        assert sorted(path.name for path in (tmp_path / "small").iterdir() if path.is_file()) == [
            "config.json",
            "model.safetensors",
        ]
        assert sorted(there.fetched) == ["config.json", "model.safetensors"]
        await pulled("owner/small", there.url, tmp_path)
        assert len(there.fetched) == 2


async def test_what_the_hub_does_not_have_is_told(tmp_path: Path) -> None:
    async with hub() as there:
        status, told = await pulled("owner/other", there.url, tmp_path)
    assert status == 1
    assert "The hub has no 'owner/other'" in told.strip().splitlines()[-1]
    status, told = await pulled("owner/small", "http://127.0.0.1:9", tmp_path)
    assert status == 1
    assert "The hub cannot be reached" in told.strip().splitlines()[-1]
    assert (await pulled("../etc", "http://127.0.0.1:9", tmp_path))[0] == 1
