"""Blobs on disk: limits, nothing left behind, and nothing to be read without their keys."""

import errno
import hashlib
from contextlib import suppress
from pathlib import Path

import pytest

from retrieval.blobs import BlobContent, BlobStore, TooLarge
from retrieval.catalog import NewFile, add_file
from retrieval.data_keys import Encryption, TenantKeys
from retrieval.database import Database
from retrieval.reserve import DiskFailed, DiskFull
from retrieval.scope import Scope
from retrieval.segments import SEGMENT_BYTES, TAG_BYTES, Damaged
from retrieval.tables import Blob, File
from tests.retrieval.library import encryption_in

TEXT = b"the vault opens at nine"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture(params=["plain", "encrypted"])
def blobs(folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> BlobStore:
    return BlobStore(folder, encryption_in(tmp_path) if request.param == "encrypted" else None)


@pytest.fixture
def encrypted(folder: Path, tmp_path: Path) -> BlobStore:
    return BlobStore(folder, encryption_in(tmp_path))


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def upload(database: Database, scope: Scope, blobs: BlobStore, content: bytes) -> File:
    with blobs.receive(limit_bytes=1 << 30) as receiver, database.write() as session:
        receiver.write(content)
        received = receiver.finish()
        new = NewFile("a.txt", "assistants", "text/plain", blobs.row(session, scope.tenant_id, received))
        file, is_new_blob = add_file(session, scope, new, now=1.0)
        if is_new_blob:
            blobs.keep(received)
        return file


def content_of(database: Database, blobs: BlobStore, file: File) -> BlobContent:
    with database.read() as session:
        return blobs.content(session, session.get_one(Blob, file.blob_id))


def test_a_kept_blob_has_its_bytes_and_its_hash(blobs: BlobStore, folder: Path) -> None:
    with blobs.receive(limit_bytes=100, blob_id="blob-1a") as receiver:
        receiver.write(b"the vault ")
        receiver.write(b"opens at nine")
        received = receiver.finish()
        with received.open() as file:
            assert file.read() == TEXT
        blobs.keep(received)
    assert received.sha256 == hashlib.sha256(TEXT).hexdigest()
    assert received.size_bytes == 23
    assert files_in(folder) == ["blob-1a"]
    assert list(blobs.ids()) == ["blob-1a"]


def test_a_blob_of_exactly_the_limit_is_accepted(blobs: BlobStore) -> None:
    with blobs.receive(limit_bytes=4) as receiver:
        receiver.write(b"1234")
        assert receiver.finish().size_bytes == 4


def test_a_byte_beyond_the_limit_is_refused_and_nothing_stays(blobs: BlobStore, folder: Path) -> None:
    with blobs.receive(limit_bytes=4) as receiver:
        receiver.write(b"1234")
        with pytest.raises(TooLarge, match=r"limit of 4 bytes.*max_upload_bytes"):
            receiver.write(b"5")
    assert files_in(folder) == []


def test_bytes_that_are_not_kept_are_removed(blobs: BlobStore, folder: Path) -> None:
    with blobs.receive(limit_bytes=100) as receiver:
        receiver.write(b"a duplicate of what the tenant has")
        receiver.finish()
    with suppress(ConnectionError), blobs.receive(limit_bytes=100) as receiver:
        receiver.write(b"half an upload")
        raise ConnectionError
    assert files_in(folder) == []
    assert list(blobs.ids()) == []


def test_an_upload_on_its_way_is_no_blob_yet(blobs: BlobStore) -> None:
    with blobs.receive(limit_bytes=100) as receiver:
        receiver.write(b"half")
        assert list(blobs.ids()) == []


def test_a_removed_blob_is_gone_and_removing_it_again_is_no_error(blobs: BlobStore, folder: Path) -> None:
    with blobs.receive(limit_bytes=100, blob_id="blob-2b") as receiver:
        receiver.write(b"text")
        blobs.keep(receiver.finish())
    blobs.remove("blob-2b")
    blobs.remove("blob-2b")
    assert files_in(folder) == []


def test_only_the_owner_may_enter_the_folders(blobs: BlobStore, folder: Path) -> None:
    with blobs.receive(limit_bytes=100) as receiver:
        receiver.write(b"text")
        blobs.keep(receiver.finish())
    assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}


def test_a_store_that_is_opened_again_has_what_was_kept(
    database: Database, scope: Scope, blobs: BlobStore, folder: Path, tmp_path: Path
) -> None:
    file = upload(database, scope, blobs, TEXT)
    again = BlobStore(folder, None if blobs._encryption is None else encryption_in(tmp_path))
    assert list(again.ids()) == [file.blob_id]
    with content_of(database, again, file).open() as kept:
        assert kept.read() == TEXT


def test_a_sweep_removes_what_crashes_left_and_nothing_young_or_known(blobs: BlobStore, folder: Path) -> None:
    for blob_id in ("blob-known", "blob-orphan"):
        with blobs.receive(limit_bytes=100, blob_id=blob_id) as receiver:
            receiver.write(b"bytes")
            blobs.keep(receiver.finish())
    cut = folder / "incoming" / "cut"
    cut.write_bytes(b"half")
    assert blobs.sweep({"blob-known"}, older_than_s=60) == 0
    assert blobs.sweep({"blob-known"}, older_than_s=0) == 2
    assert list(blobs.ids()) == ["blob-known"]
    assert not cut.exists()


def test_no_byte_of_an_upload_is_plain_on_disk_from_its_first_one_on(
    encrypted: BlobStore, folder: Path
) -> None:
    with encrypted.receive(limit_bytes=1 << 20) as receiver:
        for _ in range(5000):
            receiver.write(TEXT)
            receiver._file.flush()
        assert files_in(folder)
        assert not any(TEXT in path.read_bytes() for path in folder.rglob("*") if path.is_file())
        encrypted.keep(receiver.finish())
    assert not any(TEXT in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_equal_bytes_are_kept_once_a_tenant_and_nothing_tells_that_two_tenants_have_them(
    database: Database, scope: Scope, other_scope: Scope, encrypted: BlobStore
) -> None:
    mine, again = (upload(database, scope, encrypted, TEXT) for _ in range(2))
    theirs = upload(database, other_scope, encrypted, TEXT)
    assert mine.blob_id == again.blob_id
    with database.read() as session:
        rows = [session.get_one(Blob, each.blob_id) for each in (mine, theirs)]
    digests = {row.digest for row in rows}
    assert len(digests) == 2
    assert hashlib.sha256(TEXT).hexdigest() not in digests
    assert len({encrypted.path(row.id).read_bytes() for row in rows}) == 2


@pytest.mark.parametrize(
    "size",
    [0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 3 * SEGMENT_BYTES, 3 * SEGMENT_BYTES + 7],
)
def test_any_range_of_a_blob_reads_as_it_was_written(
    database: Database, scope: Scope, encrypted: BlobStore, size: int
) -> None:
    written = bytes(index * 7 % 251 for index in range(size))
    content = content_of(database, encrypted, upload(database, scope, encrypted, written))
    with content.open() as file:
        assert file.read() == written
        for start in (0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, size // 2, size - 1, size, size + 5):
            if start >= 0:
                file.seek(start)
                assert file.read(SEGMENT_BYTES + 2) == written[start : start + SEGMENT_BYTES + 2]
        assert file.seek(0, 2) == size == content.size_bytes


def _flipped(stored: bytearray) -> bytearray:
    stored[len(stored) // 2] ^= 1
    return stored


def _cut_at_a_segment(stored: bytearray) -> bytearray:
    return stored[: 2 * (SEGMENT_BYTES + TAG_BYTES)]


def _reordered(stored: bytearray) -> bytearray:
    length = SEGMENT_BYTES + TAG_BYTES
    return stored[length : 2 * length] + stored[:length] + stored[2 * length :]


def _twice(stored: bytearray) -> bytearray:
    return stored + stored[-(7 + TAG_BYTES) :]


@pytest.mark.parametrize(
    "change", [_flipped, _cut_at_a_segment, _reordered, _twice, lambda _: b"", lambda stored: stored[:-1]]
)
def test_a_blob_that_was_changed_in_any_way_is_not_read(
    database: Database, scope: Scope, encrypted: BlobStore, change: object
) -> None:
    file = upload(database, scope, encrypted, bytes(3 * SEGMENT_BYTES + 7))
    path = encrypted.path(file.blob_id)
    assert callable(change)
    path.write_bytes(change(bytearray(path.read_bytes())))
    with (
        pytest.raises(Damaged, match=file.blob_id),
        content_of(database, encrypted, file).open() as changed,
    ):
        changed.read()


def test_a_blob_in_another_one_s_place_is_not_read(
    database: Database, scope: Scope, encrypted: BlobStore
) -> None:
    one, other = (upload(database, scope, encrypted, content) for content in (b"one", b"two"))
    encrypted.path(one.blob_id).write_bytes(encrypted.path(other.blob_id).read_bytes())
    with pytest.raises(Damaged):
        content_of(database, encrypted, one).open()
    with database.write() as session:
        # Nor with the other's key beside it.
        session.get_one(Blob, one.blob_id).key = session.get_one(Blob, other.blob_id).key
    with pytest.raises(Damaged):
        content_of(database, encrypted, one)


def test_under_another_root_key_nothing_opens(
    database: Database, scope: Scope, encrypted: BlobStore, folder: Path, tmp_path: Path
) -> None:
    file = upload(database, scope, encrypted, TEXT)
    other = BlobStore(folder, Encryption(TenantKeys(bytes(32)), tmp_path))
    with pytest.raises(Damaged):
        content_of(database, other, file)


def test_who_reads_a_blob_while_it_is_removed_gets_no_further(
    database: Database, scope: Scope, encrypted: BlobStore
) -> None:
    file = upload(database, scope, encrypted, bytes(10 * SEGMENT_BYTES))
    with content_of(database, encrypted, file).open() as reading:
        assert len(reading.read(10)) == 10
        encrypted.remove(file.blob_id)
        with pytest.raises(Damaged):
            reading.read()


def test_a_new_tenant_gets_its_key_once_and_may_then_be_asked_by_readers(
    encrypted: BlobStore, database: Database, scope: Scope
) -> None:
    digests = []
    for _ in range(2):
        encrypted.prepare(database, scope.tenant_id)
        with database.read() as session:
            digests.append(encrypted.digest(session, scope.tenant_id, "ab" * 32))
            assert not session.new
            assert not session.dirty
    assert digests[0] == digests[1] != "ab" * 32


@pytest.mark.parametrize(
    ("said", "told"), [(errno.EIO, DiskFailed), (errno.EROFS, DiskFailed), (errno.ENOSPC, DiskFull)]
)
def test_what_a_disk_says_while_a_file_comes_is_told_and_nothing_of_the_file_is_kept(
    blobs: BlobStore, folder: Path, said: int, told: type[Exception]
) -> None:
    def fail() -> None:
        with blobs.receive(limit_bytes=100) as receiver:
            receiver.write(TEXT)
            receiver.finish()
            raise OSError(said, "from the disk")

    with pytest.raises(told):
        fail()
    assert files_in(folder) == []


def test_an_error_that_is_no_disk_s_stays_as_it_is(blobs: BlobStore, folder: Path) -> None:
    with pytest.raises(PermissionError), blobs.receive(limit_bytes=100):
        raise PermissionError(errno.EPERM, "of something else")
    assert files_in(folder) == []
