"""`strongroom status` and `strongroom doctor` against a running api, and a data folder that has something wrong."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.commands.remote import Remote
from app.commands.status import History, look_at, shown, sparkline, told
from app.running.diagnosis import Finding, State, diagnose
from app.settings import read_settings
from tests.app.conftest import Api
from tests.serving.hosting import served
from tests.stack import ROOT


async def told_by(api: Api, *arguments: str) -> tuple[int, str]:
    key_file = api.settings.storage.data_dir / "keys" / "admin.key"
    async with served(api.app, is_started=True) as url:
        command = [sys.executable, "-m", "app.cli", *arguments, "--url", url, "--key-file", str(key_file)]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


def test_a_sparkline_is_as_high_as_its_highest_value() -> None:
    assert sparkline([0, 1, 2, 4, 8]) == "▁▂▃▅█"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""


async def test_what_is_asked_between_two_looks_is_told_by_the_second(api: Api) -> None:
    key = api.http.headers["Authorization"].removeprefix("Bearer ")
    store = await api.store()
    await api.add_document(store, "a.txt", "The harbour master is Ondine Marsh.")
    history = History()
    async with served(api.app, is_started=True) as url, Remote(url, key) as remote:
        history.add(await look_at(remote))
        for number in range(5):
            await api.http.post(f"/v1/vector_stores/{store}/search", json={"query": f"harbour {number}"})
        history.add(await look_at(remote))
    now = told(history)
    assert now["per_second"]["searches"] > 0
    assert now["per_second"]["embedded_tokens"] > 0
    assert now["collections"] == 1
    assert now["engines"]["ready"] == 1
    assert now["roles"]["worker"]["state"] == "unavailable"
    assert {*now["lanes"]} == {"interactive", "bulk", "background"}
    assert shown(history)


@pytest.mark.processes
async def test_status_is_json_for_scripts_and_fails_while_a_role_is_away(api: Api) -> None:
    status, out = await told_by(api, "status", "--json", "--every", "0.2")
    assert status == 1, out
    now = orjson.loads(out)
    assert not now["ready"]
    assert now["jobs"] == {"queued": 0, "running": 0, "failed": 0}
    _, out = await told_by(api, "status", "--every", "0.2")
    assert "tokens generated" in out


@pytest.mark.processes
async def test_doctor_names_what_is_away_and_what_to_do(api: Api) -> None:
    status, out = await told_by(api, "doctor", "--json", "--data-dir", str(api.settings.storage.data_dir))
    findings = {finding["name"]: finding for finding in orjson.loads(out)}
    assert status == 1
    assert findings["role worker"]["state"] == "failed"
    assert findings["role worker"]["advice"]
    assert findings["indexes"]["state"] == "ok"
    assert findings["database"]["state"] == "ok"
    assert findings["clocks"]["state"] == "ok"


async def found_in(api: Api, **changed: Any) -> dict[str, Finding]:
    settings = api.settings.with_options(**changed)
    async with Remote("http://127.0.0.1:1", "") as remote:
        return {finding.name: finding for finding in await diagnose(settings, remote)}


async def test_each_thing_that_is_wrong_is_found(api: Api, tmp_path: Path) -> None:
    sound = await found_in(api)
    assert sound["server"].state is State.FAILED
    assert sound["engine"].state is State.OK
    assert sound["indexes"].state is State.OK
    assert "keys" not in sound

    key_file = api.settings.storage.data_dir / "keys" / "admin.key"
    key_file.chmod(0o644)
    found = await found_in(
        api,
        engine={"url": "http://127.0.0.1:1"},
        models={"url": "", "embedding": "absent-model"},
        ingest={"parsers": 1000},
    )
    assert "chmod 600" in found["keys"].advice
    assert found["engine"].state is State.FAILED
    assert found["models.embedding"].state is State.FAILED
    assert found["memory"].state is State.WARNING
    key_file.chmod(0o600)

    api.engine.token = "another"
    assert (await found_in(api))["engine"].advice == "Set engine.token to the engine's API key."
    with api.services.database.engine.begin() as connection:
        connection.exec_driver_sql("update alembic_version set version_num = '9999'")
    assert (await found_in(api))["database"].state is State.FAILED


async def test_an_empty_folder_is_no_error_of_its_own(tmp_path: Path) -> None:
    settings = read_settings().with_options(storage={"data_dir": str(tmp_path / "none")})
    async with Remote("http://127.0.0.1:1", "") as remote:
        found = {finding.name: finding for finding in await diagnose(settings, remote)}
    assert found["data folder"].state is State.WARNING
    assert "database" not in found
