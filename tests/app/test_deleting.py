"""Deleted means deleted: not on disk, not after a kill, and not when an older state of the database comes back."""

import asyncio
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from sqlalchemy import delete, select, update

from app.access.auth import KeyRing
from app.running.serve import prepare_data
from app.services import Services
from app.storage.master_key import read_root_key
from app.storage.opening import database_key, open_storage
from ingest.sandbox import ParserPool
from ingest.upkeep import Upkeep
from retrieval.catalog import delete_file
from retrieval.ledger import LedgerFile, entries_in_sql
from retrieval.scope import Scope
from retrieval.tables import Blob, Chunk, DeletedKind, Deletion, File, Key, Role, Upload, UploadState
from retrieval.verify import differences
from retrieval.views import IndexViews
from tests.app.alone import api_alone
from tests.app.conftest import opened_api
from tests.app.test_at_rest import CANARY, add, found, holding, killed_at, settings_of, tell_everywhere
from tests.serving.hosting import MINILM

PAGE, RESERVED, SALT, FRAME_HEAD, LOG_HEAD = 4096, 80, 16, 24, 32


def pages_of(folder: Path) -> bytes:
    """Every page of the database and of its log, decrypted: what a thief with all keys could read."""
    key = database_key(read_root_key(settings_of(folder).encryption, folder / "keys"))
    stored = (folder / "strongroom.db").read_bytes()
    pages = [stored[start : start + PAGE] for start in range(0, len(stored), PAGE)]
    pages[0] = pages[0][SALT:]
    log = folder / "strongroom.db-wal"
    frames = log.read_bytes() if log.exists() else b""
    length = PAGE + FRAME_HEAD
    pages += [frames[start + FRAME_HEAD : start + length] for start in range(LOG_HEAD, len(frames), length)]
    return b"".join(_decrypted(key, page) for page in pages)


def _decrypted(key: bytes, page: bytes) -> bytes:
    content, iv = page[:-RESERVED], page[-RESERVED : -RESERVED + 16]
    # The first page of the log's frames begins with the salt too; a part of a block tells nothing.
    content = content[len(content) % 16 :]
    decryptor = Cipher(AES(key), CBC(iv)).decryptor()
    return decryptor.update(content) + decryptor.finalize()


async def upkeep(services: Services) -> None:
    """As the leader does every half minute."""
    stopping = asyncio.Event()
    run = Upkeep(services.database, services.blobs).run
    await asyncio.to_thread(run, now=1.0, check=lambda _: None, stopping=stopping)  # type: ignore[arg-type]


async def test_after_a_delete_no_page_of_the_database_holds_it_whoever_has_the_keys(tmp_path: Path) -> None:
    async with api_alone(tmp_path) as alone:
        store_id, file_id = await add(alone)
        needle = CANARY.encode()
        assert needle in pages_of(tmp_path).lower()
        blob_path = alone.services.blobs.path(next(iter(alone.services.blobs.ids())))
        assert (await alone.http.delete(f"/v1/files/{file_id}")).json()["deleted"]
        assert not blob_path.exists()
        assert await found(alone, store_id) == []
        assert (await alone.http.get(f"/v1/files/{file_id}/content")).status_code == 404
        assert (await alone.http.delete(f"/v1/vector_stores/{store_id}")).json()["deleted"]
        await upkeep(alone.services)
        assert needle not in pages_of(tmp_path).lower()
        assert holding(tmp_path, file_id) == ["deletions.ledger"]


async def test_after_a_delete_no_page_holds_what_was_asked_answered_or_sent_in_parts(
    models_url: str, parsers: ParserPool, tmp_path: Path
) -> None:
    async with opened_api(models_url, parsers, tmp_path, embedding=str(MINILM)) as api:
        told = await tell_everywhere(api)
        needle, folder = CANARY.encode(), api.settings.storage.data_dir
        assert needle in pages_of(folder).lower()
        for method, paths in told.items():
            for path in paths:
                reply = await api.http.request(method, path)
                assert reply.status_code == 200, reply.text
        assert list(api.services.blobs.ids()) == []
        with api.services.database.write() as session:
            # The name of one that was cancelled stays until its time is over.
            session.execute(
                update(Upload).where(Upload.state == UploadState.CANCELLED).values(expires_at=0.0)
            )
        await upkeep(api.services)
        assert needle not in pages_of(folder).lower()
        assert list(differences(api.services.database, api.services.blobs, IndexViews())) == []


async def _with_older_database(folder: Path, change: str) -> tuple[str, str]:
    """Adds, copies the whole data folder, deletes, and puts the copy back: all of it but the ledger."""
    older = folder.parent / "older"
    async with api_alone(folder) as alone:
        store_id, file_id = await add(alone)
        other_store, other_file = await add(alone, f"Another {CANARY}.", "other.txt")
    shutil.copytree(folder, older)
    async with api_alone(folder) as alone:
        match change:
            case "file":
                await alone.http.delete(f"/v1/files/{file_id}")
            case "document":
                await alone.http.delete(f"/v1/vector_stores/{store_id}/files/{file_id}")
            case "collection":
                await alone.http.delete(f"/v1/vector_stores/{store_id}")
    shutil.copy(folder / "deletions.ledger", older / "deletions.ledger")
    shutil.rmtree(folder)
    older.rename(folder)
    async with api_alone(folder) as alone:
        assert await found(alone, other_store) == [other_file]
        reply = await alone.http.post(
            f"/v1/vector_stores/{store_id}/search", json={"query": CANARY, "search_mode": "keyword"}
        )
        if change == "collection":
            assert reply.status_code == 404
        else:
            assert reply.json()["data"] == []
        gone = await alone.http.get(f"/v1/files/{file_id}/content")
        assert gone.status_code == (404 if change == "file" else 200)
        services = alone.services
        told = list(differences(services.database, services.blobs, IndexViews()))
        assert told == []
        with services.database.read() as session:
            assert session.scalars(select(Chunk).where(Chunk.collection_id == store_id)).all() == []
    return store_id, file_id


@pytest.mark.parametrize("change", ["file", "document", "collection"])
async def test_what_was_deleted_stays_deleted_when_an_older_database_is_put_back(
    tmp_path: Path, change: str
) -> None:
    await _with_older_database(tmp_path / "data", change)


async def test_a_key_that_was_revoked_stays_so_when_an_older_database_is_put_back(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "data")
    prepare_data(settings)
    with open_storage(settings) as storage:
        storage.database.settle()
        shutil.copy(tmp_path / "data" / "strongroom.db", tmp_path / "older.db")
    with open_storage(settings) as storage, storage.database.write() as session:
        key = session.scalars(select(Key)).one()
        KeyRing(storage.database, bytes(32)).revoke(session, key.id, now=5.0)
    for path in (tmp_path / "data").glob("strongroom.db*"):
        path.unlink()
    shutil.copy(tmp_path / "older.db", tmp_path / "data" / "strongroom.db")
    prepare_data(settings)
    with open_storage(settings) as storage, storage.database.read() as session:
        assert session.get_one(Key, key.id).revoked_at is not None


async def test_a_file_taken_out_and_put_in_again_stays_in_when_the_ledger_is_replayed(tmp_path: Path) -> None:
    async with api_alone(tmp_path) as alone:
        store_id, file_id = await add(alone)
        await alone.http.delete(f"/v1/vector_stores/{store_id}/files/{file_id}")
        await alone.client.vector_stores.files.create(store_id, file_id=file_id)
        await alone.worker.drain()
    with open_storage(settings_of(tmp_path)) as storage, storage.database.write() as session:
        session.execute(delete(Deletion))
    async with api_alone(tmp_path) as alone:
        assert await found(alone, store_id) == [file_id]


def test_a_delete_that_is_killed_at_any_step_is_whole_or_not_at_all_and_never_comes_back(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"

    async def fill() -> str:
        async with api_alone(folder) as alone:
            return (await add(alone))[1]

    file_id = asyncio.run(fill())
    saved = shutil.copytree(folder, tmp_path / "saved")
    settings = settings_of(folder)

    def delete_it() -> None:
        with open_storage(settings) as storage:
            with storage.database.write() as session:
                tenant_id = session.scalars(select(File.tenant_id)).one()
                orphans = delete_file(session, Scope(tenant_id, "key", Role.WRITER), file_id)
            for blob_id in orphans:
                storage.blobs.remove(blob_id)

    outcomes = set()
    for step in range(1, 60, 2):
        shutil.rmtree(folder)
        shutil.copytree(saved, folder)
        was_killed = killed_at(step, folder, delete_it)
        prepare_data(settings)
        with open_storage(settings) as storage, storage.database.read() as session:
            is_there = session.get(File, file_id) is not None
            rows = [len(session.scalars(select(table)).all()) for table in (Blob, Chunk)]
            assert all(rows) if is_there else not any(rows)
            in_file = LedgerFile(folder / "deletions.ledger").read()
            assert in_file == entries_in_sql(session)
            assert (file_id in {entry.object_id for entry in in_file}) is not is_there
            assert {entry.kind for entry in in_file} <= {DeletedKind.FILE}
        outcomes.add(is_there)
        if not was_killed:
            break
    assert not was_killed
    assert outcomes == {True, False}
