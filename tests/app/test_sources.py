"""/v1/sources and `strongroom sources`: who may add what, and that a source's files answer."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from sqlalchemy import select
from typer.testing import CliRunner, Result

from app.access.auth import server_secret
from app.access.owner import OWNER_HEADER, owner_proof
from app.cli import cli
from app.storage.opening import keys_dir
from ingest.leadership import Election
from ingest.schedules import Schedules
from retrieval.tables import Role, Source
from tests.app.conftest import Api
from tests.serving.hosting import served

pytestmark = pytest.mark.slow

Json = dict[str, Any]


class Sources:
    """The api, a folder that may be watched, and the schedules, step by step."""

    def __init__(self, api: Api, folder: Path) -> None:
        self.api = api
        self.folder = folder
        self.election = Election(api.services.database, "schedules")
        self.schedules = Schedules(
            api.services.database,
            api.services.blobs,
            api.services.sealer,
            cache=api.settings.storage.data_dir / "sources",
            election=self.election,
        )

    async def add(self, *, by_owner: bool = True, key: str | None = None, **body: Any) -> httpx.Response:
        content = orjson.dumps({"url": self.folder.as_uri(), "collection": "letters", **body})
        headers = {"Content-Type": "application/json"}
        if by_owner:
            headers[OWNER_HEADER] = owner_proof(server_secret(keys_dir(self.api.settings)), content)
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        return await self.api.http.post("/v1/sources", content=content, headers=headers)

    async def added(self, **body: Any) -> str:
        reply = await self.add(**body)
        assert reply.status_code == 200, reply.text
        source_id: str = reply.json()["id"]
        return source_id

    async def sweep(self) -> None:
        """What is due, and its ingestion."""
        await asyncio.to_thread(self.election.beat)
        await self.schedules.tick()
        await self.schedules.settle()
        await self.api.worker.drain()

    async def shown(self, source_id: str) -> Json:
        told: Json = (await self.api.http.get(f"/v1/sources/{source_id}")).json()
        return told

    def key(self, tenant: str, role: Role) -> str:
        with self.api.services.database.write() as session:
            return self.api.services.keys.add(session, tenant_name=tenant, name="x", role=role, now=1.0)[1]


@pytest.fixture
async def sources(api: Api, tmp_path: Path) -> AsyncIterator[Sources]:
    folder = tmp_path / "letters"
    folder.mkdir()
    (folder / "a.txt").write_text("The key to the cellar hangs in the hall by the door.")
    await api.store("letters")
    sources = Sources(api, folder)
    yield sources
    await asyncio.to_thread(sources.election.step_down)


async def test_a_sources_files_answer_and_its_report_tells_what_was_done(sources: Sources) -> None:
    (sources.folder / "b.pdf").write_text("This is no PDF.")
    source_id = await sources.added(every="5m", attributes={"shelf": "3"})
    await sources.sweep()
    shown = await sources.shown(source_id)
    assert shown["sweeps"][0]["counts"]["added"] == 1
    assert [each["path"] for each in shown["refused"]] == ["b.pdf"]
    assert (shown["every"], shown["reason"], shown["failures"]) == ("5m", None, 0)
    found = await sources.api.http.post(
        f"/v1/vector_stores/{shown['collection_id']}/search", json={"query": "Where is the key?"}
    )
    [hit] = found.json()["data"]
    assert (hit["filename"], hit["attributes"]) == ("a.txt", {"shelf": "3"})


async def test_folders_and_hosts_that_are_not_allowed_need_the_owner(sources: Sources) -> None:
    for url, setting in (
        (sources.folder.as_uri(), "sources.roots"),
        ("file:///etc", "sources.roots"),
        ("http://169.254.169.254/", "sources.hosts"),
    ):
        refused = await sources.add(by_owner=False, url=url)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "url")
        assert setting in refused.json()["error"]["message"]
    assert (await sources.add(by_owner=True)).status_code == 200


async def test_a_proof_is_good_for_what_it_was_made_for_only(sources: Sources) -> None:
    secret = server_secret(keys_dir(sources.api.settings))
    body = {"url": "file:///etc", "collection": "letters"}
    for proof in (owner_proof(secret, b"other"), owner_proof(bytes(32), orjson.dumps(body)), "", "é"):
        headers = [(OWNER_HEADER.encode(), proof.encode()), (b"Content-Type", b"application/json")]
        reply = await sources.api.http.post("/v1/sources", content=orjson.dumps(body), headers=headers)
        assert reply.status_code == 400


async def test_credentials_never_come_back_and_are_not_stored_in_clear(sources: Sources) -> None:
    reply = await sources.add(
        url="https://anna:hunter22@files.example.org/x/", options={}, every="5m", collection="letters"
    )
    assert reply.status_code == 200
    shown = await sources.api.http.get(f"/v1/sources/{reply.json()['id']}")
    listed = await sources.api.http.get("/v1/sources")
    for told in (reply, shown, listed):
        assert "hunter22" not in told.text
        assert "anna" not in told.text
    assert (shown.json()["url"], shown.json()["has_options"]) == ("https://files.example.org/x/", True)
    with sources.api.services.database.read() as session:
        assert b"hunter22" not in (session.scalar(select(Source.options)) or b"hunter22")


async def test_other_credentials_take_the_place_of_those_before_for_the_same_place_only(
    sources: Sources,
) -> None:
    url = "https://files.example.org/x/"
    added = await sources.add(url=url, options={"username": "anna", "password": "hunter22"})
    source_id = added.json()["id"]

    async def set_options(*, by_owner: bool = True, **body: Any) -> httpx.Response:
        content = orjson.dumps(body)
        headers = {"Content-Type": "application/json"}
        if by_owner:
            headers[OWNER_HEADER] = owner_proof(server_secret(keys_dir(sources.api.settings)), content)
        return await sources.api.http.post(
            f"/v1/sources/{source_id}/options", content=content, headers=headers
        )

    with sources.api.services.database.read() as session:
        before = session.scalar(select(Source.options))
    right = {"username": "anna", "password": "hunter23"}
    for body, param in (
        ({"url": "https://other.example.org/", "options": right}, "url"),
        ({"url": url, "options": {"key": "x"}}, "options"),
        ({"url": url, "options": right, "by_owner": False}, "url"),
    ):
        refused = await set_options(**body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    told = await set_options(url=url, options=right)
    assert (told.status_code, told.json()["has_options"]) == (200, True)
    assert "hunter23" not in told.text
    with sources.api.services.database.read() as session:
        source = session.scalars(select(Source)).one()
    assert source.options is not None
    assert source.options != before
    assert orjson.loads(sources.api.services.sealer.open(source.options, owner=source_id)) == right


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"every": "5"}, "every"),
        ({"cron": "x"}, "cron"),
        ({"every": "5m", "cron": "0 3 * * *"}, "cron"),
        ({"options": {"key_filename": "x"}}, "options"),
        ({"url": "ftp://x/"}, "url"),
        ({"url": "https://files.example.org/", "watch": True}, "watch"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"interval": "5m"}, "interval"),
        ({"include": [""]}, "include.0"),
    ],
)
async def test_what_cannot_be_meant_is_refused_by_name(sources: Sources, body: Json, param: str) -> None:
    reply = await sources.add(**body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


async def test_only_admins_change_sources_and_tenants_see_their_own(sources: Sources) -> None:
    source_id = await sources.added()
    writer, stranger = sources.key("default", Role.WRITER), sources.key("south", Role.ADMIN)
    assert (await sources.add(key=writer)).status_code == 403
    paths = (f"/v1/sources/{source_id}/{verb}" for verb in ("sweep", "pause", "resume"))
    calls = [("POST", path) for path in paths] + [("DELETE", f"/v1/sources/{source_id}")]
    for key, status in ((writer, 403), (stranger, 404)):
        headers = {"Authorization": f"Bearer {key}"}
        for method, path in calls:
            reply = await sources.api.http.request(
                method, path, headers=headers, json={} if path.endswith("sweep") else None
            )
            assert (path, reply.status_code) == (path, status)
    headers = {"Authorization": f"Bearer {stranger}"}
    assert (await sources.api.http.get("/v1/sources", headers=headers)).json()["data"] == []
    assert (await sources.api.http.get(f"/v1/sources/{source_id}", headers=headers)).status_code == 404
    assert (await sources.add(key=stranger)).status_code == 404


async def test_a_paused_source_says_so_and_goes_on_when_it_is_resumed(sources: Sources) -> None:
    source_id = await sources.added(every="5m")
    paused = (await sources.api.http.post(f"/v1/sources/{source_id}/pause")).json()
    assert (paused["paused"], paused["next_sweep_at"]) == (True, None)
    await sources.sweep()
    assert (await sources.shown(source_id))["sweeps"] == []
    await sources.api.http.post(f"/v1/sources/{source_id}/resume")
    await sources.sweep()
    assert len((await sources.shown(source_id))["sweeps"]) == 1


@pytest.mark.parametrize("keep_files", [False, True])
async def test_a_removed_source_takes_its_files_along_unless_they_are_kept(
    sources: Sources, keep_files: bool
) -> None:
    source_id = await sources.added()
    await sources.sweep()
    removed = await sources.api.http.delete(f"/v1/sources/{source_id}", params={"keep_files": keep_files})
    assert removed.json()["deleted"] is True
    assert (await sources.api.http.get(f"/v1/sources/{source_id}")).status_code == 404
    files = (await sources.api.http.get("/v1/files")).json()["data"]
    assert [file["filename"] for file in files] == (["a.txt"] if keep_files else [])
    blobs = list(sources.api.services.blobs.ids())
    assert len(blobs) == len(files)


async def test_the_commands_add_sweep_show_and_remove(sources: Sources) -> None:
    running = asyncio.create_task(sources.schedules.run())
    async with served(sources.api.app, is_started=True) as url:

        async def run(*arguments: str, status: int = 0) -> str:
            data_dir = str(sources.api.settings.storage.data_dir)
            options = ["--url", url, "--data-dir", data_dir]
            result: Result = await asyncio.to_thread(
                CliRunner().invoke, cli, ["sources", *arguments, *options], catch_exceptions=False
            )
            assert result.exit_code == status, result.output
            return result.output

        # The owner's own command may add any folder.
        told = await run(
            "add", str(sources.folder), "--collection", "new", "--every", "1h", "--exclude", "x*"
        )
        source_id = told.split()[0]
        assert "1 added" in await run("sweep", source_id) + await run("show", source_id)
        (sources.folder / "c.txt").write_text("Whales feed on krill in the cold sea.")
        assert "would be: 1 added" in await run("sweep", source_id, "--dry-run")
        assert "1 added" in await run("sweep", source_id)
        assert "every 1h" in await run("show", source_id)
        await run("pause", source_id)
        assert "paused" in await run("list")
        nothing = sources.folder.parent / "options.json"
        nothing.write_text("{}")
        assert "new options" in await run("options", source_id, "--options", str(nothing))
        await run("resume", source_id)
        assert "removed" in await run("remove", source_id, "--keep-files")
        assert source_id not in await run("list")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
