"""File batches: attached in one transaction, told as one, cancelled with all that was made of them so far."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event, func, select
from sqlalchemy.orm import Session

from retrieval import batches, catalog, generations
from retrieval.batches import FileBatchMissing, Member
from retrieval.catalog import CollectionMissing, DocumentMissing, FileMissing, NotFound, Order, PageRequest
from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.tables import (
    Base,
    Chunk,
    Collection,
    Document,
    DocumentStatus,
    FileBatch,
    Generation,
    GenerationState,
    Job,
)
from retrieval.views import IndexViews
from tests.fakes import DIMENSIONS, _bag_of_words
from tests.retrieval.library import (
    AUTO,
    add_text_file,
    attach,
    chunk_ids,
    complete,
    log_of,
    new_collection,
    new_file,
    shelve,
)

STATIC = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}
STATUS = DocumentStatus
ALL = PageRequest(limit=1000, order=Order.ASC)


def count(database: Database, table: type[Base]) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def new_files(database: Database, scope: Scope, number: int) -> list[str]:
    with database.write() as session:
        return [add_text_file(session, scope, f"Letter {each}.").id for each in range(number)]


def member(file_id: str, *, chunking: dict[str, Any] | None = None, **attributes: str) -> Member:
    return Member(file_id=file_id, attributes=attributes, chunking=chunking or AUTO)


def new_batch(database: Database, scope: Scope, collection: Collection, *members: Member) -> FileBatch:
    with database.write() as session:
        return batches.create_batch(session, scope, collection.id, members, now=2.0)


def counts_of(database: Database, scope: Scope, batch: FileBatch) -> dict[DocumentStatus, int]:
    with database.read() as session:
        return batches.count_batch(session, scope, batch)


def document_of(database: Database, scope: Scope, collection: Collection, file_id: str) -> Document:
    with database.read() as session:
        return catalog.get_document(session, scope, collection.id, file_id)


def stage(database: Database, document: Document, *paragraphs: str, generation: int = 0) -> None:
    """What ingestion has stored of a document that it has not finished: chunks without a log entry."""
    with database.write() as session:
        session.add_all(
            Chunk(
                tenant_id=document.tenant_id,
                collection_id=document.collection_id,
                document_id=document.id,
                generation=generation,
                position=position,
                text=text,
                start_char=0,
                end_char=len(text),
                headings=[],
                token_count=len(text.split()),
                places=[],
                embedding=_bag_of_words(text, 0, DIMENSIONS).astype(np.float16).tobytes(),
            )
            for position, text in enumerate(paragraphs)
        )


# Attaching


def test_a_batch_makes_a_document_and_a_job_of_each_file_in_its_order(
    database: Database, scope: Scope
) -> None:
    collection = new_collection(database, scope)
    files = new_files(database, scope, 3)
    batch = new_batch(
        database,
        scope,
        collection,
        member(files[2], year="1911"),
        member(files[0], chunking=STATIC),
        member(files[1]),
    )
    assert counts_of(database, scope, batch) == {STATUS.IN_PROGRESS: 3}
    with database.read() as session:
        rows = batches.list_batch_documents(session, scope, collection.id, batch.id, ALL)
        jobs = session.scalars(select(Job.document_id).order_by(Job.id)).all()
        assert session.get_one(Collection, collection.id).last_active_at == 2.0
    assert [row.file_id for row in rows] == [files[2], files[0], files[1]]
    assert [row.id for row in rows] == list(jobs)
    assert rows[0].attributes == {"year": "1911"}
    assert [row.chunking for row in rows] == [AUTO, STATIC, AUTO]


def test_attaching_500_files_takes_a_few_statements(database: Database, scope: Scope) -> None:
    collection = new_collection(database, scope)
    members = [member(file_id) for file_id in new_files(database, scope, 500)]
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *told: statements.append(told[2]))
    batch = new_batch(database, scope, collection, *members)
    assert len(statements) < 30
    assert counts_of(database, scope, batch) == {STATUS.IN_PROGRESS: 500}


def test_one_unknown_file_leaves_the_whole_batch_out(
    database: Database, scope: Scope, other_scope: Scope
) -> None:
    collection = new_collection(database, scope)
    mine, theirs = new_file(database, scope), new_file(database, other_scope)
    for unknown in ("file-absent", theirs.id):
        with pytest.raises(FileMissing, match=unknown):
            new_batch(database, scope, collection, member(mine.id), member(unknown))
    assert (count(database, Document), count(database, Job), count(database, FileBatch)) == (0, 0, 0)


def test_a_file_that_is_in_keeps_its_document_unless_it_must_be_ingested_anew(
    database: Database, scope: Scope
) -> None:
    collection = new_collection(database, scope)
    kept, rechunked, failed = (
        shelve(database, scope, collection, text) for text in ("The vault.", "The key.", "The hall.")
    )
    with database.write() as session:
        session.get_one(Document, failed.id).status = STATUS.FAILED
    batch = new_batch(
        database,
        scope,
        collection,
        member(kept.file_id, colour="red"),
        member(rechunked.file_id, chunking=STATIC),
        member(failed.file_id),
    )
    assert counts_of(database, scope, batch) == {STATUS.COMPLETED: 1, STATUS.IN_PROGRESS: 2}
    now = document_of(database, scope, collection, kept.file_id)
    assert (now.id, now.attributes) == (kept.id, {"colour": "red"})
    for replaced in (rechunked, failed):
        assert document_of(database, scope, collection, replaced.file_id).id > failed.id
    assert count(database, Document) == 3


def test_an_archive_that_is_attached_anew_takes_the_documents_inside_it_along(
    database: Database, scope: Scope
) -> None:
    collection = new_collection(database, scope)
    archive, inside = (
        shelve(database, scope, collection, "Index."),
        shelve(database, scope, collection, "A letter."),
    )
    with database.write() as session:
        session.get_one(Document, inside.id).parent_id = archive.id
    batch = new_batch(
        database, scope, collection, member(archive.file_id, chunking=STATIC), member(inside.file_id)
    )
    assert counts_of(database, scope, batch) == {STATUS.IN_PROGRESS: 2}
    assert chunk_ids(database, collection) == set()


def test_a_batch_goes_to_each_generation_that_is_kept(database: Database, scope: Scope) -> None:
    collection = new_collection(database, scope)
    with database.write() as session:
        generations.begin(session, scope, collection.id, embedding_model=None, chunking=None, now=1.0)
    new_batch(database, scope, collection, *map(member, new_files(database, scope, 2)))
    with database.read() as session:
        assert sorted(session.scalars(select(Job.generation))) == [0, 0, 1, 1]


# Looking


def test_a_batch_is_listed_in_pages_and_by_status(database: Database, scope: Scope) -> None:
    collection = new_collection(database, scope)
    files = new_files(database, scope, 5)
    batch = new_batch(database, scope, collection, *map(member, files))
    shelve(database, scope, collection, "Not of the batch.")
    with database.write() as session:
        done = catalog.get_document(session, scope, collection.id, files[3])
        complete(session, done, ["Letter 3."])

    def listed(page: PageRequest, status: DocumentStatus | None = None) -> list[str]:
        with database.read() as session:
            rows = batches.list_batch_documents(session, scope, collection.id, batch.id, page, status=status)
            return [row.file_id for row in rows]

    assert listed(PageRequest(limit=2, order=Order.ASC)) == files[:2]
    assert listed(PageRequest(limit=2, order=Order.ASC, after=files[1])) == files[2:4]
    assert listed(ALL, STATUS.COMPLETED) == [files[3]]
    assert listed(ALL, STATUS.FAILED) == []
    assert counts_of(database, scope, batch) == {STATUS.COMPLETED: 1, STATUS.IN_PROGRESS: 4}


Call = Callable[[Session, Scope, str, str, str], Any]
"""Names a collection, a batch and a file."""

CALLS: dict[str, Call] = {
    "get": lambda session, scope, store, batch, _: batches.get_batch(session, scope, store, batch),
    "list": lambda session, scope, store, batch, _: batches.list_batch_documents(
        session, scope, store, batch, ALL
    ),
    "cancel": lambda session, scope, store, batch, _: batches.cancel_batch(
        session, scope, store, batch, now=3.0
    ),
    "cancel a document": lambda session, scope, store, _, file_id: batches.cancel_document(
        session, scope, store, file_id
    ),
    "create": lambda session, scope, store, _, file_id: batches.create_batch(
        session, scope, store, [member(file_id)], now=3.0
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_another_tenants_batches_look_absent(
    database: Database, scope: Scope, other_scope: Scope, name: str
) -> None:
    collection, theirs = new_collection(database, scope), new_collection(database, other_scope)
    file = new_file(database, scope)
    batch = new_batch(database, scope, collection, member(file.id))

    def refused(store: str, batch_id: str, file_id: str) -> type[NotFound]:
        with database.write() as session, pytest.raises(NotFound) as refusal:
            CALLS[name](session, other_scope, store, batch_id, file_id)
        return type(refusal.value)

    assert refused(collection.id, batch.id, file.id) is CollectionMissing
    assert refused("vs_absent", "vsfb_absent", "file-absent") is CollectionMissing
    # Named in their own collection.
    found = refused(theirs.id, batch.id, file.id)
    expected = {"cancel a document": DocumentMissing, "create": FileMissing}
    assert found is expected.get(name, FileBatchMissing)
    assert counts_of(database, scope, batch) == {STATUS.IN_PROGRESS: 1}


# Cancelling


def test_a_cancelled_document_leaves_neither_job_nor_staged_chunks(database: Database, scope: Scope) -> None:
    collection = new_collection(database, scope)
    present = shelve(database, scope, collection, "The vault opens at nine.")
    log = log_of(database, collection)
    file = new_file(database, scope)
    with database.write() as session:
        document = attach(session, scope, collection.id, file.id)
    stage(database, document, "Half of", "a letter")
    with database.write() as session:
        cancelled = batches.cancel_document(session, scope, collection.id, file.id)
    assert cancelled.status is STATUS.CANCELLED
    assert count(database, Job) == 0
    assert len(chunk_ids(database, collection)) == 1
    assert log_of(database, collection) == log
    assert document_of(database, scope, collection, present.file_id).status is STATUS.COMPLETED


def test_what_has_ended_is_not_cancelled(database: Database, scope: Scope) -> None:
    collection = new_collection(database, scope)
    document = shelve(database, scope, collection, "The vault opens at nine.")
    chunks = chunk_ids(database, collection)
    with database.write() as session:
        after = batches.cancel_document(session, scope, collection.id, document.file_id)
    assert after.status is STATUS.COMPLETED
    assert chunk_ids(database, collection) == chunks


def test_a_cancelled_archive_takes_along_what_is_inside_and_not_done(
    database: Database, scope: Scope
) -> None:
    collection = new_collection(database, scope)
    archive, mail, letter = new_files(database, scope, 3)
    done = shelve(database, scope, collection, "Done before.")
    with database.write() as session:
        outer = attach(session, scope, collection.id, archive)
        middle = attach(session, scope, collection.id, mail)
        middle.parent_id = outer.id
        attach(session, scope, collection.id, letter).parent_id = middle.id
        session.get_one(Document, done.id).parent_id = outer.id
    with database.write() as session:
        batches.cancel_document(session, scope, collection.id, archive)
    for file_id in (archive, mail, letter):
        assert document_of(database, scope, collection, file_id).status is STATUS.CANCELLED
    assert document_of(database, scope, collection, done.file_id).status is STATUS.COMPLETED
    assert count(database, Job) == 0


def test_a_cancelled_batch_keeps_what_is_completed(database: Database, scope: Scope) -> None:
    collection = new_collection(database, scope)
    files = new_files(database, scope, 3)
    beside = new_file(database, scope)
    batch = new_batch(database, scope, collection, *map(member, files))
    with database.write() as session:
        attach(session, scope, collection.id, beside.id)
        complete(session, catalog.get_document(session, scope, collection.id, files[0]), ["Letter 0."])
    stage(database, document_of(database, scope, collection, files[1]), "Half of", "a letter")
    with database.write() as session:
        cancelled = batches.cancel_batch(session, scope, collection.id, batch.id, now=3.0)
    assert cancelled.cancelled_at == 3.0
    assert counts_of(database, scope, batch) == {STATUS.COMPLETED: 1, STATUS.CANCELLED: 2}
    assert document_of(database, scope, collection, beside.id).status is STATUS.IN_PROGRESS
    assert count(database, Job) == 1
    assert len(chunk_ids(database, collection)) == len(log_of(database, collection)) == 1


def test_a_batch_that_has_ended_was_not_cancelled(database: Database, scope: Scope) -> None:
    collection = new_collection(database, scope)
    document = shelve(database, scope, collection, "The vault opens at nine.")
    batch = new_batch(database, scope, collection, member(document.file_id))
    with database.write() as session:
        assert batches.cancel_batch(session, scope, collection.id, batch.id, now=3.0).cancelled_at is None
    assert counts_of(database, scope, batch) == {STATUS.COMPLETED: 1}


def test_a_cancelled_documents_chunks_of_a_finished_generation_leave_its_index_too(
    database: Database, scope: Scope
) -> None:
    collection = new_collection(database, scope)
    with database.write() as session:
        session.add(
            Generation(
                collection_id=collection.id, number=1, state=GenerationState.BUILDING, head=0, created_at=1.0
            )
        )
    file = new_file(database, scope)
    with database.write() as session:
        document = attach(session, scope, collection.id, file.id)
        # The active generation's job is done before the other one's.
        complete(session, document, ["A letter."])
        document.status = STATUS.IN_PROGRESS
        session.add(
            Job(tenant_id=scope.tenant_id, document_id=document.id, generation=1, state="queued", due_at=1.0)
        )
    stage(database, document, "A", "letter", generation=1)
    with database.write() as session:
        batches.cancel_document(session, scope, collection.id, file.id)
    assert chunk_ids(database, collection) == set()
    assert [op.value for _, op, _ in log_of(database, collection)] == ["add", "remove"]
    with database.read() as session:
        view = IndexViews().follow(session, session.get_one(Collection, collection.id))
        assert view is None or not view.keywords.search(["letter"], 10)[0]


def test_a_cancelled_document_can_be_attached_again(database: Database, scope: Scope) -> None:
    collection, file = new_collection(database, scope), new_file(database, scope)
    batch = new_batch(database, scope, collection, member(file.id))
    with database.write() as session:
        batches.cancel_batch(session, scope, collection.id, batch.id, now=3.0)
    again = new_batch(database, scope, collection, member(file.id))
    assert counts_of(database, scope, again) == {STATUS.IN_PROGRESS: 1}
    assert counts_of(database, scope, batch) == {}
    assert count(database, Job) == 1
