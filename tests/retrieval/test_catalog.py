"""The catalog: what each tenant sees, pages, and what goes when a file, document or collection goes."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from retrieval import catalog
from retrieval.catalog import (
    CollectionMissing,
    CursorInvalid,
    DocumentMissing,
    FileMissing,
    NotFound,
    Order,
    PageRequest,
)
from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.tables import (
    Base,
    Blob,
    Chunk,
    ChunkLog,
    Collection,
    Document,
    DocumentStatus,
    File,
    Job,
    JobState,
    LogOp,
    ParsedFile,
)
from tests.retrieval.library import (
    add_text_file,
    attach,
    chunk_ids,
    complete,
    log_of,
    new_blob,
    new_collection,
    new_file,
    replayed,
    shelve,
)

ALL = PageRequest(limit=100)


def count(database: Database, table: type[Base]) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


# Isolation

Call = Callable[[Session, Scope, str, str], Any]
"""Names a collection and a file."""

BY_FILE: dict[str, Call] = {
    "get_file": lambda session, scope, _, file_id: catalog.get_file(session, scope, file_id),
    "delete_file": lambda session, scope, _, file_id: catalog.delete_file(session, scope, file_id),
}
BY_COLLECTION: dict[str, Call] = {
    "get_collection": lambda session, scope, store, _: catalog.get_collection(session, scope, store),
    "find_collection by id": lambda session, scope, store, _: catalog.find_collection(session, scope, store),
    "find_collection by name": lambda session, scope, *_: catalog.find_collection(session, scope, "letters"),
    "delete_collection": lambda session, scope, store, _: catalog.delete_collection(session, scope, store),
    "list_documents": lambda session, scope, store, _: catalog.list_documents(session, scope, store, ALL),
    "get_document": catalog.get_document,
    "delete_document": catalog.delete_document,
    "attach_file": attach,
}


@pytest.mark.parametrize("name", [*BY_FILE, *BY_COLLECTION])
def test_another_tenants_things_look_absent(
    database: Database, scope: Scope, other_scope: Scope, name: str
) -> None:
    collection = new_collection(database, scope)
    document = shelve(database, scope, collection, "The vault opens at nine.")
    call = {**BY_FILE, **BY_COLLECTION}[name]

    def refusal(collection_id: str, file_id: str) -> NotFound:
        with database.write() as session, pytest.raises(NotFound) as refused:
            call(session, other_scope, collection_id, file_id)
        return refused.value

    forbidden = refusal(collection.id, document.file_id)
    absent = refusal("vs_absent", "file-absent")
    assert type(forbidden) is type(absent) is (FileMissing if name in BY_FILE else CollectionMissing)
    told = str(forbidden).replace(forbidden.missing_id, "ID")
    assert told == str(absent).replace(absent.missing_id, "ID")
    assert chunk_ids(database, collection)


def test_another_tenants_file_cannot_be_taken_into_ones_own_collection(
    database: Database, scope: Scope, other_scope: Scope
) -> None:
    theirs = new_file(database, scope)
    mine = new_collection(database, other_scope)
    with database.write() as session, pytest.raises(FileMissing):
        attach(session, other_scope, mine.id, theirs.id)
    with database.read() as session, pytest.raises(DocumentMissing):
        catalog.get_document(session, other_scope, mine.id, theirs.id)


def test_lists_and_counts_hold_nothing_of_another_tenant(
    database: Database, scope: Scope, other_scope: Scope
) -> None:
    collection = new_collection(database, scope)
    shelve(database, scope, collection, "The vault opens at nine.")
    with database.read() as session:
        assert catalog.list_files(session, other_scope, ALL) == []
        assert catalog.list_collections(session, other_scope, ALL) == []
        assert catalog.count_documents(session, other_scope, [collection.id]) == {collection.id: {}}
        assert catalog.usage_bytes(session, other_scope, [collection.id]) == {}
        assert catalog.count_documents(session, scope, [collection.id]) == {
            collection.id: {DocumentStatus.COMPLETED: 1}
        }


def test_a_cursor_of_another_tenant_is_not_in_the_list(
    database: Database, scope: Scope, other_scope: Scope
) -> None:
    theirs = new_file(database, scope)
    with database.read() as session, pytest.raises(CursorInvalid):
        catalog.list_files(session, other_scope, PageRequest(after=theirs.id))


# Pages


def file_ids(database: Database, scope: Scope, page: PageRequest) -> list[str]:
    with database.read() as session:
        return [file.id for file in catalog.list_files(session, scope, page)]


@pytest.mark.parametrize("order", Order)
def test_pages_follow_creation_and_files_of_one_moment_come_once(
    database: Database, scope: Scope, order: Order
) -> None:
    made = [new_file(database, scope, f"text {i}", now=float(i // 3)) for i in range(10)]
    expected = [file.id for file in sorted(made, key=lambda file: (file.created_at, file.id))]
    seen: list[str] = []
    while page := file_ids(
        database, scope, PageRequest(limit=3, order=order, after=seen[-1] if seen else None)
    ):
        assert len(page) <= 3
        seen += page
    assert seen == (expected if order is Order.ASC else expected[::-1])


def test_rows_that_come_and_go_between_two_pages_shift_nothing(database: Database, scope: Scope) -> None:
    made = [new_file(database, scope, f"text {i}", now=float(i)).id for i in range(6)]
    first = file_ids(database, scope, PageRequest(limit=3))
    assert first == [made[5], made[4], made[3]]
    with database.write() as session:
        catalog.delete_file(session, scope, made[4])
        catalog.delete_file(session, scope, made[1])
        add_text_file(session, scope, "newest", now=99.0)
    assert file_ids(database, scope, PageRequest(limit=3, after=first[-1])) == [made[2], made[0]]


def test_before_and_after_bound_a_page_on_both_sides(database: Database, scope: Scope) -> None:
    made = [new_file(database, scope, f"text {i}", now=float(i)).id for i in range(6)]
    page = PageRequest(order=Order.ASC, after=made[0], before=made[4])
    assert file_ids(database, scope, page) == made[1:4]
    assert file_ids(database, scope, PageRequest(before=made[4])) == [made[5]]
    assert file_ids(database, scope, PageRequest(before=made[1], limit=2)) == [made[3], made[2]]


def test_a_cursor_that_was_deleted_keeps_its_place_and_one_that_never_was_is_refused(
    database: Database, scope: Scope, other_scope: Scope
) -> None:
    made = [new_file(database, scope, f"text {i}", now=float(i)).id for i in range(3)]
    with database.write() as session:
        catalog.delete_file(session, scope, made[1])
    assert file_ids(database, scope, PageRequest(after=made[1])) == [made[0]]
    with pytest.raises(CursorInvalid, match="file-none"):
        file_ids(database, scope, PageRequest(after="file-none"))
    with pytest.raises(CursorInvalid), database.read() as session:
        catalog.list_files(session, other_scope, PageRequest(after=made[1]))


def test_documents_are_paged_by_their_files_ids_and_filtered_by_status(
    database: Database, scope: Scope
) -> None:
    collection, other = new_collection(database, scope), new_collection(database, scope, "other")
    done = [shelve(database, scope, collection, f"text {i}", now=float(i)) for i in range(3)]
    shelve(database, scope, other, "text 0")
    waiting = new_file(database, scope, "waiting", now=9.0)
    with database.write() as session:
        attach(session, scope, collection.id, waiting.id, now=9.0)
    with database.read() as session:
        page = catalog.list_documents(
            session, scope, collection.id, PageRequest(limit=2, after=done[2].file_id)
        )
        assert [row.file_id for row in page] == [done[1].file_id, done[0].file_id]
        page = catalog.list_documents(session, scope, collection.id, ALL, status=DocumentStatus.IN_PROGRESS)
        assert [row.file_id for row in page] == [waiting.id]


def test_files_are_filtered_by_purpose(database: Database, scope: Scope) -> None:
    file = new_file(database, scope)
    with database.read() as session:
        assert [each.id for each in catalog.list_files(session, scope, ALL, purpose="assistants")] == [
            file.id
        ]
        assert catalog.list_files(session, scope, ALL, purpose="batch") == []


def test_a_collection_is_found_by_id_before_name_and_the_oldest_of_a_name_first(
    database: Database, scope: Scope
) -> None:
    younger = new_collection(database, scope, "letters", now=2.0)
    older = new_collection(database, scope, "letters", now=1.0)
    impostor = new_collection(database, scope, younger.id, now=0.0)
    with database.read() as session:
        assert catalog.find_collection(session, scope, "letters").id == older.id
        assert catalog.find_collection(session, scope, younger.id).id == younger.id
        assert catalog.find_collection(session, scope, impostor.id).id == impostor.id


# Files and their blobs


def test_a_blob_shared_by_two_files_stays_until_the_last_is_deleted(database: Database, scope: Scope) -> None:
    first, second = new_file(database, scope, "same bytes"), new_file(database, scope, "same bytes")
    assert first.blob_id == second.blob_id
    with database.write() as session:
        assert catalog.delete_file(session, scope, first.id) == []
    with database.write() as session:
        assert catalog.delete_file(session, scope, second.id) == [first.blob_id]
    assert (count(database, File), count(database, Blob)) == (0, 0)


def test_equal_bytes_of_two_tenants_are_two_blobs(
    database: Database, scope: Scope, other_scope: Scope
) -> None:
    """Else the time of an upload would tell whether another tenant has the file."""
    mine, theirs = new_file(database, scope, "same bytes"), new_file(database, other_scope, "same bytes")
    assert mine.blob_id != theirs.blob_id
    with database.write() as session:
        assert catalog.delete_file(session, scope, mine.id) == [mine.blob_id]
        assert session.get(Blob, theirs.blob_id) is not None


def test_only_new_bytes_are_to_be_kept(database: Database, scope: Scope) -> None:
    new = catalog.NewFile("a.txt", "assistants", "text/plain", new_blob(scope, "same bytes"))
    with database.write() as session:
        assert catalog.add_file(session, scope, new, now=1.0)[1]
        assert not catalog.add_file(session, scope, new, now=2.0)[1]


def test_two_uploads_of_the_same_bytes_at_once_share_one_blob(database: Database, scope: Scope) -> None:
    with ThreadPoolExecutor(4) as threads:
        files = list(threads.map(lambda _: new_file(database, scope, "same bytes"), range(12)))
    assert len({file.blob_id for file in files}) == 1
    assert count(database, File) == 12


def test_deleting_a_file_takes_its_chunks_out_of_every_collection_and_logs_it(
    database: Database, scope: Scope
) -> None:
    letters, diaries = new_collection(database, scope), new_collection(database, scope, "diaries")
    document = shelve(database, scope, letters, "The vault opens at nine.", "The key hangs in the hall.")
    kept = shelve(database, scope, letters, "Whales feed on krill.")
    with database.write() as session:
        again = attach(session, scope, diaries.id, document.file_id)
        complete(session, again, ["The vault opens at nine.", "The key hangs in the hall."])
    with database.write() as session:
        catalog.delete_file(session, scope, document.file_id)
    assert [op for _, op, _ in log_of(database, diaries)] == [LogOp.ADD] * 2 + [LogOp.REMOVE] * 2
    for collection in (letters, diaries):
        assert replayed(log_of(database, collection)) == chunk_ids(database, collection)
    assert len(chunk_ids(database, letters)) == 1
    assert (count(database, Document), count(database, ParsedFile), count(database, Blob)) == (1, 1, 1)
    with database.read() as session:
        assert catalog.get_document(session, scope, letters.id, kept.file_id).id == kept.id


def test_deleting_a_document_keeps_the_file_and_its_parsed_text(database: Database, scope: Scope) -> None:
    collection = new_collection(database, scope)
    document = shelve(database, scope, collection, "The vault opens at nine.")
    with database.write() as session:
        catalog.delete_document(session, scope, collection.id, document.file_id)
    assert (count(database, Document), count(database, Chunk)) == (0, 0)
    assert (count(database, File), count(database, ParsedFile)) == (1, 1)


def test_deleting_a_collection_keeps_its_files_and_leaves_nothing_else(
    database: Database, scope: Scope
) -> None:
    collection, other = new_collection(database, scope), new_collection(database, scope, "other")
    shelve(database, scope, collection, "The vault opens at nine.")
    shelve(database, scope, other, "Whales feed on krill.")
    waiting = new_file(database, scope, "waiting")
    with database.write() as session:
        attach(session, scope, collection.id, waiting.id)
    with database.write() as session:
        catalog.delete_collection(session, scope, collection.id)
    assert (count(database, Collection), count(database, File)) == (1, 3)
    assert [count(database, table) for table in (Document, Chunk, ChunkLog, Job)] == [1, 1, 1, 0]


# Attaching


def test_attaching_a_file_queues_its_job(database: Database, scope: Scope) -> None:
    collection, file = new_collection(database, scope), new_file(database, scope)
    with database.write() as session:
        document = attach(session, scope, collection.id, file.id, now=7.0)
    with database.read() as session:
        job = session.scalars(select(Job)).one()
        assert (job.document_id, job.state, job.due_at, job.attempt) == (document.id, JobState.QUEUED, 7.0, 0)
        assert session.get_one(Collection, collection.id).last_active_at == 7.0
        assert document.status is DocumentStatus.IN_PROGRESS


def test_attaching_a_file_twice_keeps_its_document_and_takes_the_new_attributes(
    database: Database, scope: Scope
) -> None:
    collection = new_collection(database, scope)
    document = shelve(database, scope, collection, "The vault opens at nine.")
    chunks = chunk_ids(database, collection)
    with database.write() as session:
        again = attach(session, scope, collection.id, document.file_id, attributes={"year": 1843})
    assert (again.id, again.attributes, again.status) == (
        document.id,
        {"year": 1843},
        DocumentStatus.COMPLETED,
    )
    assert chunk_ids(database, collection) == chunks
    assert count(database, Job) == 0


def test_a_failed_document_is_tried_anew(database: Database, scope: Scope) -> None:
    collection, file = new_collection(database, scope), new_file(database, scope)
    with database.write() as session:
        failed = attach(session, scope, collection.id, file.id)
        failed.status = DocumentStatus.FAILED
    with database.write() as session:
        anew = attach(session, scope, collection.id, file.id)
    assert anew.id > failed.id
    assert anew.status is DocumentStatus.IN_PROGRESS
    assert (count(database, Document), count(database, Job)) == (1, 1)


def test_another_chunking_ingests_the_file_anew_under_a_new_id(database: Database, scope: Scope) -> None:
    collection = new_collection(database, scope)
    document = shelve(database, scope, collection, "The vault opens at nine.")
    static = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}
    with database.write() as session:
        anew = attach(session, scope, collection.id, document.file_id, chunking=static)
    assert anew.id > document.id
    assert chunk_ids(database, collection) == set()
    assert replayed(log_of(database, collection)) == set()


def test_ids_of_deleted_rows_are_not_used_again(database: Database, scope: Scope) -> None:
    collection = new_collection(database, scope)
    first = shelve(database, scope, collection, "The vault opens at nine.")
    (first_chunk,) = chunk_ids(database, collection)
    with database.write() as session:
        catalog.delete_file(session, scope, first.file_id)
    second = shelve(database, scope, collection, "The vault opens at nine.")
    (second_chunk,) = chunk_ids(database, collection)
    assert second.id > first.id
    assert second_chunk > first_chunk


# At once


def test_a_file_attached_by_several_at_once_is_one_document(database: Database, scope: Scope) -> None:
    collection, file = new_collection(database, scope), new_file(database, scope)

    def attach_it(_: int) -> int:
        with database.write() as session:
            return attach(session, scope, collection.id, file.id).id

    with ThreadPoolExecutor(4) as threads:
        documents = set(threads.map(attach_it, range(8)))
    assert len(documents) == 1
    assert (count(database, Document), count(database, Job)) == (1, 1)


Delete = Callable[[Session, Scope, str, str], object]
DELETES: dict[str, Delete] = {
    "the document": catalog.delete_document,
    "the collection": BY_COLLECTION["delete_collection"],
    "the file": BY_FILE["delete_file"],
}


@pytest.mark.parametrize("what", DELETES)
def test_what_is_deleted_while_another_attaches_leaves_nothing(
    database: Database, scope: Scope, what: str
) -> None:
    collection, file = new_collection(database, scope), new_file(database, scope)
    with database.write() as session:
        attach(session, scope, collection.id, file.id).status = DocumentStatus.FAILED

    def delete() -> None:
        with database.write() as session:
            DELETES[what](session, scope, collection.id, file.id)

    with ThreadPoolExecutor(1) as threads:
        with database.write() as session:
            attach(session, scope, collection.id, file.id)
            deleting = threads.submit(delete)
            # Long enough to get as far as it can before this transaction commits.
            time.sleep(0.1)
        deleting.result()
    assert (count(database, Document), count(database, Job)) == (0, 0)


def test_a_file_is_deleted_while_another_of_its_tenant_is_written(database: Database, scope: Scope) -> None:
    """A chunk's foreign key locks the tenant's row in PostgreSQL, and so does a delete: no deadlock may come of it."""
    collection = new_collection(database, scope)
    old = shelve(database, scope, collection, "The vault opens at nine.")
    with database.write() as session:
        file = add_text_file(session, scope, "Whales feed on krill.")
        attach(session, scope, collection.id, file.id)

    def delete() -> None:
        with database.write() as session:
            catalog.delete_file(session, scope, old.file_id)

    with ThreadPoolExecutor(1) as threads:
        with database.write() as session:
            session.get_one(Collection, collection.id, with_for_update=True)
            deleting = threads.submit(delete)
            time.sleep(0.1)
            document = catalog.get_document(session, scope, collection.id, file.id)
            complete(session, document, ["Whales feed on krill."])
        deleting.result()
    assert replayed(log_of(database, collection)) == chunk_ids(database, collection)
    assert len(chunk_ids(database, collection)) == 1
