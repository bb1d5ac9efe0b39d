"""The worker: what it tries again, what it gives up, and that no document stops the others."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from ingest.elements import ParseFailed, ParseFailure
from ingest.pipeline import WrongModel
from ingest.worker import MAX_ATTEMPTS, Permanent, Retry, Wait, Worker, verdict
from retrieval.catalog import delete_file
from retrieval.database import Database, open_database
from retrieval.scope import Scope
from retrieval.tables import Base, Collection, DocumentStatus, Job, JobState, WorkerBeat
from retrieval.wakes import Listener, listening
from serving.protocols import ModelUnavailable, ModelUnknown, Overloaded, TextRefused
from tests.fakes import FakeEmbedder
from tests.ingest.stack import LEASE_S, TEXT, Stack

OTHER = "Another document of about ten words, which is quite harmless."


@pytest.fixture
def stack(database: Database, scope: Scope, tmp_path: Path) -> Stack:
    return Stack(database, scope, tmp_path / "blobs")


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[None]:
    """Stopped as a signal stops it."""
    task = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until_count(stack: Stack, table: type[Base], wanted: int) -> None:
    async with asyncio.timeout(10):
        while stack.count(table) != wanted:  # noqa: ASYNC110 - SQL sends no events
            await asyncio.sleep(0.02)


def poison(error: Exception, *, only: str | None = None) -> Callable[[str], Awaitable[None]]:
    """Fails the parsing of one text, or of all."""

    async def fail(text: str) -> None:
        if only in (None, text):
            raise error

    return fail


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            ParseFailed(ParseFailure.ENCRYPTED, "Remove the password."),
            Permanent("encrypted", "Remove the password."),
        ),
        (ParseFailed(ParseFailure.INTERRUPTED, "It was stopped."), Retry("It was stopped.")),
        (
            TextRefused(3, "it is not valid Unicode"),
            Permanent("unreadable_text", "Text 3 cannot be processed: it is not valid Unicode"),
        ),
        (
            ModelUnknown("small", ["large"]),
            Retry(
                "There is no model 'small'. Available: large. Add it to models.embedding again, "
                "or add the file to a new vector store.",
                code="embedding_model_removed",
            ),
        ),
        (ModelUnavailable(), Wait(1.0)),
        (Overloaded(7.5), Wait(7.5)),
        (OperationalError("select 1", {}, Exception("server closed the connection")), Wait(2.0)),
    ],
)
def test_each_error_has_its_verdict(error: Exception, expected: Permanent | Retry | Wait) -> None:
    assert verdict(error) == expected


@pytest.mark.parametrize("code", [code for code in ParseFailure if code is not ParseFailure.INTERRUPTED])
def test_a_file_that_cannot_be_parsed_is_not_tried_again(code: ParseFailure) -> None:
    assert verdict(ParseFailed(code, "Why.")) == Permanent(code.value, "Why.")


def test_another_model_is_told_with_what_to_do() -> None:
    told = verdict(WrongModel("small"))
    assert isinstance(told, Permanent)
    assert told.code == "embedding_model_changed"
    assert "models.embedding" in told.message


def test_an_unknown_error_is_told_by_its_name_and_never_by_its_words() -> None:
    told = verdict(ValueError("the patient's name is Ada"))
    assert isinstance(told, Retry)
    assert "ValueError" in told.message
    assert "Ada" not in told.message


async def test_all_that_is_due_is_ingested(stack: Stack) -> None:
    documents = [stack.add(f"{TEXT} {number}") for number in range(5)]
    await stack.worker().drain()
    assert {stack.document(document).status for document in documents} == {DocumentStatus.COMPLETED}
    assert stack.count(Job) == 0


async def test_a_permanent_failure_says_code_and_message_at_the_first_try(stack: Stack) -> None:
    stack.parser.meanwhile = poison(ParseFailed(ParseFailure.ENCRYPTED, "Remove the password."))
    document = stack.add()
    await stack.worker().drain()
    failed = stack.document(document)
    assert (failed.status, failed.error_code) == (DocumentStatus.FAILED, "encrypted")
    assert failed.error_message == "Remove the password."
    assert len(stack.parser.calls) == 1


@pytest.mark.parametrize(
    "error", [ParseFailed(ParseFailure.INTERRUPTED, "It was stopped."), RuntimeError("a bug in a parser")]
)
async def test_what_may_pass_is_tried_again_ever_later_and_then_given_up(
    stack: Stack, error: Exception
) -> None:
    stack.parser.meanwhile = poison(error)
    document = stack.add()
    worker = stack.worker()
    for attempt, backoff_s in enumerate((1.0, 4.0, 16.0, 64.0), 1):
        await worker.drain()
        job = stack.job(document)
        assert job is not None
        assert (job.attempt, job.due_at, job.lease) == (attempt, stack.clock.now + backoff_s, None)
        stack.clock.now += backoff_s
    await worker.drain()
    failed = stack.document(document)
    assert (failed.status, failed.error_code) == (DocumentStatus.FAILED, "server_error")
    assert f"{MAX_ATTEMPTS} tries" in (failed.error_message or "")
    assert len(stack.parser.calls) == MAX_ATTEMPTS


async def test_a_poison_document_does_not_stop_the_others(stack: Stack) -> None:
    stack.parser.meanwhile = poison(RuntimeError("a bug in a parser"), only=TEXT)
    poisonous, harmless = stack.add(TEXT), [stack.add(f"{OTHER} {number}") for number in range(4)]
    await stack.worker(concurrency=1).drain()
    assert {stack.document(document).status for document in harmless} == {DocumentStatus.COMPLETED}
    assert stack.document(poisonous).status is DocumentStatus.IN_PROGRESS


@pytest.mark.parametrize(("failure", "delay_s"), [(ModelUnavailable(), 1.0), (Overloaded(7.0), 7.0)])
async def test_while_the_models_are_away_documents_wait_without_a_count(
    stack: Stack, failure: ModelUnavailable | Overloaded, delay_s: float
) -> None:
    stack.embedder.failure = failure
    document = stack.add()
    worker = stack.worker()
    for _ in range(2 * MAX_ATTEMPTS):
        await worker.drain()
        job = stack.job(document)
        assert job is not None
        assert (job.attempt, job.due_at, job.state) == (0, stack.clock.now + delay_s, JobState.QUEUED)
        stack.clock.now += delay_s
    stack.embedder.failure = None
    await worker.drain()
    assert stack.document(document).status is DocumentStatus.COMPLETED


async def test_a_model_that_is_gone_fails_a_document_in_the_end_and_its_return_lets_it_in(
    stack: Stack,
) -> None:
    """At first the models server may only be behind the settings; the file stays, and may be added again."""
    file = stack.upload()
    document = stack.attach(file)
    with stack.database.write() as session:
        session.get_one(Collection, stack.collection.id).embedding_model = "small"
    worker = stack.worker()
    for _ in range(MAX_ATTEMPTS):
        await worker.drain()
        stack.clock.now += 100.0
    failed = stack.document(document)
    assert (failed.status, failed.error_code) == (DocumentStatus.FAILED, "embedding_model_removed")
    assert "models.embedding" in (failed.error_message or "")
    assert stack.parser.calls == []
    stack.pipeline = stack.pipeline_with(FakeEmbedder(name="small", max_tokens=16))
    again = stack.attach(file)
    await stack.worker().drain()
    assert stack.document(again).status is DocumentStatus.COMPLETED


async def test_a_document_that_is_deleted_while_it_fails_is_no_trouble(stack: Stack) -> None:
    document = stack.add()

    async def delete_and_fail(_: str) -> None:
        with stack.database.write() as session:
            delete_file(session, stack.scope, document.file_id)
        raise ParseFailed(ParseFailure.CORRUPT, "It is broken.")

    stack.parser.meanwhile = delete_and_fail
    await stack.worker().drain()
    assert stack.count(Job) == 0


async def test_no_more_documents_than_allowed_are_worked_on_at_once(stack: Stack) -> None:
    at_once: list[int] = []
    now = 0

    async def count(_: str) -> None:
        nonlocal now
        now += 1
        at_once.append(now)
        await asyncio.sleep(0.2)
        now -= 1

    stack.parser.meanwhile = count
    for number in range(6):
        stack.add(f"{TEXT} {number}")
    await stack.worker(concurrency=2).drain()
    assert max(at_once) == 2


async def test_a_document_that_comes_while_all_is_quiet_is_ingested(stack: Stack) -> None:
    async with running(stack.worker()):
        await asyncio.sleep(0.15)
        document = stack.add()
        await until_count(stack, Job, 0)
    assert stack.document(document).status is DocumentStatus.COMPLETED


async def test_a_stopped_worker_gives_its_jobs_back_and_signs_off(stack: Stack) -> None:
    reached = asyncio.Event()

    async def hang(_: str) -> None:
        reached.set()
        await asyncio.Event().wait()

    stack.parser.meanwhile = hang
    document = stack.add()
    async with running(stack.worker()):
        await asyncio.wait_for(reached.wait(), 10)
        await until_count(stack, WorkerBeat, 1)
    job = stack.job(document)
    assert job is not None
    assert (job.state, job.lease, job.due_at, job.attempt) == (JobState.QUEUED, None, stack.clock.now, 0)
    assert stack.count(WorkerBeat) == 0


async def test_a_living_worker_keeps_its_jobs_beyond_the_lease(stack: Stack) -> None:
    """Two workers in real time, a lease of 0.6 s, and a file that takes 1.5 s: it is parsed once."""

    async def take_long(_: str) -> None:
        await asyncio.sleep(1.5)

    stack.parser.meanwhile = take_long
    document = stack.add()
    one, two = (stack.worker(lease_s=0.6, clock=time.time) for _ in range(2))
    async with running(one), running(two):
        await until_count(stack, Job, 0)
    assert stack.document(document).status is DocumentStatus.COMPLETED
    assert len(stack.parser.calls) == 1


async def test_the_jobs_of_a_worker_that_died_go_to_another_when_their_lease_ends(stack: Stack) -> None:
    document = stack.add()
    stack.claim()
    worker = stack.worker()
    await worker.drain()
    assert stack.document(document).status is DocumentStatus.IN_PROGRESS
    stack.clock.now += LEASE_S
    await worker.drain()
    assert stack.document(document).status is DocumentStatus.COMPLETED


@asynccontextmanager
async def idle_elsewhere(
    stack: Stack, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Listener, list[str]]]:
    """A worker as in another process, which looks once an hour unless it is woken; and the looks that it took."""
    monkeypatch.setattr("ingest.worker.LOOK_S", 3600.0)
    other, looks = open_database(database_url), list[str]()
    there = Stack(other, stack.scope, stack.folder)
    async with listening(other.engine) as listener, running(there.worker(listener=listener, clock=time.time)):
        async with asyncio.timeout(20):
            while not listener.is_connected:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.02)
        await asyncio.sleep(1.0)  # What it looks for as it begins.

        def note(_: object, __: object, statement: str, *___: object) -> None:
            if "FROM jobs" in statement:
                looks.append(statement)

        event.listen(other.engine, "before_cursor_execute", note)
        yield listener, looks
    other.close()


@pytest.mark.parametrize("database_kind", ["postgresql"])
@pytest.mark.slow
async def test_a_document_wakes_the_worker_of_another_process(
    stack: Stack, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with idle_elsewhere(stack, database_url, monkeypatch) as (_, looks):
        await asyncio.sleep(1.0)
        assert looks == []
        stack.add()
        await until_count(stack, Job, 0)


@pytest.mark.parametrize("database_kind", ["postgresql"])
@pytest.mark.slow
async def test_a_document_that_comes_while_nobody_listens_is_ingested(
    stack: Stack, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with idle_elsewhere(stack, database_url, monkeypatch) as (listener, _):
        with stack.database.engine.connect() as connection:
            ends = "select pg_terminate_backend(pid) from pg_stat_activity where query = 'listen strongroom'"
            assert connection.execute(text(ends)).all()
        stack.add()
        await until_count(stack, Job, 0)
        async with asyncio.timeout(20):
            while not listener.is_connected:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.02)
        stack.add("Another document, which comes after it.")
        await until_count(stack, Job, 0)


@pytest.mark.parametrize("database_kind", ["postgresql"])
@pytest.mark.slow
async def test_a_job_that_was_put_off_is_taken_when_it_is_due(
    stack: Stack, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with idle_elsewhere(stack, database_url, monkeypatch):
        stack.clock.now = time.time() + 2.0
        stack.add()
        await until_count(stack, Job, 0)
