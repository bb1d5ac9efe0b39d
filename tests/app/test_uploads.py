"""POST /v1/files beyond the bytes: what opens a file, how long it is kept, and where it came from."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from retrieval.tables import File
from tests.app.alone import Alone, api_alone
from tests.app.test_deleting import pages_of

PASSWORD = "correct horse battery staple"


@dataclass(frozen=True)
class Desk(Alone):
    async def upload(self, **form: str) -> httpx.Response:
        return await self.http.post("/v1/files", files={"file": ("a.txt", b"A letter.")}, data=form)

    def row(self, file_id: str) -> File:
        with self.services.database.read() as session:
            return session.get_one(File, file_id)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with api_alone(tmp_path) as alone:
        yield Desk(**vars(alone))


async def test_a_password_is_sealed_for_its_file_and_never_shown(
    desk: Desk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    reply = await desk.upload(password=PASSWORD)
    assert reply.status_code == 200, reply.text
    file_id = reply.json()["id"]
    told = reply.text + (await desk.http.get(f"/v1/files/{file_id}")).text + caplog.text
    assert PASSWORD not in told
    sealed = desk.row(file_id).password
    assert sealed is not None
    assert desk.services.sealer.open(sealed, owner=file_id) == PASSWORD
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) > 3
    assert not any(PASSWORD.encode() in path.read_bytes() for path in kept)
    assert PASSWORD.encode() not in pages_of(tmp_path)


async def test_a_file_without_a_password_or_with_an_empty_one_has_none(desk: Desk) -> None:
    for form in ({}, {"password": ""}):
        assert desk.row((await desk.upload(**form)).json()["id"]).password is None


async def test_openais_client_says_when_a_file_expires(desk: Desk) -> None:
    file = await desk.client.files.create(
        file=("a.txt", b"A letter."),
        purpose="assistants",
        expires_after={"anchor": "created_at", "seconds": 7200},
    )
    assert file.expires_at == file.created_at + 7200
    assert (await desk.client.files.retrieve(file.id)).expires_at == file.expires_at
    assert (await desk.client.files.create(file=b"A note.", purpose="assistants")).expires_at is None


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
        ({"expires_after[seconds]": "7200"}, "expires_after[anchor]"),
        (
            {"expires_after[anchor]": "last_active_at", "expires_after[seconds]": "7200"},
            "expires_after[anchor]",
        ),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"}, "expires_after[seconds]"),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "2592001"},
            "expires_after[seconds]",
        ),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "7.2e3"},
            "expires_after[seconds]",
        ),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "9" * 5000},
            "expires_after[seconds]",
        ),
        ({"expires_after": "7200"}, "expires_after"),
        ({"password": "x" * 1001}, "password"),
        ({"tenant_id": "other"}, "tenant_id"),
        ({"purpose": "fun"}, "purpose"),
    ],
)
async def test_a_field_that_cannot_be_right_is_named_and_nothing_is_kept(
    desk: Desk, form: dict[str, str], param: str
) -> None:
    reply = await desk.upload(**form)
    assert reply.status_code == 400
    error: dict[str, Any] = reply.json()["error"]
    assert error["param"] == param
    assert param in error["message"]
    assert PASSWORD not in reply.text
    assert (await desk.http.get("/v1/files")).json()["data"] == []


async def test_a_file_that_came_in_another_shows_which_and_where(desk: Desk) -> None:
    archive = (await desk.upload()).json()["id"]
    inside = (await desk.upload()).json()["id"]
    with desk.services.database.write() as session:
        file = session.get_one(File, inside)
        file.parent_id, file.path = archive, "letters/1911/a.txt"
    store_id = (await desk.http.post("/v1/vector_stores", json={"file_ids": [archive, inside]})).json()["id"]
    for path in (f"/v1/files/{inside}", f"/v1/vector_stores/{store_id}/files/{inside}"):
        shown = (await desk.http.get(path)).json()
        assert (shown["parent_file_id"], shown["path"]) == (archive, "letters/1911/a.txt")
    outer = (await desk.http.get(f"/v1/files/{archive}")).json()
    assert (outer["parent_file_id"], outer["path"]) == (None, None)
    await desk.http.delete(f"/v1/files/{archive}")
    assert (await desk.http.get(f"/v1/files/{inside}")).status_code == 404
