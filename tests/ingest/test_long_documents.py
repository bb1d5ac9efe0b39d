"""Documents of many parts and files inside files: kept step by step, shown all at once, gone on with after a crash."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import select

from ingest import pipeline
from ingest.elements import Attachment, ElementKind, Openable, Parsed, ParseOptions
from ingest.jobs import JobProgress, LeaseLost
from ingest.parse.build import DocumentBuilder, Line
from ingest.parsed_files import ParsedElsewhere
from ingest.pipeline import Outcome, ParsersTaken
from retrieval import catalog
from retrieval.database import Database
from retrieval.passages import read_text
from retrieval.scope import Scope
from retrieval.tables import Chunk, ChunkLog, Document, DocumentStatus, File, Job, ParsedFile, ParsedPart
from serving.protocols import ModelUnavailable
from tests.ingest.stack import PARAGRAPHS, SEALER, TEXT, Stack
from tests.retrieval.library import chunk_ids, log_of, new_collection, replayed


@dataclass
class PartsParser:
    """A Parser that gives each paragraph as a part of its own, and lines like `@name content` as attachments."""

    folder: Path
    calls: list[ParseOptions] = field(default_factory=list)
    parts_given: int = 0
    hold_before: int | None = None
    """It waits for `go_on` before the part of this number."""
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    waits: asyncio.Event = field(default_factory=asyncio.Event)

    async def parse(
        self,
        content: Openable,
        media_type: str,  # noqa: ARG002
        options: ParseOptions,
    ) -> AsyncGenerator[Parsed]:
        self.calls.append(options)
        with content.open("rb") as file:
            whole = file.read().decode()
        start = 0
        for number, paragraph in enumerate(whole.split("\n\n")):
            if number == self.hold_before:
                self.waits.set()
                await self.go_on.wait()
            if paragraph.startswith("@"):
                name, _, inside = paragraph[1:].partition(" ")
                inner = self.folder / "inner"
                inner.write_text(inside)
                yield Attachment(name, inner)
                inner.unlink()
                continue
            builder = DocumentBuilder()
            builder.add(ElementKind.TEXT, [Line(paragraph)])
            (part,) = builder.finish()
            separator = "\n\n" if start else ""
            shift = start + len(separator)
            yield type(part)(
                text=separator + part.text,
                elements=tuple(
                    type(each)(each.kind, each.start_char + shift, each.end_char + shift, each.headings, ())
                    for each in part.elements
                ),
                start_char=start,
                pages_done=number + 1,
                page_count=None,
            )
            self.parts_given += 1
            start = shift + len(part.text)


@pytest.fixture
def parser(tmp_path: Path) -> PartsParser:
    return PartsParser(tmp_path)


@pytest.fixture
def stack(database: Database, scope: Scope, tmp_path: Path, parser: PartsParser) -> Stack:
    return Stack(database, scope, tmp_path / "blobs", parser=parser)


def searchable(stack: Stack) -> set[int]:
    return replayed(log_of(stack.database, stack.collection))


async def test_a_document_of_many_parts_is_the_same_as_its_parts_together(stack: Stack) -> None:
    document = stack.add()
    assert await stack.pipeline.run(stack.claim()) is Outcome.DONE
    chunks = stack.chunks(document)
    assert [chunk.text for chunk in chunks] == list(PARAGRAPHS)
    assert [chunk.position for chunk in chunks] == [0, 1, 2]
    with stack.database.read() as session:
        text = read_text(session, stack.scope, document.id)
    assert text == TEXT
    assert all(text[chunk.start_char : chunk.end_char] == chunk.text for chunk in chunks)
    assert searchable(stack) == {chunk.id for chunk in chunks}
    done = stack.document(document)
    assert done.status is DocumentStatus.COMPLETED
    assert done.usage_bytes == sum(len(chunk.text.encode()) + len(chunk.embedding) for chunk in chunks)


async def test_nothing_of_it_is_found_before_the_last_part_is_in(stack: Stack) -> None:
    document = stack.add()
    embedded = 0

    async def fail_at_the_last(_: object) -> None:
        nonlocal embedded
        embedded += 1
        if embedded == len(PARAGRAPHS):
            raise ModelUnavailable

    stack.embedder.meanwhile = fail_at_the_last
    with pytest.raises(ModelUnavailable):
        await stack.pipeline.run(stack.claim())
    assert len(stack.chunks(document)) == 2
    assert searchable(stack) == set()
    assert stack.count(ChunkLog) == 0


async def test_a_second_try_goes_on_where_the_first_was_lost(stack: Stack) -> None:
    document = stack.add()
    texts: list[str] = []
    away = True

    async def away_at_the_second(some: object) -> None:
        texts.append(str(some))
        if away and len(texts) == 2:
            raise ModelUnavailable

    stack.embedder.meanwhile = away_at_the_second
    with pytest.raises(ModelUnavailable):
        await stack.pipeline.run(stack.claim())
    away = False
    stack.clock.now += 60
    assert await stack.pipeline.run(stack.claim()) is Outcome.DONE
    assert len(texts) == len(PARAGRAPHS) + 1
    assert [chunk.text for chunk in stack.chunks(document)] == list(PARAGRAPHS)
    assert stack.count(ParsedFile) == 1


async def test_a_parse_that_died_in_the_middle_begins_anew(stack: Stack, parser: PartsParser) -> None:
    document = stack.add()
    parser.hold_before = 2
    lost = asyncio.create_task(stack.pipeline.run(stack.claim()))
    await parser.waits.wait()
    lost.cancel()
    await asyncio.gather(lost, return_exceptions=True)
    assert stack.count(ParsedPart) >= 1
    parser.hold_before = None
    stack.clock.now += 60
    assert await stack.pipeline.run(stack.claim()) is Outcome.DONE
    assert stack.count(ParsedPart) == len(PARAGRAPHS)
    assert [chunk.text for chunk in stack.chunks(document)] == list(PARAGRAPHS)


async def test_two_jobs_do_not_parse_one_long_file_at_once(stack: Stack, parser: PartsParser) -> None:
    file = stack.upload()
    diaries = new_collection(stack.database, stack.scope, "diaries")
    first, second = stack.attach(file), stack.attach(file, collection=diaries)
    parser.hold_before = 2
    parsing = asyncio.create_task(stack.pipeline.run(stack.claim()))
    await parser.waits.wait()
    with pytest.raises(ParsedElsewhere):
        await stack.pipeline.run(stack.claim())
    parser.go_on.set()
    assert await parsing is Outcome.DONE
    stack.clock.now += 60
    assert await stack.pipeline.run(stack.claim()) is Outcome.DONE
    assert {stack.document(each).status for each in (first, second)} == {DocumentStatus.COMPLETED}
    assert len(parser.calls) == 1


async def test_a_slow_document_lets_others_go_first_and_loses_nothing(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "SLICE_S", -1.0)
    slow, other = stack.add(), stack.add("Another letter that waits.")
    job = stack.claim()
    assert job.document_id == slow.id
    progress = JobProgress()
    outcomes = [await stack.pipeline.run(job, progress)]
    # Everything has to be parsed before it may rest.
    assert stack.count(ParsedPart) == len(PARAGRAPHS)
    worker = stack.worker()
    stack.clock.now += 1
    worker._put_off(job, outcomes[0])
    assert outcomes == [Outcome.PAUSED]
    assert stack.claim().document_id == other.id
    rest = stack.claim()
    assert rest.next_part > 0
    while await stack.pipeline.run(rest) is Outcome.PAUSED:
        stack.clock.now += 1
        worker._put_off(rest, Outcome.PAUSED)
        rest = stack.claim()
    assert [chunk.text for chunk in stack.chunks(slow)] == list(PARAGRAPHS)


async def test_progress_tells_step_and_place(stack: Stack) -> None:
    stack.add()
    seen: list[tuple[str, int, str | None]] = []
    progress = JobProgress()

    async def look(_: object) -> None:
        seen.append((progress.step, progress.done, progress.unit))

    stack.embedder.meanwhile = look
    await stack.pipeline.run(stack.claim(), progress)
    assert {step for step, _, _ in seen} <= {"parsing", "embedding"}
    assert seen[-1][0] == "embedding"
    assert seen[-1][2] == "characters"


async def test_files_inside_a_file_become_documents_that_it_waits_for(
    stack: Stack, parser: PartsParser
) -> None:
    mail = stack.add(f"{PARAGRAPHS[0]}\n\n@letters/one.txt {PARAGRAPHS[1]}\n\n@two.txt {PARAGRAPHS[2]}")
    worker = stack.worker()
    job = stack.claim()
    outcome = await stack.pipeline.run(job)
    assert outcome is Outcome.AWAITS_OTHERS
    assert searchable(stack) == set()
    worker._put_off(job, outcome)
    for _ in range(2):
        assert await stack.pipeline.run(stack.claim()) is Outcome.DONE
    stack.clock.now += 5
    assert await stack.pipeline.run(stack.claim()) is Outcome.DONE
    with stack.database.read() as session:
        inner = session.scalars(select(File).where(File.parent_id == mail.file_id).order_by(File.path)).all()
        documents = session.scalars(select(Document).where(Document.parent_id == mail.id)).all()
    assert [(file.path, file.filename) for file in inner] == [
        ("letters/one.txt", "one.txt"),
        ("two.txt", "two.txt"),
    ]
    assert {document.status for document in documents} == {DocumentStatus.COMPLETED}
    assert stack.document(mail).status is DocumentStatus.COMPLETED
    assert len(searchable(stack)) == 3
    assert len(parser.calls) == 3
    assert {options.depth for options in parser.calls} == {0, 1}


async def test_an_inner_file_of_no_known_type_fails_by_itself(stack: Stack) -> None:
    mail = stack.add(f"{PARAGRAPHS[0]}\n\n@empty.txt ")
    assert await stack.pipeline.run(stack.claim()) is Outcome.DONE
    with stack.database.read() as session:
        (inner,) = session.scalars(select(Document).where(Document.parent_id == mail.id))
    assert (inner.status, inner.error_code) == (DocumentStatus.FAILED, "unsupported")
    assert stack.document(mail).status is DocumentStatus.COMPLETED
    assert stack.count(Job) == 0


async def test_the_same_bytes_again_bring_their_inner_files_without_a_second_parse(
    stack: Stack, parser: PartsParser
) -> None:
    text = f"{PARAGRAPHS[0]}\n\n@one.txt {PARAGRAPHS[1]}"
    worker = stack.worker()
    for _ in range(2):
        stack.add(text)
        await worker.drain()
        stack.clock.now += 5
        await worker.drain()
    with stack.database.read() as session:
        states = session.scalars(select(Document.status)).all()
        inner = session.scalars(select(File).where(File.path == "one.txt")).all()
    assert states == [DocumentStatus.COMPLETED] * 4
    assert len({file.parent_id for file in inner}) == 2
    assert len({file.blob_id for file in inner}) == 1
    assert len(parser.calls) == 2


async def test_a_deleted_file_takes_those_inside_along(stack: Stack) -> None:
    mail = stack.add(f"{PARAGRAPHS[0]}\n\n@one.txt {PARAGRAPHS[1]}")
    worker = stack.worker()
    await worker.drain()
    stack.clock.now += 5
    await worker.drain()
    assert len(searchable(stack)) == 2
    with stack.database.write() as session:
        orphans = catalog.delete_file(session, stack.scope, mail.file_id)
    assert len(orphans) == 2
    assert [stack.count(table) for table in (File, Document, Chunk, ParsedFile, ParsedPart)] == [0] * 5
    assert searchable(stack) == set()


async def test_a_newer_version_takes_the_place_of_the_old_in_one_moment(stack: Stack) -> None:
    old = stack.add(PARAGRAPHS[0])
    await stack.pipeline.run(stack.claim())
    before = searchable(stack)
    file = stack.upload(PARAGRAPHS[1])
    with stack.database.write() as session:
        new = catalog.attach_file(
            session,
            stack.scope,
            collection=catalog.lock_collection(session, stack.scope, stack.collection.id),
            file=file,
            attributes={},
            chunking={"type": "auto"},
            now=stack.clock(),
            replaces_id=old.id,
        )
    assert searchable(stack) == before
    assert await stack.pipeline.run(stack.claim()) is Outcome.DONE
    (chunk,) = stack.chunks(new)
    assert searchable(stack) == {chunk.id} == chunk_ids(stack.database, stack.collection)
    assert stack.count(File) == 1
    assert list(stack.blobs.ids()) == [file.blob_id]


async def test_the_password_of_a_file_reaches_its_parser_alone(stack: Stack, parser: PartsParser) -> None:
    file = stack.upload()
    with stack.database.write() as session:
        session.get_one(File, file.id).password = SEALER.seal("open sesame", owner=file.id)
    stack.attach(file)
    await stack.pipeline.run(stack.claim())
    assert [options.password for options in parser.calls] == ["open sesame"]


async def test_a_document_that_is_taken_away_stops_within_two_seconds(stack: Stack) -> None:
    document = stack.add()
    held = asyncio.Event()

    async def hold(_: object) -> None:
        held.set()
        await asyncio.Event().wait()

    stack.embedder.meanwhile = hold
    worker = stack.worker()
    running = asyncio.create_task(worker.run())
    await held.wait()
    with stack.database.write() as session:
        catalog.delete_document(session, stack.scope, document.collection_id, document.file_id)
    async with asyncio.timeout(2):
        while worker._running:  # noqa: ASYNC110 - nothing tells of a job that stops
            await asyncio.sleep(0.05)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert stack.count(Chunk) == 0


async def test_tenants_take_turns_however_long_the_queue_of_one_is(
    stack: Stack, other_scope: Scope, tmp_path: Path
) -> None:
    for number in range(3):
        stack.add(f"Letter number {number}.")
    other = Stack(stack.database, other_scope, tmp_path / "blobs")
    theirs = other.add("Their only letter.")
    worker = stack.worker()
    (first,), (second,) = worker._claim(1), worker._claim(1)
    assert theirs.id in {first.document_id, second.document_id}


async def test_a_lost_lease_writes_no_part(stack: Stack) -> None:
    stack.add()
    job = stack.claim()
    stack.clock.now += 60
    stack.claim()
    with pytest.raises(LeaseLost):
        await stack.pipeline.run(job)
    assert stack.count(Chunk) == 0


async def test_files_that_keep_a_parser_busy_leave_one_to_other_tenants(
    stack: Stack, parser: PartsParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "PARSER_PATIENCE_S", 0.05)
    narrow = stack.pipeline_with(stack.embedder, parsers=2)
    stack.add("A letter that takes its parser long.")
    stack.add("Another one of the same tenant.")
    parser.hold_before = 0
    first = asyncio.create_task(narrow.run(stack.claim()))
    await parser.waits.wait()
    waiting = stack.claim()
    with pytest.raises(ParsersTaken):
        await narrow.run(waiting)
    parser.go_on.set()
    assert await first is Outcome.DONE
    assert await narrow.run(waiting) is Outcome.DONE
