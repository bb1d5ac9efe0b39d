"""Blobs on disk: limits, and nothing left behind."""

import hashlib
from contextlib import suppress
from pathlib import Path

import pytest

from retrieval.blobs import BlobStore, TooLarge


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def blobs(folder: Path) -> BlobStore:
    return BlobStore(folder)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_kept_blob_has_its_bytes_and_its_hash(blobs: BlobStore, folder: Path) -> None:
    with blobs.receive(limit_bytes=100) as receiver:
        receiver.write(b"the vault ")
        receiver.write(b"opens at nine")
        received = receiver.finish()
        blobs.keep(received, "blob-1a")
    assert received.sha256 == hashlib.sha256(b"the vault opens at nine").hexdigest()
    assert received.size_bytes == 23
    assert blobs.path("blob-1a").read_bytes() == b"the vault opens at nine"
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
    with blobs.receive(limit_bytes=100) as receiver:
        receiver.write(b"text")
        blobs.keep(receiver.finish(), "blob-2b")
    blobs.remove("blob-2b")
    blobs.remove("blob-2b")
    assert files_in(folder) == []


def test_only_the_owner_may_enter_the_folders(blobs: BlobStore, folder: Path) -> None:
    with blobs.receive(limit_bytes=100) as receiver:
        receiver.write(b"text")
        blobs.keep(receiver.finish(), "blob-3c")
    assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}


def test_a_store_that_is_opened_again_has_what_was_kept(blobs: BlobStore, folder: Path) -> None:
    with blobs.receive(limit_bytes=100) as receiver:
        receiver.write(b"text")
        blobs.keep(receiver.finish(), "blob-4d")
    assert list(BlobStore(folder).ids()) == ["blob-4d"]


def test_a_sweep_removes_what_crashes_left_and_nothing_young_or_known(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    for blob_id in ("blob-known", "blob-orphan"):
        with blobs.receive(limit_bytes=100) as receiver:
            receiver.write(b"bytes")
            blobs.keep(receiver.finish(), blob_id)
    cut = tmp_path / "incoming" / "cut"
    cut.write_bytes(b"half")
    assert blobs.sweep({"blob-known"}, older_than_s=60) == 0
    assert blobs.sweep({"blob-known"}, older_than_s=0) == 2
    assert list(blobs.ids()) == ["blob-known"]
    assert not cut.exists()
