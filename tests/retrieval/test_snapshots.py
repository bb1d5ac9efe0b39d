"""Snapshots make a start quick and nothing else: what they hold is SQL's, or they are not used."""

import random
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pytest
from sqlalchemy import delete, select, update

from retrieval import catalog, snapshots, views
from retrieval.blobs import BlobStore
from retrieval.data_keys import Encryption, TenantKeys
from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.snapshots import (
    CHUNK_IDS,
    DOCUMENT_IDS,
    FILE_IDS,
    KEYWORDS,
    MANIFEST,
    ROWS,
    Snapshot,
    Snapshots,
)
from retrieval.tables import Chunk, Collection, Document, Tenant
from retrieval.verify import differences
from retrieval.views import CollectionView, IndexViews
from tests.retrieval.library import add_text_file, chunk_ids, encryption_in, new_collection, shelve
from tests.retrieval.shelf import Shelf
from tests.retrieval.test_views import assert_same, change_at_random, followed, rebuilt

NEVER = threading.Event()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Desk:
    """A collection of some documents, the snapshots' folder, and processes that come and go."""

    def __init__(
        self, database: Database, scope: Scope, folder: Path, encryption: Encryption | None = None
    ) -> None:
        self.database = database
        self.encryption = encryption
        self.scope = scope
        self.folder = folder
        self.clock = Clock()
        self.collection = new_collection(database, scope)
        self.documents = [
            shelve(database, scope, self.collection, f"The vault {number} opens.", f"Key {number} hangs.")
            for number in range(6)
        ]
        self.open: list[Snapshots] = []

    def start(self) -> IndexViews:
        """As a process does."""
        self.open.append(Snapshots(self.folder, self.encryption))
        return IndexViews(self.open[-1], clock=self.clock)

    def tend(self, process: IndexViews) -> None:
        """Long after the last time."""
        for _ in range(2):
            self.clock.now += 10_000
            process.tend(self.database, stopping=NEVER)

    def follow(self, process: IndexViews) -> CollectionView:
        view = followed(self.database, process, self.collection)
        assert view is not None
        return view

    def write(self) -> Path:
        """A snapshot, by a process that ends after it. Returns its folder."""
        process = self.start()
        self.follow(process)
        self.tend(process)
        self.open.pop().close()
        (path,) = self.written()
        return path

    def written(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if Snapshot.named(path.name)]

    def delete(self, number: int) -> None:
        with self.database.write() as session:
            catalog.delete_document(session, self.scope, self.collection.id, self.documents[number].file_id)

    def close(self) -> None:
        for each in self.open:
            each.close()


@pytest.fixture
def desk(database: Database, scope: Scope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(views, "SNAPSHOT_FROM", 1)
    desk = Desk(database, scope, tmp_path / "snapshots")
    yield desk
    desk.close()


@pytest.fixture
def encrypted(
    database: Database, scope: Scope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Desk]:
    monkeypatch.setattr(views, "SNAPSHOT_FROM", 1)
    with database.write() as session:
        encryption_in(tmp_path).keys.of(session, scope.tenant_id)
    desk = Desk(database, scope, tmp_path / "encrypted-snapshots", encryption_in(tmp_path))
    yield desk
    desk.close()


def everything_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def row_bytes(database: Database, document: Document) -> list[bytes]:
    with database.read() as session:
        return list(session.scalars(select(Chunk.embedding).where(Chunk.document_id == document.id)))


def test_a_start_reads_the_snapshot_and_follows_the_log_from_there(desk: Desk) -> None:
    desk.write()
    generator = random.Random(1)
    for _ in range(4):
        change_at_random(desk.database, desk.scope, desk.collection, generator)
    view = desk.follow(desk.start())
    assert view.loaded_seq == 12
    assert_same(view, rebuilt(desk.database, desk.collection))


def test_a_loaded_view_is_sql_s_in_every_vector(desk: Desk) -> None:
    desk.write()
    process = desk.start()
    assert desk.follow(process).loaded_seq is not None
    blobs = BlobStore(desk.folder.parent / "blobs")
    assert not [
        each for each in differences(desk.database, blobs, process) if "index" in each or "vector" in each
    ]


def test_a_snapshot_is_for_its_owner_s_eyes_only(desk: Desk) -> None:
    path = desk.write()
    assert stat.S_IMODE(desk.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", [ROWS, CHUNK_IDS, DOCUMENT_IDS, FILE_IDS, MANIFEST, KEYWORDS])
def test_one_that_is_damaged_is_not_used(desk: Desk, name: str) -> None:
    path = desk.write() / name
    if path.is_dir():
        path = max(path.iterdir(), key=lambda each: each.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    view = desk.follow(desk.start())
    assert view.loaded_seq is None
    assert_same(view, rebuilt(desk.database, desk.collection))
    assert desk.written() == []


@pytest.mark.parametrize("name", [ROWS, MANIFEST, FILE_IDS])
def test_one_that_lacks_a_file_is_not_used(desk: Desk, name: str) -> None:
    (desk.write() / name).unlink()
    assert desk.follow(desk.start()).loaded_seq is None
    assert desk.written() == []


def test_one_with_a_file_too_many_is_not_used(desk: Desk) -> None:
    (desk.write() / KEYWORDS / "more").write_text("more")
    assert desk.follow(desk.start()).loaded_seq is None


def test_a_manifest_that_is_none_is_not_believed(desk: Desk) -> None:
    for content in (b"[]", b"{}", b"", b"\x00", orjson.dumps({"format": snapshots.FORMAT})):
        (desk.write() / MANIFEST).write_bytes(content)
        assert desk.follow(desk.start()).loaded_seq is None


def test_one_of_another_format_is_not_used(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.write()
    monkeypatch.setattr(snapshots, "FORMAT", "a later one")
    assert desk.follow(desk.start()).loaded_seq is None
    assert desk.written() == []


def test_one_of_another_embedding_model_is_not_used(desk: Desk) -> None:
    desk.write()
    with desk.database.write() as session:
        session.execute(update(Collection).values(fingerprint="another"))
    assert desk.follow(desk.start()).loaded_seq is None


def test_one_of_another_collection_is_not_used_under_this_one_s_name(desk: Desk) -> None:
    path = desk.write()
    other = new_collection(desk.database, desk.scope, "another")
    shelve(desk.database, desk.scope, other, *("Whales feed on krill.",) * 12)
    path.rename(path.with_name(f"{other.id}.0.12"))
    view = followed(desk.database, desk.start(), other)
    assert view is not None
    assert view.loaded_seq is None


def test_one_of_a_time_that_was_undone_is_not_used(desk: Desk) -> None:
    """The database was put back to an earlier state, and went on with another file under the same ids."""
    desk.write()
    with desk.database.write() as session:
        file = add_text_file(session, desk.scope, "What was added instead.")
        last = desk.documents[-1].id
        session.execute(update(Document).where(Document.id == last).values(file_id=file.id))
        session.execute(update(Chunk).where(Chunk.document_id == last).values(text="What was added instead."))
    view = desk.follow(desk.start())
    assert view.loaded_seq is None
    assert_same(view, rebuilt(desk.database, desk.collection))


def test_one_whose_chunks_are_another_document_s_is_not_used(desk: Desk) -> None:
    desk.write()
    with desk.database.write() as session:
        moved = session.scalars(select(Chunk).where(Chunk.document_id == desk.documents[0].id).limit(1)).one()
        moved.document_id, moved.position = desk.documents[1].id, 99
    assert desk.follow(desk.start()).loaded_seq is None


def test_one_that_the_log_does_not_lead_on_from_is_not_used(desk: Desk) -> None:
    desk.write()
    with desk.database.write() as session:
        session.execute(delete(Chunk).where(Chunk.document_id == desk.documents[0].id))
    assert desk.follow(desk.start()).loaded_seq is None


def test_a_newer_one_is_left_alone_by_an_older_transaction(desk: Desk) -> None:
    path = desk.write()
    path.rename(path.with_name(f"{desk.collection.id}.0.9999"))
    process = desk.start()
    assert desk.follow(process).loaded_seq is None
    assert len(desk.written()) == 1
    desk.tend(process)  # which begins a transaction of its own, and finds that nobody has got there
    assert [each.name for each in desk.written()] == [f"{desk.collection.id}.0.12"]


def test_what_was_deleted_leaves_the_snapshots_before_a_new_one_is_written(desk: Desk) -> None:
    path = desk.write()
    lost = row_bytes(desk.database, desk.documents[0])
    assert all(row in everything_below(desk.folder) for row in lost)
    desk.delete(0)
    process = desk.start()
    process.tend(desk.database, stopping=NEVER)
    assert not path.exists()
    assert desk.written() == []
    desk.follow(process)
    desk.tend(process)
    (path,) = desk.written()
    assert not any(row in everything_below(desk.folder) for row in lost)
    assert_no_trace(path / KEYWORDS, texts=10)


def test_what_is_deleted_leaves_the_files_that_a_loaded_index_reads(desk: Desk) -> None:
    desk.write()
    process = desk.start()
    assert desk.follow(process).loaded_seq == 12
    assert (working := sorted(desk.folder.glob(f"work-*/*/{KEYWORDS}/*")))
    desk.delete(0)
    assert_same(desk.follow(process), rebuilt(desk.database, desk.collection))
    process.tend(desk.database, stopping=NEVER)
    view = desk.follow(process)
    assert view.loaded_seq is None
    assert_same(view, rebuilt(desk.database, desk.collection))
    assert not any(path.exists() for path in working)
    assert desk.written() == []


def test_a_deletion_that_no_search_has_seen_leaves_them_too(desk: Desk) -> None:
    desk.write()
    process = desk.start()
    desk.follow(process)
    desk.delete(0)
    process.tend(desk.database, stopping=NEVER)
    assert sorted(desk.folder.glob(f"*/*/{KEYWORDS}/*")) == []
    assert_same(desk.follow(process), rebuilt(desk.database, desk.collection))


def test_an_addition_leaves_the_snapshot_and_moves_the_index_into_memory(desk: Desk) -> None:
    path = desk.write()
    process = desk.start()
    desk.follow(process)
    shelve(desk.database, desk.scope, desk.collection, "One more.")
    process.tend(desk.database, stopping=NEVER)
    assert desk.written() == [path]
    view = desk.follow(process)
    assert view.loaded_seq is None
    assert_same(view, rebuilt(desk.database, desk.collection))


def test_a_deleted_collection_leaves_nothing(desk: Desk) -> None:
    desk.write()
    process = desk.start()
    desk.follow(process)
    with desk.database.write() as session:
        catalog.delete_collection(session, desk.scope, desk.collection.id)
    process.forget(desk.collection.id)
    assert [path for path in desk.folder.rglob("*") if path.is_file() and path.name != "lock"] == []


def test_a_collection_that_another_process_deleted_leaves_nothing(desk: Desk) -> None:
    desk.write()
    process = desk.start()
    desk.follow(process)
    with desk.database.write() as session:
        catalog.delete_collection(session, desk.scope, desk.collection.id)
    process.tend(desk.database, stopping=NEVER)
    with desk.database.read() as session:
        process.keep_ready(session)
    assert [path for path in desk.folder.rglob("*") if path.is_file() and path.name != "lock"] == []


def test_a_discarded_generation_leaves_nothing(database: Database, scope: Scope, desk: Desk) -> None:
    shelf = Shelf(database, scope)
    process = desk.start()
    shelf.follow(process)
    desk.tend(process)
    number = shelf.begin()
    shelf.fill(number, shelf.documents)
    shelf.switch(number)
    shelf.follow(process)
    desk.tend(process)
    assert len(desk.open[0].kept(shelf.collection.id)) == 2
    shelf.discard(0)
    process.tend(database, stopping=NEVER)
    assert [each.generation for each in desk.open[0].kept(shelf.collection.id)] == [number]


def test_none_is_written_while_the_collection_changes(desk: Desk) -> None:
    process = desk.start()
    desk.follow(process)
    for number in range(3):
        process.tend(desk.database, stopping=NEVER)
        desk.clock.now += views.QUIET_S - 1
        shelve(desk.database, desk.scope, desk.collection, f"Note {number}.")
    process.tend(desk.database, stopping=NEVER)
    assert desk.written() == []
    desk.clock.now += views.QUIET_S
    process.tend(desk.database, stopping=NEVER)
    assert [each.name for each in desk.written()] == [f"{desk.collection.id}.0.15"]


def test_a_newer_one_replaces_the_older(desk: Desk) -> None:
    desk.write()
    shelve(desk.database, desk.scope, desk.collection, "One more.", "And another.")
    assert desk.write().name == f"{desk.collection.id}.0.14"
    assert desk.follow(desk.start()).loaded_seq == 14


def test_a_stop_while_one_is_written_leaves_nothing_of_it(desk: Desk) -> None:
    process, stopping = desk.start(), threading.Event()
    desk.follow(process)
    stopping.set()
    with desk.database.read() as session:
        of = session.get_one(Collection, desk.collection.id)
        windows = views._windows(session, Chunk.collection_id == desk.collection.id)
        assert not desk.open[0].write(session, of, windows, stopping=stopping)
    assert [path for path in desk.folder.rglob("*") if path.is_file() and path.name != "lock"] == []


def test_what_a_killed_process_left_goes_with_the_next_start(desk: Desk) -> None:
    alive = desk.start()
    left = desk.folder / "work-0123456789abcdef"
    (left / "half").mkdir(parents=True)
    (left / "half" / ROWS).write_bytes(b"half")
    desk.follow(alive)
    desk.start()
    assert not left.exists()
    assert len(list(desk.folder.glob("work-*"))) == 2


def test_two_processes_share_a_snapshot_and_each_changes_its_own_copy(desk: Desk) -> None:
    path = desk.write()
    before = {each: each.read_bytes() for each in path.rglob("*") if each.is_file()}
    first, second = desk.start(), desk.start()
    assert desk.follow(first).loaded_seq == desk.follow(second).loaded_seq == 12
    shelve(desk.database, desk.scope, desk.collection, "One more.")
    assert_same(desk.follow(first), desk.follow(second))
    assert_same(desk.follow(first), rebuilt(desk.database, desk.collection))
    assert {each: each.read_bytes() for each in path.rglob("*") if each.is_file()} == before


def test_a_folder_without_links_means_a_start_from_sql(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.write()

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.link", refuse)
    view = desk.follow(desk.start())
    assert view.loaded_seq is None
    assert_same(view, rebuilt(desk.database, desk.collection))


def test_large_collections_come_back_the_same(desk: Desk) -> None:
    generator = np.random.default_rng(0)
    words = [f"word{number}" for number in range(300)]
    for _ in range(3):
        texts = [" ".join(generator.choice(words, 12)) for _ in range(1_500)]
        shelve(desk.database, desk.scope, desk.collection, *texts)
    desk.write()
    view = desk.follow(desk.start())
    assert view.loaded_seq == 4_512
    assert view.vectors.chunk_ids() == chunk_ids(desk.database, desk.collection)
    assert_same(view, rebuilt(desk.database, desk.collection))


def assert_no_trace(keywords: Path, *, texts: int) -> None:
    """tantivy keeps the words of deleted texts in a segment that tells how many they are."""
    segments = orjson.loads((keywords / "meta.json").read_bytes())["segments"]
    assert [each["deletes"] for each in segments] == [None] * len(segments)
    assert sum(each["max_doc"] for each in segments) == texts


def test_with_keys_a_snapshot_is_read_as_before_and_tells_neither_words_nor_vectors(
    desk: Desk, encrypted: Desk
) -> None:
    plain, path = everything_below(desk.write()), everything_below(encrypted.write())
    rows = row_bytes(encrypted.database, encrypted.documents[0])
    assert all(row in plain and row not in path for row in rows)
    assert b"index_settings" in plain
    assert b"index_settings" not in path
    view = encrypted.follow(encrypted.start())
    assert view.loaded_seq is not None
    assert_same(view, rebuilt(encrypted.database, encrypted.collection))


def test_with_keys_what_is_plain_lies_in_memory_and_goes_with_its_process(
    encrypted: Desk, tmp_path: Path
) -> None:
    encrypted.write()
    ids = np.array(sorted(chunk_ids(encrypted.database, encrypted.collection)), np.int64).tobytes()
    process = encrypted.start()
    view = encrypted.follow(process)
    assert ids in everything_below(tmp_path / "memory")
    assert ids not in everything_below(encrypted.folder)
    del view, process
    encrypted.open.pop().close()
    assert everything_below(tmp_path / "memory") == b""


def test_with_keys_no_file_of_a_snapshot_may_change_a_bit(encrypted: Desk) -> None:
    written = encrypted.write()
    whole = shutil.copytree(written, written.parent.parent / "whole")
    with encrypted.database.read() as session:
        collection = session.get_one(Collection, encrypted.collection.id)
        for path in [path for path in sorted(whole.rglob("*")) if path.is_file()]:
            shutil.rmtree(written, ignore_errors=True)
            shutil.copytree(whole, written)
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 4
            (written / path.relative_to(whole)).write_bytes(content)
            process = Snapshots(encrypted.folder, encrypted.encryption)
            assert process.load(session, collection) is None, path.name
            assert encrypted.written() == []
            process.close()


def test_a_plain_snapshot_and_one_under_other_keys_are_not_used_where_there_are_keys(
    desk: Desk, tmp_path: Path
) -> None:
    desk.write()
    desk.encryption = encryption_in(tmp_path)
    with desk.database.write() as session:
        desk.encryption.keys.of(session, desk.scope.tenant_id)
    assert desk.follow(desk.start()).loaded_seq is None
    assert desk.written() == []
    desk.write()
    with desk.database.write() as session:
        # As in a database of another root key.
        session.get_one(Tenant, desk.scope.tenant_id).key = None
        session.flush()
        desk.encryption = Encryption(TenantKeys(bytes(32)), tmp_path / "memory")
        desk.encryption.keys.of(session, desk.scope.tenant_id)
    assert desk.follow(desk.start()).loaded_seq is None
    assert desk.written() == []
