"""One document's way in: all of it or nothing, whatever happens in between."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event, func, select
from sqlalchemy.orm import Session

from ingest.elements import ParseFailed, ParseFailure
from ingest.jobs import LeaseLost
from ingest.joined import TEXTS_AT_ONCE
from ingest.pipeline import SLICES_AT_ONCE, WrongModel, chunk_sizes
from retrieval import catalog
from retrieval.database import Database
from retrieval.places import under_headings
from retrieval.scope import Scope
from retrieval.tables import (
    Chunk,
    ChunkLog,
    Collection,
    Document,
    DocumentStatus,
    Job,
    ParsedFile,
    ParsedPart,
)
from serving.protocols import Lane, ModelUnavailable
from tests.fakes import FakeEmbedder
from tests.ingest.stack import PARAGRAPHS, TEXT, Stack
from tests.retrieval.library import chunk_ids, log_of, new_collection, replayed


@pytest.fixture
def stack(database: Database, scope: Scope, tmp_path: Path) -> Stack:
    return Stack(database, scope, tmp_path / "blobs")


@contextmanager
def before_commits(hook: Callable[[Session], None]) -> Iterator[None]:
    """Calls the hook just before every commit, in the thread that commits."""
    event.listen(Session, "before_commit", hook)
    try:
        yield
    finally:
        event.remove(Session, "before_commit", hook)


def static(max_tokens: int) -> dict[str, Any]:
    sizes = {"max_chunk_size_tokens": max_tokens, "chunk_overlap_tokens": 0}
    return {"type": "static", "static": sizes}


def assert_nothing_is_searchable(stack: Stack) -> None:
    assert stack.count(Chunk) == 0
    assert stack.count(ChunkLog) == 0


async def test_a_document_becomes_chunks_with_their_vectors_and_its_log(stack: Stack) -> None:
    document = stack.add(f"# Opening hours\n\n{TEXT}")
    await stack.pipeline.run(stack.claim())
    done, chunks = stack.document(document), stack.chunks(document)
    assert done.status is DocumentStatus.COMPLETED
    assert [chunk.position for chunk in chunks] == list(range(len(chunks)))
    with stack.database.read() as session:
        parsed = session.get_one(
            ParsedPart, (stack.upload(f"# Opening hours\n\n{TEXT}").blob_id, "text/plain", 0)
        )
    for chunk in chunks:
        assert chunk.text == parsed.text[chunk.start_char : chunk.end_char]
        assert chunk.headings == ["Opening hours"]
        assert chunk.token_count <= 16
        vector = np.frombuffer(chunk.embedding, np.float16).astype(np.float32)
        text = under_headings(tuple(chunk.headings), chunk.text)
        (expected,) = await stack.embedder.embed([text], lane=Lane.BULK)
        np.testing.assert_allclose(vector, expected, atol=1e-3)
    assert all(any(paragraph in chunk.text for chunk in chunks) for paragraph in PARAGRAPHS)
    assert done.usage_bytes == sum(len(chunk.text.encode()) + len(chunk.embedding) for chunk in chunks)
    assert replayed(log_of(stack.database, stack.collection)) == {chunk.id for chunk in chunks}
    assert stack.job(document) is None
    with stack.database.read() as session:
        collection = session.get_one(Collection, stack.collection.id)
        assert collection.fingerprint == "fake-bag-of-words"


async def test_texts_are_embedded_on_the_bulk_lane_a_few_batches_at_a_time(stack: Stack) -> None:
    paragraphs = [f"Shelf number {i} of the archive holds its letters and its maps." for i in range(70)]
    document = stack.add("\n\n".join(paragraphs))
    await stack.pipeline.run(stack.claim())
    assert [(lane, len(texts)) for lane, texts in stack.embedder.calls] == [
        (Lane.BULK, TEXTS_AT_ONCE),
        (Lane.BULK, 70 - TEXTS_AT_ONCE),
    ]
    assert [chunk.text for chunk in stack.chunks(document)] == paragraphs


async def test_two_slices_of_a_document_are_with_the_models_at_once_and_no_more(stack: Stack) -> None:
    at_once: list[int] = []
    now = 0
    meeting = asyncio.Barrier(2)

    async def count(_: Sequence[str]) -> None:
        nonlocal now
        now += 1
        at_once.append(now)
        async with asyncio.timeout(10):
            await meeting.wait()
        now -= 1

    stack.embedder.meanwhile = count
    paragraphs = [
        f"Shelf number {i} of the archive holds its letters and its maps."
        for i in range(TEXTS_AT_ONCE * 3 + 1)
    ]
    document = stack.add("\n\n".join(paragraphs))
    await stack.pipeline.run(stack.claim())
    assert max(at_once) == SLICES_AT_ONCE == 2
    assert [chunk.text for chunk in stack.chunks(document)] == paragraphs


async def test_equal_texts_are_shared_within_a_tenant_only(stack: Stack) -> None:
    stack.add()
    await stack.pipeline.run(stack.claim())
    assert stack.embedder.salts == [stack.scope.tenant_id]


async def test_each_collection_is_chunked_and_embedded_for_its_own_model(stack: Stack) -> None:
    wide = FakeEmbedder(name="wide", fingerprint="wide", dimensions=16, max_tokens=40)
    pipeline = stack.pipeline_with(stack.embedder, wide)
    file = stack.upload("\n\n".join(PARAGRAPHS * 2))
    maps = new_collection(stack.database, stack.scope, "maps", embedding_model="wide")
    narrow_document, wide_document = stack.attach(file), stack.attach(file, collection=maps)
    for _ in range(2):
        await pipeline.run(stack.claim())
    assert {chunk.token_count <= 16 for chunk in stack.chunks(narrow_document)} == {True}
    assert [len(chunk.embedding) for chunk in stack.chunks(wide_document)] == [2 * 16] * 2
    with stack.database.read() as session:
        assert session.get_one(Collection, maps.id).fingerprint == "wide"


async def test_a_collection_that_names_no_model_is_embedded_by_the_default_one(stack: Stack) -> None:
    document = stack.add()
    with stack.database.write() as session:
        session.get_one(Collection, stack.collection.id).embedding_model = None
    await stack.pipeline.run(stack.claim())
    assert len(stack.chunks(document)) == 3


def fail_at_second_slice(embedder: FakeEmbedder) -> FakeEmbedder:
    async def fail(_: Sequence[str]) -> None:
        if len(embedder.calls) > 1:
            raise ModelUnavailable

    embedder.meanwhile = fail
    return embedder


async def test_a_crash_half_through_leaves_nothing_searchable_and_no_step_is_done_twice(stack: Stack) -> None:
    document = stack.add("\n\n".join(PARAGRAPHS * 30))
    job = stack.claim()
    failing = stack.pipeline_with(fail_at_second_slice(FakeEmbedder(max_tokens=16)))
    with pytest.raises(ModelUnavailable):
        await failing.run(job)
    assert_nothing_is_searchable(stack)
    assert stack.document(document).status is DocumentStatus.IN_PROGRESS
    await stack.pipeline.run(job)
    assert len(stack.chunks(document)) == 90
    assert len(stack.parser.calls) == 1


async def test_a_crash_before_the_commit_leaves_nothing_searchable(stack: Stack) -> None:
    document = stack.add()

    def crash(session: Session) -> None:
        if session.scalar(select(func.count()).select_from(Chunk)):
            raise ConnectionError

    with before_commits(crash), pytest.raises(ConnectionError):
        await stack.pipeline.run(stack.claim())
    assert_nothing_is_searchable(stack)
    assert stack.document(document).status is DocumentStatus.IN_PROGRESS
    stack.clock.now += 60
    await stack.pipeline.run(stack.claim())
    assert stack.document(document).status is DocumentStatus.COMPLETED


async def test_a_failed_parse_is_passed_on_and_keeps_nothing(stack: Stack) -> None:
    async def fail(_: str) -> None:
        raise ParseFailed(ParseFailure.ENCRYPTED, "Remove the password.")

    stack.parser.meanwhile = fail
    stack.add()
    with pytest.raises(ParseFailed):
        await stack.pipeline.run(stack.claim())
    assert_nothing_is_searchable(stack)
    assert stack.count(ParsedFile) == 0


async def test_a_file_is_parsed_once_however_many_collections_it_is_in(stack: Stack) -> None:
    file = stack.upload()
    diaries = new_collection(stack.database, stack.scope, "diaries")
    documents = [stack.attach(file), stack.attach(file, collection=diaries), stack.add(TEXT)]
    for _ in documents:
        await stack.pipeline.run(stack.claim())
    assert len(stack.parser.calls) == 1
    assert [[chunk.text for chunk in stack.chunks(document)] for document in documents] == [
        list(PARAGRAPHS)
    ] * 3


async def test_a_file_that_is_parsed_for_two_collections_at_once_completes_in_both(stack: Stack) -> None:
    file = stack.upload()
    diaries = new_collection(stack.database, stack.scope, "diaries")
    documents = [stack.attach(file), stack.attach(file, collection=diaries)]
    both_parse = asyncio.Barrier(2)

    async def meet(_: str) -> None:
        await both_parse.wait()

    stack.parser.meanwhile = meet
    with before_commits(lambda _: time.sleep(0.05)):
        await asyncio.gather(stack.pipeline.run(stack.claim()), stack.pipeline.run(stack.claim()))
    assert {stack.document(document).status for document in documents} == {DocumentStatus.COMPLETED}
    assert stack.count(ParsedFile) == 1


Delete = Callable[[Session, Scope, Document], object]
DELETES: dict[str, Delete] = {
    "the document": lambda session, scope, document: catalog.delete_document(
        session, scope, document.collection_id, document.file_id
    ),
    "the collection": lambda session, scope, document: catalog.delete_collection(
        session, scope, document.collection_id
    ),
    "the file": lambda session, scope, document: catalog.delete_file(session, scope, document.file_id),
}


@pytest.mark.parametrize("what", DELETES)
async def test_what_is_deleted_while_it_is_ingested_writes_nothing(stack: Stack, what: str) -> None:
    document = stack.add()

    async def delete(_: str) -> None:
        with stack.database.write() as session:
            DELETES[what](session, stack.scope, document)

    stack.parser.meanwhile = delete
    with pytest.raises(LeaseLost):
        await stack.pipeline.run(stack.claim())
    assert_nothing_is_searchable(stack)


@pytest.mark.parametrize("what", DELETES)
async def test_what_is_deleted_while_its_chunks_are_committed_is_gone(stack: Stack, what: str) -> None:
    """The delete begins before the commit and ends after it: it must see what was committed meanwhile."""
    document = stack.add()
    job = stack.claim()
    writing = threading.Event()

    def pause(session: Session) -> None:
        rows = session.identity_map.values()
        if any(isinstance(row, Document) and row.status is DocumentStatus.COMPLETED for row in rows):
            writing.set()
            time.sleep(0.1)

    def delete() -> None:
        assert writing.wait(10)
        with stack.database.write() as session:
            DELETES[what](session, stack.scope, document)

    with before_commits(pause):
        await asyncio.gather(stack.pipeline.run(job), asyncio.to_thread(delete))
    assert [stack.count(table) for table in (Document, Chunk, Job)] == [0, 0, 0]
    assert replayed(log_of(stack.database, stack.collection)) == set()


async def test_a_delete_and_an_ingestion_do_not_wait_for_each_other_for_ever(stack: Stack) -> None:
    """Both lock the collection and the job. Were their order not the same, PostgreSQL would end one of them."""
    document = stack.add()
    job = stack.claim()
    with stack.database.write() as session:
        session.get_one(Collection, stack.collection.id, with_for_update=True)
        ingesting = asyncio.create_task(stack.pipeline.run(job))
        await asyncio.sleep(0.2)
        catalog.delete_document(session, stack.scope, stack.collection.id, document.file_id)
    with pytest.raises(LeaseLost):
        await ingesting
    assert_nothing_is_searchable(stack)


async def test_a_lease_that_was_lost_while_working_writes_nothing(stack: Stack) -> None:
    document = stack.add()
    lost = stack.claim()
    stack.clock.now += 1000.0
    held = stack.claim()
    with pytest.raises(LeaseLost):
        await stack.pipeline.run(lost)
    assert_nothing_is_searchable(stack)
    await stack.pipeline.run(held)
    assert len(stack.chunks(document)) == 3


async def test_ingesting_anew_replaces_the_chunks(stack: Stack) -> None:
    file = stack.upload("\n\n".join(PARAGRAPHS * 2))
    stack.attach(file)
    await stack.pipeline.run(stack.claim())
    before = chunk_ids(stack.database, stack.collection)
    wide = stack.pipeline_with(FakeEmbedder(max_tokens=40))
    anew = stack.attach(file, chunking=static(40))
    await wide.run(stack.claim())
    after = chunk_ids(stack.database, stack.collection)
    assert len(before) == 6
    assert len(after) == 2
    assert not before & after
    assert {chunk.id for chunk in stack.chunks(anew)} == after
    assert replayed(log_of(stack.database, stack.collection)) == after
    assert len(stack.parser.calls) == 1


async def test_a_collection_takes_one_model_only(stack: Stack) -> None:
    stack.add()
    await stack.pipeline.run(stack.claim())
    stack.add("Another document of about ten words, made for another model.")
    another = FakeEmbedder(fingerprint="another", max_tokens=16)
    job = stack.claim()
    with pytest.raises(WrongModel, match=r"'fake' in models\.embedding"):
        await stack.pipeline_with(another).run(job)
    assert another.calls == []
    assert len(stack.parser.calls) == 1


async def test_a_model_that_changed_meanwhile_writes_nothing(stack: Stack) -> None:
    """Two documents of an empty collection, embedded by two models at once: the second to commit is refused."""
    stack.add()
    second = stack.add("Another document of about ten words, made for another model.")
    another = stack.pipeline_with(FakeEmbedder(fingerprint="another", max_tokens=16))
    first_job, second_job = stack.claim(), stack.claim()

    async def overtake(text: str) -> None:
        if text != TEXT:
            await stack.pipeline.run(first_job)

    stack.parser.meanwhile = overtake
    with pytest.raises(WrongModel):
        await another.run(second_job)
    assert stack.chunks(second) == []


@pytest.mark.parametrize(
    ("chunking", "model_max_tokens", "expected"),
    [
        ({"type": "auto"}, 256, (256, 32)),
        ({"type": "static", "static": {}}, 2000, (800, 400)),
        ({"type": "static", "static": {}}, 256, (256, 128)),
        (static(100), 256, (100, 0)),
        (
            {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 90}},
            256,
            (100, 50),
        ),
    ],
)
def test_no_chunk_outgrows_the_model_and_no_overlap_half_a_chunk(
    chunking: dict[str, Any], model_max_tokens: int, expected: tuple[int, int]
) -> None:
    assert chunk_sizes(chunking, model_max_tokens) == expected
