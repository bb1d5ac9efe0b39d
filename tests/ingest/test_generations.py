"""A rebuild as those who search and add meanwhile see it: steady answers, one switch, and a way back."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from ingest import jobs
from ingest.jobs import LeaseLost
from ingest.pipeline import Outcome
from ingest.rebuilds import tend
from retrieval import catalog, generations
from retrieval.database import Database
from retrieval.generation_progress import GenerationStanding, list_generations
from retrieval.generations import GenerationConflict
from retrieval.scope import Scope
from retrieval.search import FoundChunk, Searcher, SearchMode, SearchOptions
from retrieval.tables import (
    Chunk,
    ChunkLog,
    Collection,
    Document,
    DocumentStatus,
    Generation,
    Job,
    JobState,
    ParsedFile,
)
from retrieval.verify import differences
from retrieval.views import IndexViews
from serving.protocols import Lane, TextRefused
from tests.fakes import FakeEmbedder
from tests.ingest.stack import LEASE_S, PARAGRAPHS, Stack

pytestmark = pytest.mark.slow

LETTERS = [
    "\n\n".join(f"{paragraph} So says letter {number}." for paragraph in PARAGRAPHS) for number in range(4)
]
REFUSAL = str(TextRefused(0, "too strange"))
QUERY = "vault key krill letter"


class Rebuilding(Stack):
    """A collection with letters, and a second model, which reads longer texts."""

    def __init__(self, database: Database, scope: Scope, folder: Path) -> None:
        super().__init__(database, scope, folder)
        self.wide = FakeEmbedder(name="wide", fingerprint="wide", dimensions=16, max_tokens=64)
        self.pipeline = self.pipeline_with(self.embedder, self.wide)
        embedders = {each.name: each for each in (self.embedder, self.wide)}
        self.searcher = Searcher(
            database, IndexViews(), embedders.__getitem__, None, default_embedding=self.embedder.name
        )

    async def add_all(self, texts: Sequence[str] = LETTERS) -> list[Document]:
        documents = [self.add(text) for text in texts]
        await self.settle()
        return documents

    async def settle(self) -> None:
        """Works until all jobs are done or failed, those that were put off as well."""
        while True:
            await self.worker().drain()
            with self.database.read() as session:
                unfinished = session.scalar(select(Job.id).where(Job.state != JobState.FAILED).limit(1))
            if unfinished is None:
                return
            self.clock.now += 1

    def begin(self) -> int:
        with self.database.write() as session:
            return generations.begin(
                session,
                self.scope,
                self.collection.id,
                embedding_model="wide",
                chunking=None,
                now=self.clock(),
            ).number

    def switch(self, number: int, *, force: bool = False) -> None:
        with self.database.write() as session:
            generations.switch(session, self.scope, self.collection.id, number, force=force, now=self.clock())

    async def found(self, mode: SearchMode = SearchMode.HYBRID) -> tuple[FoundChunk, ...]:
        options = SearchOptions(limit=50, mode=mode)
        return (await self.searcher.search(self.scope, QUERY, options=options)).chunks

    async def answers(self) -> list[tuple[FoundChunk, ...]]:
        return [await self.found(mode) for mode in SearchMode]

    async def found_documents(self) -> set[int]:
        return {chunk.document_id for chunk in await self.found()}

    def standing(self, number: int) -> GenerationStanding:
        with self.database.read() as session:
            found = list_generations(session, self.scope, self.collection.id)
        return next(each for each in found if each.number == number)

    def answering(self) -> int:
        with self.database.read() as session:
            return session.get_one(Collection, self.collection.id).generation

    def tend(self) -> None:
        tend(self.database, now=self.clock())

    def assert_all_is_well(self) -> None:
        assert list(differences(self.database, self.blobs, IndexViews())) == []


@pytest.fixture
def stack(database: Database, scope: Scope, tmp_path: Path) -> Rebuilding:
    return Rebuilding(database, scope, tmp_path / "blobs")


def of_generation(chunks: Sequence[FoundChunk]) -> set[int]:
    return {chunk.generation for chunk in chunks}


async def test_the_bytes_that_a_collection_uses_are_those_of_the_generation_that_answers(
    stack: Rebuilding,
) -> None:
    await stack.add_all()
    before = used(stack)
    number = stack.begin()
    await stack.settle()
    assert stack.answering() == number
    assert used(stack) == stored(stack, number) != before
    stack.switch(0)
    assert used(stack) == stored(stack, 0) == before


def used(stack: Rebuilding) -> dict[int, int]:
    with stack.database.read() as session:
        return {each.id: each.usage_bytes for each in session.scalars(select(Document))}


def stored(stack: Rebuilding, number: int) -> dict[int, int]:
    totals: dict[int, int] = {}
    with stack.database.read() as session:
        for chunk in session.scalars(select(Chunk).where(Chunk.generation == number)):
            size = len(chunk.text.encode()) + len(chunk.embedding)
            totals[chunk.document_id] = totals.get(chunk.document_id, 0) + size
    return totals


async def test_answers_are_steady_until_all_is_done_and_then_are_the_new_ones(stack: Rebuilding) -> None:
    documents = await stack.add_all()
    before = await stack.answers()
    number = stack.begin()
    for done in range(len(documents)):
        standing = stack.standing(number)
        assert (standing.completed, standing.total) == (done, len(documents))
        assert "lacks" in (standing.waits_for or "")
        stack.tend()
        assert await stack.answers() == before
        await stack.pipeline.run(stack.claim())
    assert await stack.answers() == before
    assert stack.standing(number).waits_for is None
    stack.tend()
    assert stack.answering() == number
    found = await stack.found()
    assert of_generation(found) == {number}
    assert {chunk.document_id for chunk in found} == {document.id for document in documents}
    with stack.database.read() as session:
        collection = session.get_one(Collection, stack.collection.id)
        chunks = session.scalars(select(Chunk).where(Chunk.generation == number)).all()
    assert (collection.embedding_model, collection.fingerprint) == ("wide", "wide")
    assert {len(chunk.embedding) for chunk in chunks} == {2 * 16}
    assert len(chunks) < len(before[0])
    stack.assert_all_is_well()


async def test_a_rebuild_parses_nothing_and_stands_behind_uploads(stack: Rebuilding) -> None:
    await stack.add_all(LETTERS[:2])
    stack.begin()
    stack.clock.now += 10
    added = stack.add(LETTERS[2])
    assert stack.claim().document_id == added.id
    parsed = len(stack.parser.calls)
    await stack.pipeline.run(stack.claim())
    await stack.pipeline.run(stack.claim())
    assert len(stack.parser.calls) == parsed
    assert {lane for lane, _ in stack.wide.calls} == {Lane.BACKGROUND}


async def test_what_comes_and_goes_during_a_rebuild_is_right_in_both(stack: Rebuilding) -> None:
    kept, early, late, changed = await stack.add_all()
    number = stack.begin()

    def delete(document: Document) -> None:
        with stack.database.write() as session:
            catalog.delete_document(session, stack.scope, document.collection_id, document.file_id)

    delete(early)
    added = stack.add("A letter that came during the rebuild, about the vault.")
    await stack.pipeline.run(stack.claim())
    assert await stack.found_documents() == {kept.id, late.id, changed.id, added.id}
    for _ in range(3):
        await stack.pipeline.run(stack.claim())
    delete(late)
    file = stack.upload("A letter about the vault, in another version.")
    with stack.database.write() as session:
        version = catalog.attach_file(
            session,
            stack.scope,
            collection=catalog.lock_collection(session, stack.scope, stack.collection.id),
            file=file,
            attributes={},
            chunking={"type": "auto"},
            replaces_id=changed.id,
            now=stack.clock(),
        )
    await stack.settle()
    assert stack.answering() == number
    assert await stack.found_documents() == {kept.id, added.id, version.id}
    stack.assert_all_is_well()
    after = stack.add("A letter that came after the rebuild, about the vault.")
    await stack.settle()
    delete(added)
    stack.switch(0)
    found = await stack.found()
    assert of_generation(found) == {0}
    assert {chunk.document_id for chunk in found} == {kept.id, version.id, after.id}
    stack.assert_all_is_well()


async def test_a_rollback_answers_as_before_to_the_last_bit_and_so_does_going_back(stack: Rebuilding) -> None:
    await stack.add_all()
    before = await stack.answers()
    number = stack.begin()
    await stack.settle()
    after = await stack.answers()
    assert after != before
    for _ in range(2):
        stack.switch(0)
        assert await stack.answers() == before
        stack.switch(number)
        assert await stack.answers() == after


async def test_searches_at_the_moment_of_the_switch_see_one_generation_whole(stack: Rebuilding) -> None:
    documents = {document.id for document in await stack.add_all()}
    number = stack.begin()
    seen: list[set[int]] = []

    async def search() -> None:
        while not seen or seen[-1] != {number}:
            found = await stack.found(SearchMode.VECTOR)
            assert {chunk.document_id for chunk in found} == documents
            seen.append(of_generation(found))

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(search())
        await stack.settle()
    assert {frozenset(each) for each in seen} == {frozenset({0}), frozenset({number})}


async def test_a_search_that_a_switch_overtakes_begins_anew(stack: Rebuilding) -> None:
    await stack.add_all()
    number = stack.begin()
    await stack.settle()
    stack.switch(0)

    async def overtake(_: Sequence[str]) -> None:
        if stack.answering() == 0:
            stack.switch(number)

    stack.embedder.meanwhile = overtake
    assert of_generation(await stack.found()) == {number}


async def test_a_document_that_fails_anew_holds_the_switch_up_until_it_is_forced(stack: Rebuilding) -> None:
    good, bad = await stack.add_all(LETTERS[:2])
    before = await stack.answers()

    async def refuse(texts: Sequence[str]) -> None:
        if any("letter 1" in text for text in texts):
            raise TextRefused(0, "too strange")

    stack.wide.meanwhile = refuse
    number = stack.begin()
    await stack.settle()
    standing = stack.standing(number)
    assert (standing.completed, standing.in_progress, standing.failed) == (1, 0, 1)
    assert [(each.file_id, each.message) for each in standing.failures] == [(bad.file_id, REFUSAL)]
    assert "1 documents" in (standing.waits_for or "")
    with pytest.raises(GenerationConflict, match="force"):
        stack.switch(number)
    assert await stack.answers() == before
    for _ in range(2):
        stack.switch(number, force=True)
        assert await stack.found_documents() == {good.id}
        failed = stack.document(bad)
        assert (failed.status, failed.error_code) == (DocumentStatus.FAILED, "unreadable_text")
        assert failed.error_message == REFUSAL
        stack.switch(0)
        assert await stack.answers() == before
        assert stack.document(bad).status is DocumentStatus.COMPLETED
        assert stack.document(bad).error_code is None


async def test_a_document_that_had_failed_is_tried_again(stack: Rebuilding) -> None:
    async def refuse(_: Sequence[str]) -> None:
        raise TextRefused(0, "too strange")

    stack.embedder.meanwhile = refuse
    (document,) = await stack.add_all(LETTERS[:1])
    assert stack.document(document).status is DocumentStatus.FAILED
    number = stack.begin()
    stack.wide.meanwhile = lambda _: asyncio.sleep(0)
    await stack.pipeline.run(stack.claim())
    assert stack.document(document).status is DocumentStatus.FAILED
    stack.tend()
    assert stack.answering() == number
    assert stack.document(document).status is DocumentStatus.COMPLETED
    assert await stack.found_documents() == {document.id}
    with pytest.raises(GenerationConflict, match="1 documents that can be found now failed in generation 0"):
        stack.switch(0)
    stack.switch(0, force=True)
    assert stack.document(document).error_message == REFUSAL
    assert await stack.found_documents() == set()


async def test_a_forced_switch_shows_each_document_once_it_is_done(stack: Rebuilding) -> None:
    first, second = await stack.add_all(LETTERS[:2])
    number = stack.begin()
    await stack.pipeline.run(stack.claim())
    stack.switch(number, force=True)
    assert await stack.found_documents() == {first.id}
    assert stack.document(second).status is DocumentStatus.IN_PROGRESS
    job = stack.claim()
    assert (job.document_id, job.is_background) == (second.id, False)
    await stack.pipeline.run(job)
    assert await stack.found_documents() == {first.id, second.id}
    assert stack.document(second).status is DocumentStatus.COMPLETED


@pytest.mark.parametrize("is_background", [False, True])
async def test_work_in_hand_at_a_switch_is_done_for_what_it_is_after_it(
    stack: Rebuilding, is_background: bool
) -> None:
    """A worker that took a job of the generation that answered would call a document completed that nobody finds."""
    await stack.add_all(LETTERS[:1])
    number = stack.begin()
    await stack.pipeline.run(stack.claim())
    added = stack.add(LETTERS[1])
    taken = [stack.claim(), stack.claim()]
    job = next(each for each in taken if each.is_background is is_background)
    stack.switch(number)
    with pytest.raises(LeaseLost):
        await stack.pipeline.run(job)
    assert stack.document(added).status is DocumentStatus.IN_PROGRESS
    await stack.settle()
    assert stack.document(added).status is DocumentStatus.COMPLETED
    assert added.id in await stack.found_documents()
    stack.switch(0)
    assert added.id in await stack.found_documents()
    stack.assert_all_is_well()


async def test_a_document_is_complete_first_where_it_is_answered_from(stack: Rebuilding) -> None:
    stack.begin()
    document = stack.add(LETTERS[0])
    first, behind = stack.claim(), stack.claim()
    outcome = await stack.pipeline.run(behind)
    assert outcome is Outcome.AWAITS_OTHERS
    embedded = len(stack.wide.calls)
    await stack.pipeline.run(first)
    with stack.database.write() as session:
        jobs.give_back(session, behind, due_at=stack.clock(), attempt=0)
    assert await stack.pipeline.run(stack.claim()) is Outcome.DONE
    assert len(stack.wide.calls) == embedded
    assert stack.document(document).status is DocumentStatus.COMPLETED
    stack.assert_all_is_well()


class Killed(BaseException):
    """As kill -9 does, it undoes what is not committed, and nothing is done after it."""


async def test_killed_before_any_commit_a_rebuild_goes_on_where_it_was(stack: Rebuilding) -> None:
    await stack.add_all(LETTERS[:2])
    number = stack.begin()
    added = stack.add("A letter that came during the rebuild, about the vault.")

    async def work() -> None:
        while True:
            with stack.database.write() as session:
                claimed = jobs.claim(session, now=stack.clock(), lease_s=LEASE_S)
            if not claimed:
                break
            await stack.pipeline.run(claimed[0])
        tend(stack.database, now=stack.clock())

    kills = await _killed_at_each_commit(stack, work)
    assert kills > 5
    assert stack.answering() == number
    assert added.id in await stack.found_documents()
    assert of_generation(await stack.found()) == {number}
    stack.switch(0)
    assert added.id in await stack.found_documents()
    stack.assert_all_is_well()
    stack.switch(number)
    with stack.database.write() as session:
        generations.discard(session, stack.scope, stack.collection.id, 0)
    assert await _killed_at_each_commit(stack, work) > 2
    assert {chunk.generation for document in await _documents(stack) for chunk in stack.chunks(document)} == {
        number
    }
    assert stack.count(Generation) == stack.count(Job) == 0
    with stack.database.read() as session:
        assert set(session.scalars(select(ChunkLog.generation))) == {number}
    assert stack.count(ParsedFile) == 3
    stack.assert_all_is_well()


async def _documents(stack: Rebuilding) -> Sequence[Document]:
    with stack.database.read() as session:
        return session.scalars(select(Document)).all()


async def _killed_at_each_commit(stack: Rebuilding, work: Callable[[], Awaitable[None]]) -> int:
    """Does the work, killed again and again before its first, second, third or fourth commit. Returns how often."""
    kills = 0
    while True:
        spared = kills % 4
        commits = 0

        def kill(_: Session) -> None:
            nonlocal commits
            commits += 1
            if commits > spared:  # noqa: B023 - gone before the next turn
                raise Killed

        event.listen(Session, "before_commit", kill)
        try:
            await work()
        except BaseException as error:
            if not isinstance(error, Killed):
                raise
            kills += 1
        else:
            return kills
        finally:
            event.remove(Session, "before_commit", kill)
        stack.clock.now += LEASE_S + 1
