"""Verification finds what differs, and nothing where all is well."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete, update

from retrieval.blobs import BlobStore
from retrieval.database import Database
from retrieval.rankings import IndexedChunk
from retrieval.scope import Scope
from retrieval.tables import Blob, Chunk, ChunkLog, Collection, DeletedKind, Deletion, File
from retrieval.verify import UPLOAD_S, differences, repair
from retrieval.views import CollectionView, IndexViews
from tests.retrieval.library import chunk_ids, new_collection, shelve

TEXTS = ("The vault opens at nine.", "The key hangs in the hall.")


class Stack:
    """A collection with one document, its blob, and a view that is up to date."""

    def __init__(self, database: Database, scope: Scope, folder: Path) -> None:
        self.database = database
        self.blobs = BlobStore(folder)
        self.views = IndexViews()
        self.collection = new_collection(database, scope)
        self.document = shelve(database, scope, self.collection, *TEXTS)
        self.first, self.second = sorted(chunk_ids(database, self.collection))
        with database.read() as session:
            self.blob_id = session.get_one(File, self.document.file_id).blob_id
        with self.blobs.receive(limit_bytes=1000, blob_id=self.blob_id) as receiver:
            receiver.write("\n\n".join(TEXTS).encode())
            self.blobs.keep(receiver.finish())

    def view(self) -> CollectionView:
        with self.database.read() as session:
            view = self.views.follow(session, session.get_one(Collection, self.collection.id))
        assert view is not None
        return view

    def differences(self) -> list[str]:
        return list(differences(self.database, self.blobs, self.views))


@pytest.fixture
def stack(database: Database, scope: Scope, tmp_path: Path) -> Stack:
    return Stack(database, scope, tmp_path / "blobs")


def test_all_is_well_before_and_after_an_index_is_built(stack: Stack, scope: Scope) -> None:
    new_collection(stack.database, scope, "empty")
    assert stack.differences() == []
    stack.view()
    assert stack.differences() == []


def test_a_chunk_that_is_in_no_index_is_found(stack: Stack) -> None:
    stack.view().vectors.apply(added=(), removed=[stack.first])
    stack.view().keywords.apply(added=(), removed=[stack.second])
    vector, keyword = stack.differences()
    assert f"chunk {stack.first} is not in the vector index" in vector
    assert f"chunk {stack.second} is not in the keyword index" in keyword


def test_a_chunk_that_only_an_index_holds_is_found(stack: Stack) -> None:
    stray = IndexedChunk(10**9, stack.document.id, "stray", np.zeros(64, np.float32))
    stack.view().keywords.apply(added=[stray], removed=())
    (told,) = stack.differences()
    assert "chunk 1000000000 is in the keyword index, but it is not stored" in told


def test_another_vector_is_found(stack: Stack) -> None:
    stack.view()
    with stack.database.write() as session:
        other = np.full(64, 0.125, np.float16).tobytes()
        session.execute(update(Chunk).where(Chunk.id == stack.second).values(embedding=other))
    (told,) = stack.differences()
    assert f"chunk {stack.second} has another vector" in told


def test_a_log_that_does_not_lead_to_the_chunks_is_found(stack: Stack) -> None:
    with stack.database.write() as session:
        session.execute(delete(ChunkLog).where(ChunkLog.chunk_id == stack.first))
    (told,) = stack.differences()
    assert "the chunk log does not lead to the chunks" in told


def test_a_missing_blob_is_found(stack: Stack) -> None:
    stack.blobs.remove(stack.blob_id)
    assert stack.differences() == [f"{stack.blob_id}: the file's bytes are missing."]


def test_a_changed_blob_is_found(stack: Stack) -> None:
    stack.blobs.path(stack.blob_id).write_bytes(b"something else")
    assert stack.differences() == [f"{stack.blob_id}: the file's bytes have changed."]


def test_a_blob_that_belongs_to_no_file_is_found(stack: Stack) -> None:
    with stack.blobs.receive(limit_bytes=10, blob_id="blob-orphan") as receiver:
        receiver.write(b"left")
        stack.blobs.keep(receiver.finish())
    assert stack.differences() == []  # it may be an upload that commits in a moment
    long_ago = time.time() - UPLOAD_S
    os.utime(stack.blobs.path("blob-orphan"), (long_ago, long_ago))
    assert stack.differences() == ["blob-orphan: bytes on disk that belong to no file."]


def test_no_sentence_quotes_a_document(stack: Stack) -> None:
    """They may be logged."""
    stack.blobs.remove(stack.blob_id)
    stack.view().keywords.apply(added=(), removed=[stack.first, stack.second])
    told = " ".join(stack.differences())
    assert not any(word in told for text in TEXTS for word in text.split() if len(word) > 4)


def test_what_was_deleted_and_is_back_is_found_and_goes_again(stack: Stack) -> None:
    """As when rows are put back by hand."""
    document = stack.document
    with stack.database.write() as session:
        session.add(Deletion(kind=DeletedKind.FILE, object_id=document.file_id, tenant_id=document.tenant_id))
    assert stack.differences() == [f"{document.file_id}: this file was deleted, and is there again."]
    repair(stack.database, stack.blobs, stack.views)
    assert stack.differences() == []
    assert list(stack.blobs.ids()) == []


def test_repair_heals_indexes_logs_and_bytes_of_nobody_from_sql(stack: Stack) -> None:
    stack.view().keywords.apply(added=(), removed=[stack.first])
    with stack.database.write() as session:
        log_chunk = ChunkLog.chunk_id == stack.second
        session.execute(delete(ChunkLog).where(log_chunk))
        session.add(Blob(id="blob-unused", tenant_id=stack.document.tenant_id, digest="0", size_bytes=0))
    with stack.blobs.receive(limit_bytes=10, blob_id="blob-orphan") as receiver:
        receiver.write(b"left")
        stack.blobs.keep(receiver.finish())
    long_ago = time.time() - UPLOAD_S
    os.utime(stack.blobs.path("blob-orphan"), (long_ago, long_ago))
    assert len(stack.differences()) >= 4
    repair(stack.database, stack.blobs, stack.views)
    assert stack.differences() == []


def test_repair_leaves_what_only_a_backup_can_heal_and_it_stays_named(stack: Stack) -> None:
    stack.blobs.path(stack.blob_id).write_bytes(b"something else")
    repair(stack.database, stack.blobs, stack.views)
    assert stack.differences() == [f"{stack.blob_id}: the file's bytes have changed."]
