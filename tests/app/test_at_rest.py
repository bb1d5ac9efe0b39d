"""What lies on disk: unreadable without the keys, whole or refused with them, and as searchable as ever."""

import asyncio
import json
import os
import secrets
import shutil
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from app.access.key_files import KeysUnusable
from app.running.serve import prepare_data
from app.settings import Settings, read_settings
from app.storage.master_key import rotate_master
from app.storage.opening import StorageRefused, keys_dir, open_storage
from ingest.sandbox import ParserPool
from retrieval.database import DatabaseUnavailable
from retrieval.tables import Blob, Chunk, File
from retrieval.verify import differences
from retrieval.views import IndexViews
from tests.app.alone import Alone, api_alone
from tests.app.conftest import Api, opened_api
from tests.serving.hosting import MINILM

CANARY = "heronweir"
TEXT = f"The {CANARY} stands by the river.\n\nIts key hangs in the hall of {CANARY}."
QUESTION = f"Where does the key of the {CANARY} hang?"


def holding(folder: Path, text: str = CANARY) -> list[str]:
    """Files below that hold the text, in any case, in their bytes or their names."""
    needle = text.encode()
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and (needle in path.read_bytes().lower() or needle in str(path).encode())
    ]


async def add(alone: Alone, text: str = TEXT, name: str = f"{CANARY}.txt") -> tuple[str, str]:
    """Returns the store's and the file's id, once it can be searched."""
    file = await alone.client.files.create(file=(name, text.encode()), purpose="assistants")
    store = await alone.client.vector_stores.create(name=f"about {CANARY}")
    await alone.client.vector_stores.files.create(store.id, file_id=file.id, attributes={"place": CANARY})
    await alone.worker.drain()
    return store.id, file.id


async def found(alone: Alone, store_id: str) -> list[str]:
    page = await alone.client.vector_stores.search(
        store_id, query=QUESTION, extra_body={"search_mode": "keyword"}
    )
    return [hit.file_id for hit in page.data]


def killed_at(step: int, folder: Path, run: Callable[[], object]) -> bool:
    """Runs it in a process that dies as it opens or moves a file in the folder for that time; False if it ended."""
    pid = os.fork()
    if pid == 0:
        steps = 0

        def die(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal steps
            if event in {"open", "os.rename", "os.remove"} and str(folder) in str(arguments[0]):
                steps += 1
                if steps == step:
                    os._exit(9)

        sys.addaudithook(die)
        try:
            run()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def settings_of(folder: Path, **encryption: Any) -> Settings:
    return read_settings().with_options(storage={"data_dir": str(folder)}, encryption=encryption)


@asynccontextmanager
async def opened(folder: Path, **encryption: Any) -> AsyncIterator[Alone]:
    async with api_alone(folder, **encryption) as alone:
        yield alone


async def test_no_word_of_a_document_is_on_disk_while_it_is_uploaded_ingested_and_searched(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as alone:
        store_id, file_id = await add(alone, TEXT + "\n\nMore.\n\n" * 200)
        assert await found(alone, store_id) == [file_id]
        stopping = threading.Event()
        for _ in range(2):
            alone.services.views.tend(alone.services.database, stopping=stopping)
        assert len([path for path in tmp_path.rglob("*") if path.is_file()]) > 6
        assert holding(tmp_path) == []
    assert holding(tmp_path) == []


async def send_part(http: httpx.AsyncClient, size_bytes: int, part: str) -> str:
    """Begins an upload of so many bytes. Returns its path."""
    new = {"filename": f"{CANARY}.txt", "purpose": "assistants", "bytes": size_bytes}
    upload = (await http.post("/v1/uploads", json={**new, "mime_type": "text/plain"})).json()
    reply = await http.post(f"/v1/uploads/{upload['id']}/parts", files={"data": ("blob", part.encode())})
    assert reply.status_code == 200, reply.text
    return f"/v1/uploads/{upload['id']}"


async def tell_everywhere(api: Api) -> dict[str, list[str]]:
    """Tells of the canary wherever a client can. Returns what there is to delete and to cancel then, by method."""

    async def post(path: str, **body: Any) -> dict[str, Any]:
        reply = await api.http.post(path, json=body)
        assert reply.status_code == 200, reply.text
        told: dict[str, Any] = reply.json()
        return told

    api.engine.answer = lambda _: f"The {CANARY} answers."
    messages = [{"role": "user", "content": QUESTION}]
    item = {"type": "message", "role": "user", "content": QUESTION}
    completion = await post("/v1/chat/completions", model="scripted", messages=messages, store=True)
    conversation = await post("/v1/conversations", items=[item], metadata={"about": CANARY})
    shared = await post(f"/v1/conversations/{conversation['id']}/items", items=[item])
    in_it = await post("/v1/responses", model="scripted", input=QUESTION, conversation=conversation["id"])
    behind = await post("/v1/responses", model="scripted", input=QUESTION, background=True)
    line = {"custom_id": CANARY, "method": "POST", "url": "/v1/chat/completions"}
    asked = json.dumps({**line, "body": {"model": "scripted", "messages": messages}}).encode()
    file = await api.http.post("/v1/files", files={"file": ("a.jsonl", asked)}, data={"purpose": "batch"})
    batch = await post(
        "/v1/batches",
        input_file_id=file.json()["id"],
        endpoint="/v1/chat/completions",
        completion_window="24h",
    )
    async with asyncio.timeout(60):
        while batch["status"] != "completed" or behind["status"] != "completed":
            await asyncio.sleep(0.1)
            batch = (await api.http.get(f"/v1/batches/{batch['id']}")).json()
            behind = (await api.http.get(f"/v1/responses/{behind['id']}")).json()
    answers = (await api.http.get(f"/v1/files/{batch['output_file_id']}/content")).text
    assert CANARY in answers
    assert CANARY in str(behind["output"])
    whole = await send_part(api.http, len(TEXT), TEXT)
    (part,) = (await api.http.get(f"{whole}/parts")).json()["data"]
    sent = (await post(f"{whole}/complete", part_ids=[part["id"]]))["file"]
    return {
        "DELETE": [
            f"/v1/files/{sent['id']}",
            f"/v1/chat/completions/{completion['id']}",
            f"/v1/conversations/{conversation['id']}/items/{shared['data'][0]['id']}",
            f"/v1/conversations/{conversation['id']}",
            *(f"/v1/responses/{each['id']}" for each in (in_it, behind)),
            *(f"/v1/files/{each}" for each in (batch["input_file_id"], batch["output_file_id"])),
        ],
        "POST": [f"{await send_part(api.http, 1000, TEXT)}/cancel"],
    }


async def test_no_word_of_what_is_asked_answered_or_sent_in_parts_is_on_disk(
    models_url: str, parsers: ParserPool, tmp_path: Path
) -> None:
    async with opened_api(models_url, parsers, tmp_path, embedding=str(MINILM)) as api:
        await tell_everywhere(api)
        assert len(list(api.services.blobs.ids())) == 4
        assert holding(tmp_path) == []
    assert holding(tmp_path) == []


async def test_a_part_of_which_a_bit_was_flipped_makes_no_file_and_is_named_by_verify(tmp_path: Path) -> None:
    async with opened(tmp_path) as alone:
        path = await send_part(alone.http, len(TEXT), TEXT)
        (part_id,) = alone.services.blobs.ids()
        stored = alone.services.blobs.path(part_id)
        stored.write_bytes(stored.read_bytes()[:-1] + b"x")
        reply = await alone.http.post(f"{path}/complete", json={"part_ids": [part_id]})
        assert (reply.status_code, reply.json()["error"]["code"]) == (500, "stored_bytes_damaged")
        told = (await alone.http.get("/v1/verify")).json()["differences"]
        assert told == [f"{part_id}: the file's bytes have changed."]
        stored.unlink()
        told = (await alone.http.get("/v1/verify")).json()["differences"]
        assert told == [f"{part_id}: the file's bytes are missing."]


async def test_with_encryption_off_the_same_words_are_there_so_the_search_for_them_is_none_for_nothing(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, enabled=False) as alone:
        await add(alone)
        assert len(holding(tmp_path)) >= 2


async def test_content_comes_back_whole_and_by_ranges(tmp_path: Path) -> None:
    written = secrets.token_hex(150_000).encode()
    async with opened(tmp_path) as alone:
        file = await alone.client.files.create(file=("a.txt", written), purpose="assistants")
        url = f"/v1/files/{file.id}/content"

        async def content(asked: str | None = None) -> httpx.Response:
            return await alone.http.get(url, headers={"Range": asked} if asked else {})

        whole = await content()
        assert (whole.status_code, whole.content) == (200, written)
        assert whole.headers["content-length"] == str(len(written))
        for start, end in (
            (0, 9),
            (65_530, 65_545),
            (131_072, 200_000),
            (len(written) - 5, len(written) - 1),
        ):
            part = await content(f"bytes={start}-{end}")
            assert (part.status_code, part.content) == (206, written[start : end + 1])
            assert part.headers["content-range"] == f"bytes {start}-{end}/{len(written)}"
        assert (await content("bytes=-7")).content == written[-7:]
        assert (await content(f"bytes={len(written)}-")).status_code == 416


async def test_a_file_of_which_a_bit_was_flipped_is_refused_and_named_by_verify(tmp_path: Path) -> None:
    async with opened(tmp_path) as alone:
        _, file_id = await add(alone)
        (blob_id,) = alone.services.blobs.ids()
        path = alone.services.blobs.path(blob_id)
        stored = bytearray(path.read_bytes())
        stored[10] ^= 1
        path.write_bytes(stored)
        reply = await alone.http.get(f"/v1/files/{file_id}/content")
        assert reply.status_code == 500
        assert reply.json()["error"]["code"] == "stored_bytes_damaged"
        assert blob_id in reply.json()["error"]["message"]
        told = (await alone.http.get("/v1/verify")).json()["differences"]
        assert told == [f"{blob_id}: the file's bytes have changed."]


async def test_a_file_that_is_damaged_before_it_is_parsed_fails_and_says_so(tmp_path: Path) -> None:
    async with opened(tmp_path) as alone:
        file = await alone.client.files.create(file=("a.txt", TEXT.encode()), purpose="assistants")
        (blob_id,) = alone.services.blobs.ids()
        alone.services.blobs.path(blob_id).write_bytes(b"x" * 100)
        store = await alone.client.vector_stores.create(name="letters")
        await alone.client.vector_stores.files.create(store.id, file_id=file.id)
        await alone.worker.drain()
        document = await alone.client.vector_stores.files.retrieve(file.id, vector_store_id=store.id)
        assert document.status == "failed"
        assert document.last_error is not None
        assert "fail their check" in document.last_error.message


async def test_the_master_key_changes_without_a_change_to_any_data(tmp_path: Path) -> None:
    async with opened(tmp_path) as alone:
        store_id, file_id = await add(alone)
    blobs = {path: path.read_bytes() for path in (tmp_path / "encrypted-blobs").rglob("blob-*")}
    keys, settings = tmp_path / "keys", settings_of(tmp_path)
    before = {name: (keys / name).read_bytes() for name in ("master.key", "root.key")}
    rotate_master(settings.encryption, keys, new_key_file=None)
    assert all((keys / name).read_bytes() != content for name, content in before.items())
    async with opened(tmp_path) as alone:
        assert await found(alone, store_id) == [file_id]
    assert {path: path.read_bytes() for path in blobs} == blobs
    (keys / "master.key").write_bytes(before["master.key"])
    with pytest.raises(KeysUnusable, match="lies under"):
        prepare_data(settings)


def test_a_rotation_that_is_killed_between_its_steps_leaves_a_folder_that_opens(tmp_path: Path) -> None:
    settings, keys = settings_of(tmp_path), tmp_path / "keys"
    prepare_data(settings)
    for step in range(1, 40):
        if not killed_at(step, tmp_path, lambda: rotate_master(settings.encryption, keys, new_key_file=None)):
            break
        prepare_data(settings)
    assert step > 8
    assert "opens nothing any more" in rotate_master(settings.encryption, keys, new_key_file=None)
    prepare_data(settings)


def test_the_master_key_may_come_from_a_setting_or_a_command_and_is_then_on_no_disk(tmp_path: Path) -> None:
    key, new = secrets.token_hex(32), secrets.token_hex(32)
    prepare_data(settings_of(tmp_path, master_key=key))
    by_command = settings_of(tmp_path, master_key_command=f"echo {key}")
    prepare_data(by_command)
    assert not (tmp_path / "keys" / "master.key").exists()
    assert holding(tmp_path, key) == []
    for wrong in (
        {"master_key": new},
        {"master_key": "changeme"},
        {"master_key": "00" * 32},
        {"master_key_command": "false"},
        {"master_key_command": "/nowhere/kms get"},
        {"master_key_file": str(tmp_path / "absent")},
    ):
        with pytest.raises(KeysUnusable) as refused:
            prepare_data(settings_of(tmp_path, **wrong))
        assert key not in str(refused.value)
        assert new not in str(refused.value)
    with pytest.raises(KeysUnusable, match="--new"):
        rotate_master(by_command.encryption, keys_dir(by_command), new_key_file=None)
    new_file = tmp_path / "new"
    new_file.write_text(new)
    new_file.chmod(0o600)
    rotate_master(by_command.encryption, keys_dir(by_command), new_key_file=new_file)
    prepare_data(settings_of(tmp_path, master_key=new))
    with pytest.raises(KeysUnusable, match="lies under"):
        prepare_data(by_command)


@pytest.mark.parametrize("name", ["master.key", "root.key", "server.secret"])
def test_a_key_that_others_may_read_stops_the_start_and_is_named(tmp_path: Path, name: str) -> None:
    settings = settings_of(tmp_path)
    prepare_data(settings)
    path = tmp_path / "keys" / name
    path.chmod(0o604)
    with pytest.raises(KeysUnusable, match=rf"{name}.*chmod 600"):
        prepare_data(settings)


@pytest.mark.parametrize("name", ["master.key", "root.key"])
def test_a_key_that_is_lost_is_never_replaced_by_a_new_one(tmp_path: Path, name: str) -> None:
    settings = settings_of(tmp_path)
    prepare_data(settings)
    (tmp_path / "keys" / name).unlink()
    with pytest.raises(KeysUnusable, match=f"{name}.*missing"):
        prepare_data(settings)
    assert not (tmp_path / "keys" / name).exists()


def test_the_folder_for_plain_files_has_to_be_in_memory(tmp_path: Path) -> None:
    with pytest.raises(StorageRefused, match=r"encryption\.memory_folder.*tmpfs"):
        prepare_data(settings_of(tmp_path, memory_folder=str(tmp_path)))


def test_the_data_folder_of_another_root_key_is_not_opened(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        prepare_data(settings_of(folder))
    shutil.rmtree(one / "keys")
    shutil.copytree(other / "keys", one / "keys")
    with pytest.raises(DatabaseUnavailable, match="other keys"):
        prepare_data(settings_of(one))


async def test_a_plain_data_folder_is_refused_until_migrate_has_encrypted_it(tmp_path: Path) -> None:
    async with opened(tmp_path, enabled=False) as alone:
        store_id, file_id = await add(alone)
        key = alone.key
        locked = await alone.http.post(
            "/v1/files", files={"file": ("b.txt", b"another")}, data={"password": "open sesame"}
        )
        sealed_id = locked.json()["id"]
        upload = await send_part(alone.http, len(TEXT), TEXT)
    assert holding(tmp_path)
    settings = settings_of(tmp_path)
    with pytest.raises((DatabaseUnavailable, StorageRefused), match="strongroom migrate"):
        prepare_data(settings)
    said: list[str] = []
    prepare_data(settings, encrypts=said.append)
    assert holding(tmp_path) == []
    assert "2 files" in said[0]
    prepare_data(settings, encrypts=said.append)
    assert len(said) == 1
    async with opened(tmp_path) as alone:
        assert alone.key == key
        (part,) = (await alone.http.get(f"{upload}/parts")).json()["data"]
        whole = (await alone.http.post(f"{upload}/complete", json={"part_ids": [part["id"]]})).json()
        assert (await alone.http.get(f"/v1/files/{whole['file']['id']}/content")).text == TEXT
        assert await found(alone, store_id) == [file_id]
        assert (await alone.http.get(f"/v1/files/{file_id}/content")).text == TEXT
        # The same bytes are known again, under their new digest.
        await alone.client.files.create(file=("again.txt", TEXT.encode()), purpose="assistants")
        services = alone.services
        assert len(list(services.blobs.ids())) == 2
        assert list(differences(services.database, services.blobs, IndexViews())) == []
        with services.database.read() as session:
            sealed = session.get_one(File, sealed_id).password
        assert sealed is not None
        assert services.sealer.open(sealed, owner=sealed_id) == "open sesame"
    with pytest.raises((DatabaseUnavailable, StorageRefused), match=r"encryption\.enabled"):
        prepare_data(settings_of(tmp_path, enabled=False))


def test_migrate_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    async def fill() -> None:
        async with opened(tmp_path, enabled=False) as alone:
            for number in range(3):
                await add(alone, f"{TEXT} {number}")

    asyncio.run(fill())
    settings = settings_of(tmp_path)
    step = 0
    # Further each time, as what was done stays done.
    while killed_at(step := step + 3, tmp_path, lambda: prepare_data(settings, encrypts=lambda _: None)):
        assert step < 400
    assert step > 20
    assert holding(tmp_path) == []
    with open_storage(settings) as storage:
        assert list(differences(storage.database, storage.blobs, IndexViews())) == []
        with storage.database.read() as session:
            assert all(blob.key for blob in session.scalars(select(Blob)))
            assert session.scalar(select(func.count()).select_from(Chunk))
