"""/v1/uploads: large files in parts, as OpenAI's client sends them, broken off and taken up again."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest

from app.storage.opening import encrypted_blobs_dir
from ingest.upkeep import Upkeep
from retrieval.blobs import known_ids
from retrieval.tables import Role, Upload, UploadPart
from retrieval.uploads import LIFE_S
from tests.app.alone import Alone, api_alone

TEXT = b"".join(b"Line %d of a long letter.\n" % number for number in range(4000))


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Alone]:
    async with api_alone(tmp_path) as alone:
        yield alone


async def announce(desk: Alone, content: bytes = TEXT, name: str = "letter.txt", **more: object) -> str:
    body = {"filename": name, "purpose": "assistants", "bytes": len(content), "mime_type": "text/plain"}
    reply = await desk.http.post("/v1/uploads", json={**body, **more})
    assert reply.status_code == 200, reply.text
    upload_id: str = reply.json()["id"]
    return upload_id


async def send(desk: Alone, upload_id: str, part: bytes) -> httpx.Response:
    return await desk.http.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("blob", part)})


async def part_ids(desk: Alone, upload_id: str, *parts: bytes) -> list[str]:
    return [(await send(desk, upload_id, part)).json()["id"] for part in parts]


def kept_on_disk(desk: Alone) -> list[str]:
    folder = encrypted_blobs_dir(desk.services.settings)
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


async def test_openais_client_uploads_a_file_in_chunks(desk: Alone, tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_bytes(TEXT)
    done = await desk.client.uploads.upload_file_chunked(
        file=letter, mime_type="text/plain", purpose="assistants", part_size=30_000
    )
    assert (done.status, done.bytes, done.filename) == ("completed", len(TEXT), "letter.txt")
    assert done.file is not None
    assert (await desk.client.files.content(done.file.id)).content == TEXT
    assert done.file.expires_at is None
    assert len(kept_on_disk(desk)) == 1


async def test_parts_come_in_any_order_side_by_side_and_are_joined_in_the_one_that_is_asked_for(
    desk: Alone,
) -> None:
    upload_id = await announce(desk, expires_after={"anchor": "created_at", "seconds": 3600})
    pieces = [TEXT[start : start + 10_000] for start in range(0, len(TEXT), 10_000)]
    replies = await asyncio.gather(*(send(desk, upload_id, piece) for piece in reversed(pieces)))
    ids = [reply.json()["id"] for reply in reversed(replies)]
    md5 = hashlib.md5(TEXT).hexdigest()
    body = {"part_ids": ids[::-1], "md5": md5}
    wrong = await desk.http.post(f"/v1/uploads/{upload_id}/complete", json=body)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "md5")
    done = await desk.http.post(f"/v1/uploads/{upload_id}/complete", json={**body, "part_ids": ids})
    file = done.json()["file"]
    assert file["expires_at"] == file["created_at"] + 3600
    assert (await desk.http.get(f"/v1/files/{file['id']}/content")).content == TEXT
    again = await desk.http.post(f"/v1/uploads/{upload_id}/complete", json={**body, "part_ids": ids})
    assert again.json() == done.json()


async def test_who_lost_the_connection_sees_what_has_arrived_and_sends_the_rest(desk: Alone) -> None:
    upload_id = await announce(desk)
    first = (await send(desk, upload_id, TEXT[:50_000])).json()

    async def cut() -> AsyncIterator[bytes]:
        yield b'--edge\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\n'
        yield TEXT[50_000:60_000]

    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    broken = await desk.http.post(f"/v1/uploads/{upload_id}/parts", content=cut(), headers=headers)
    assert broken.status_code == 400
    listed = (await desk.http.get(f"/v1/uploads/{upload_id}/parts")).json()["data"]
    assert [(each["id"], each["bytes"]) for each in listed] == [(first["id"], 50_000)]
    assert kept_on_disk(desk) == [first["id"]]
    (rest,) = await part_ids(desk, upload_id, TEXT[50_000:])
    done = await desk.http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": [first["id"], rest]})
    assert done.json()["status"] == (await desk.http.get(f"/v1/uploads/{upload_id}")).json()["status"]
    assert (await desk.client.files.content(done.json()["file"]["id"])).content == TEXT


async def test_a_cancelled_upload_leaves_nothing_and_takes_nothing_more(desk: Alone) -> None:
    upload_id = await announce(desk)
    await send(desk, upload_id, TEXT[:100])
    cancelled = await desk.client.uploads.cancel(upload_id)
    assert cancelled.status == "cancelled"
    assert kept_on_disk(desk) == []
    for attempt in (
        send(desk, upload_id, b"more"),
        desk.http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": ["part_a"]}),
        desk.http.post(f"/v1/uploads/{upload_id}/cancel"),
    ):
        assert (await attempt).status_code == 400


async def test_an_upload_expires_and_its_parts_go(desk: Alone) -> None:
    upload_id = await announce(desk)
    await send(desk, upload_id, TEXT[:100])
    with desk.services.database.write() as session:
        session.get_one(Upload, upload_id).expires_at -= LIFE_S
    assert (await desk.http.get(f"/v1/uploads/{upload_id}")).json()["status"] == "expired"
    refused = await send(desk, upload_id, b"more")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "upload_closed")
    assert "expired" in refused.json()["error"]["message"]
    upkeep = Upkeep(desk.services.database, desk.services.blobs)
    upkeep.run(now=time.time(), check=lambda _: None, stopping=asyncio.Event())  # type: ignore[arg-type]
    assert kept_on_disk(desk) == []
    assert (await desk.http.get(f"/v1/uploads/{upload_id}")).status_code == 404


async def test_parts_that_no_table_knows_are_swept(desk: Alone) -> None:
    upload_id = await announce(desk)
    known = await part_ids(desk, upload_id, TEXT[:100], TEXT[100:200])
    with desk.services.database.write() as session:
        session.delete(session.get_one(UploadPart, known[0]))
    with desk.services.database.read() as session:
        assert desk.services.blobs.sweep(known_ids(session), older_than_s=0) == 1
    assert kept_on_disk(desk) == known[1:]


async def test_an_announcement_that_cannot_be_right_is_refused_by_the_fields_name(desk: Alone) -> None:
    right = {"filename": "a.txt", "purpose": "assistants", "bytes": 5, "mime_type": "text/plain"}
    for wrong, param in (
        ({"bytes": 0}, "bytes"),
        ({"bytes": "5"}, "bytes"),
        ({"mime_type": "text"}, "mime_type"),
        ({"purpose": "fun"}, "purpose"),
        ({"filename": ""}, "filename"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after.seconds"),
        ({"colour": "red"}, "colour"),
    ):
        reply = await desk.http.post("/v1/uploads", json={**right, **wrong})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


async def test_parts_that_do_not_make_the_file_are_refused_and_stay(desk: Alone) -> None:
    upload_id = await announce(desk)
    ids = await part_ids(desk, upload_id, TEXT[:100], TEXT[100:])
    other = await announce(desk)
    (foreign,) = await part_ids(desk, other, TEXT)
    path = f"/v1/uploads/{upload_id}/complete"
    for wrong, param in (
        (ids[:1], "part_ids"),
        ([*ids, ids[0]], "part_ids"),
        ([foreign], "part_ids.0"),
        (["file-a"], "part_ids.0"),
        ([], "part_ids"),
    ):
        reply = await desk.http.post(path, json={"part_ids": wrong})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), wrong
    assert (await desk.http.post(path, json={"part_ids": ids})).json()["status"] == "completed"


async def test_a_kind_that_the_bytes_do_not_have_is_refused_in_the_end(desk: Alone) -> None:
    upload_id = await announce(desk, mime_type="application/pdf")
    ids = await part_ids(desk, upload_id, TEXT)
    reply = await desk.http.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": ids})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "mime_type")
    assert (await desk.http.get("/v1/files")).json()["data"] == []


async def test_one_who_sends_the_same_part_for_ever_is_stopped(
    desk: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.routes.uploads.MAX_PART_BYTES", 1000)
    upload_id = await announce(desk, TEXT[:500])
    replies = [await send(desk, upload_id, TEXT[:500]) for _ in range(5)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 200, 400]
    assert (await send(desk, upload_id, TEXT[:1001])).status_code == 413


async def test_another_tenant_sees_404_everywhere(desk: Alone) -> None:
    with desk.services.database.write() as session:
        _, key = desk.services.keys.add(session, tenant_name="other", name="o", role=Role.ADMIN, now=0)
    upload_id = await announce(desk)
    ids = await part_ids(desk, upload_id, TEXT)
    other = desk.client.with_options(api_key=key)
    for attempt in (
        other.uploads.parts.create(upload_id, data=b"more"),
        other.uploads.complete(upload_id, part_ids=ids),
        other.uploads.cancel(upload_id),
    ):
        with pytest.raises(openai.NotFoundError):
            await attempt
    assert (await desk.http.get(f"/v1/uploads/{upload_id}")).json()["status"] == "pending"


async def test_the_file_of_an_upload_goes_and_the_upload_says_so(desk: Alone) -> None:
    upload_id = await announce(desk)
    ids = await part_ids(desk, upload_id, TEXT)
    done = await desk.client.uploads.complete(upload_id, part_ids=ids)
    assert done.file is not None
    await desk.client.files.delete(done.file.id)
    assert kept_on_disk(desk) == []
    with pytest.raises(openai.BadRequestError, match="is completed"):
        await desk.client.uploads.complete(upload_id, part_ids=ids)
