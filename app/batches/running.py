"""Runs batches behind all other work: each line through the route that it names, as its key, in this process.

Each answer is committed as it comes, so that after a crash whoever claims the batch next goes on where it was; a line
that was under way then is asked a second time. The answers become files once all are there.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import orjson
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from starlette.types import ASGIApp

from app.batches.input import InputLine, LineWrong, read_lines, survey
from app.batches.inside import InsideReply, ask_inside
from ingest.media_types import detect
from retrieval import catalog, request_batches
from retrieval.blobs import BlobContent, BlobStore, Receiver
from retrieval.catalog import FileMissing, NewFile
from retrieval.database import Database
from retrieval.request_batches import LeaseLost, LineResult
from retrieval.scope import within
from retrieval.segments import Damaged
from retrieval.tables import Batch, BatchStatus, Blob, new_id
from retrieval.together import in_thread, together

log = logging.getLogger("strongroom.batches")

LOOK_S = 1.0
"""After so long a new batch begins, and one that was cancelled ends."""
LEASE_S = 15.0
FINISH_LEASE_S = 600.0
"""To write the files, when nothing keeps the lease."""
LINES_AT_ONCE = 16
BATCHES_AT_ONCE = 4
READ_AT_ONCE = 200
LONGEST_PAUSE_S = 60.0
SERVICE_TIER = "batch"
OUTPUT_PURPOSE = "batch_output"
NO_LIMIT = 1 << 62

Json = dict[str, Any]
Clock = Callable[[], float]


class _Stopped(Exception):
    """The batch ends before all its lines are answered, with what is there."""

    def __init__(self, status: BatchStatus) -> None:
        self.status = status


class _Failed(Exception):
    """The batch cannot go on at all."""

    def __init__(self, *errors: LineWrong) -> None:
        self.errors = errors


@asynccontextmanager
async def running_batches(
    app: ASGIApp, database: Database, blobs: BlobStore, *, clock: Clock = time.time
) -> AsyncIterator[None]:
    """Several at once, from now on, beside those of other processes."""
    runner = BatchRunner(app, database, blobs, clock=clock)
    running = [asyncio.create_task(runner.run()) for _ in range(BATCHES_AT_ONCE)]
    try:
        yield
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


class BatchRunner:
    """`app` answers the lines."""

    def __init__(
        self,
        app: ASGIApp,
        database: Database,
        blobs: BlobStore,
        *,
        clock: Clock = time.time,
        lease_s: float = LEASE_S,
    ) -> None:
        self._app = app
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._lease_s = lease_s

    async def run(self) -> None:
        while True:
            try:
                found = await self.run_next()
            except OperationalError:
                log.warning("batches_wait_for_the_database")
                found = False
            if not found:
                await asyncio.sleep(LOOK_S)

    async def run_next(self) -> bool:
        """Claims a batch and runs it to its end. False when none is due."""
        batch = await in_thread(self._claim)
        if batch is None:
            return False
        held = _HeldBatch(self._database, self._blobs, batch, clock=self._clock, lease_s=self._lease_s)
        try:
            await self._run(held)
        except LeaseLost:
            log.warning("batch_lease_lost", extra={"batch": batch.id})
        except OperationalError:
            raise
        except Exception as error:  # noqa: BLE001 - it would be claimed and break again for a day
            log.error("batch_broke", extra={"batch": batch.id, "reason": type(error).__name__})
            broke = LineWrong("server_error", "Internal error; the server's log has more.", line=None)
            await in_thread(held.fail, [broke])
        return True

    def _claim(self) -> Batch | None:
        now = self._clock()
        with self._database.read() as session:
            if not request_batches.is_any_due(session, now=now):
                return None
        with self._database.write() as session:
            return request_batches.claim_batch(session, now=now, lease_s=self._lease_s)

    async def _run(self, held: "_HeldBatch") -> None:
        ending = BatchStatus.COMPLETED
        try:
            if held.batch.status is BatchStatus.VALIDATING:
                await in_thread(held.validate)
            await in_thread(held.look)
            if held.batch.status is BatchStatus.IN_PROGRESS:
                await self._answer(held)
        except _Stopped as stopped:
            ending = stopped.status
        except _Failed as failed:
            await in_thread(held.fail, failed.errors)
            return
        await in_thread(held.finish, ending)

    async def _answer(self, held: "_HeldBatch") -> None:
        """All lines that have no answer yet. Raises _Stopped, _Failed, LeaseLost."""
        lines, reading = await in_thread(held.unanswered), asyncio.Lock()

        async def work() -> None:
            while True:
                async with reading:
                    line = await in_thread(next, lines, None)
                if line is None:
                    return
                await self._keep(held, _result(line, await self._ask(held, line)))

        async with together() as tasks:
            watching = tasks.create_task(self._watch(held))
            await asyncio.gather(*(tasks.create_task(work()) for _ in range(LINES_AT_ONCE)))
            watching.cancel()

    async def _watch(self, held: "_HeldBatch") -> None:
        while True:
            await asyncio.sleep(min(LOOK_S, self._lease_s / 3))
            with suppress(OperationalError):
                await in_thread(held.look)

    async def _keep(self, held: "_HeldBatch", result: LineResult) -> None:
        while True:
            try:
                await in_thread(held.keep, result)
            except OperationalError:
                await asyncio.sleep(LOOK_S)
            else:
                return

    async def _ask(self, held: "_HeldBatch", line: InputLine) -> InsideReply:
        """Waits while models are away, or while too much else is to be done."""
        body = orjson.dumps({**line.body, "service_tier": SERVICE_TIER})
        while True:
            reply = await ask_inside(self._app, held.batch.endpoint, body, key_id=held.batch.key_id)
            if reply.status == 401:
                raise _Failed(LineWrong("key_revoked", "The key that made the batch was revoked.", line=None))
            if reply.status not in (429, 503):
                return reply
            pause_s = float(reply.headers.get("retry-after", LOOK_S))
            await asyncio.sleep(min(pause_s, LONGEST_PAUSE_S))


class _HeldBatch:
    """A batch under this process's lease. Its methods block, and raise LeaseLost."""

    def __init__(
        self, database: Database, blobs: BlobStore, batch: Batch, *, clock: Clock, lease_s: float
    ) -> None:
        self.batch = batch
        """As it was when it was last written."""
        assert batch.lease is not None
        self._lease = batch.lease
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._lease_s = lease_s
        self._scope = within(batch.tenant_id, batch.key_id)

    def validate(self) -> None:
        """Raises _Failed."""
        with self._reading() as content:
            found = survey(content, endpoint=self.batch.endpoint)
        if found.errors:
            raise _Failed(*found.errors)
        with self._writing() as (_, batch, now):
            batch.total, batch.model = found.total, found.model
            if batch.status is BatchStatus.VALIDATING:
                request_batches.reach(batch, BatchStatus.IN_PROGRESS, now=now)

    def look(self) -> None:
        """Keeps the lease. Raises _Stopped when the batch was cancelled, or its time is over."""
        with self._writing() as (_, batch, now):
            batch.due_at = now + self._lease_s
        if self.batch.status is BatchStatus.CANCELLING:
            raise _Stopped(BatchStatus.CANCELLED)
        if self.batch.status is BatchStatus.IN_PROGRESS and now >= self.batch.expires_at:
            raise _Stopped(BatchStatus.EXPIRED)

    def unanswered(self) -> Iterator[InputLine]:
        """Raises _Failed."""
        with self._database.read() as session:
            answered = request_batches.answered_lines(session, self.batch.id)
        with self._reading() as content:
            for line in read_lines(content, endpoint=self.batch.endpoint):
                if line.number not in answered:
                    yield line

    def keep(self, result: LineResult) -> None:
        with self._writing() as (session, batch, _):
            request_batches.add_result(session, batch, result)

    def fail(self, errors: Sequence[LineWrong]) -> None:
        with self._writing() as (session, batch, now):
            request_batches.delete_results(session, batch.id)
            request_batches.fail_batch(batch, [each.told() for each in errors], now=now)

    def finish(self, ending: BatchStatus) -> None:
        """Writes the files; they, the batch's end and the loss of its lines are one transaction."""
        with self._writing() as (_, batch, now):
            batch.due_at = now + FINISH_LEASE_S
            if ending is BatchStatus.COMPLETED:
                request_batches.reach(batch, BatchStatus.FINALIZING, now=now)
        with (
            self._blobs.receive(limit_bytes=NO_LIMIT) as output,
            self._blobs.receive(limit_bytes=NO_LIMIT) as errors,
        ):
            answered = self._write_results(output, errors)
            if ending is BatchStatus.EXPIRED:
                self._write_expired(errors, answered)
            with self._writing() as (session, batch, now):
                batch.output_file_id = self._keep_file(session, batch, output, "output", now)
                batch.error_file_id = self._keep_file(session, batch, errors, "error", now)
                request_batches.delete_results(session, batch.id)
                request_batches.reach(batch, ending, now=now)
        log.info("batch_ended", extra={"batch": batch.id, "status": ending.value})

    def _write_results(self, output: Receiver, errors: Receiver) -> set[int]:
        """Returns the numbers of the lines that were answered."""
        answered: set[int] = set()
        last = 0
        while True:
            with self._database.read() as session:
                results = request_batches.results_after(session, self.batch.id, last, limit=READ_AT_ONCE)
            for result in results:
                (output if result.is_ok else errors).write(f"{result.told}\n".encode())
                answered.add(result.number)
                last = result.number
            if not results:
                return answered

    def _write_expired(self, errors: Receiver, answered: Collection[int]) -> None:
        with suppress(_Failed), self._reading() as content:
            for line in read_lines(content, endpoint=self.batch.endpoint):
                if line.number not in answered:
                    errors.write(f"{_told(line, None, error=EXPIRED)}\n".encode())

    def _keep_file(
        self, session: Session, batch: Batch, receiver: Receiver, kind: str, now: float
    ) -> str | None:
        received = receiver.finish()
        if received.size_bytes == 0:
            return None
        new = NewFile(
            filename=f"{batch.id}_{kind}.jsonl",
            purpose=OUTPUT_PURPOSE,
            media_type=detect(received, f"{kind}.jsonl"),
            blob=self._blobs.row(session, batch.tenant_id, received),
        )
        file, is_new_blob = catalog.add_file(session, self._scope, new, now=now)
        if batch.output_life_s is not None:
            file.expires_at = now + batch.output_life_s
        if is_new_blob:
            self._blobs.keep(received)
        return file.id

    @contextmanager
    def _reading(self) -> Iterator[BlobContent]:
        """The input file. Raises _Failed, also while it is read."""
        try:
            yield self._input()
        except Damaged as damaged:
            self._input()  # Says so if it was deleted meanwhile.
            raise _Failed(LineWrong("input_file_damaged", str(damaged), line=None)) from damaged

    def _input(self) -> BlobContent:
        """Raises _Failed, Damaged."""
        try:
            with self._database.read() as session:
                file = catalog.get_file(session, self._scope, self.batch.input_file_id)
                return self._blobs.content(session, session.get_one(Blob, file.blob_id))
        except FileMissing as missing:
            raise _Failed(LineWrong("input_file_deleted", str(missing), line=None)) from missing

    @contextmanager
    def _writing(self) -> Iterator[tuple[Session, Batch, float]]:
        with self._database.write() as session:
            batch = request_batches.held_batch(session, self.batch.id, self._lease)
            yield session, batch, self._clock()
        self.batch = batch


EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}


def _result(line: InputLine, reply: InsideReply) -> LineResult:
    body = orjson.loads(reply.body)
    request_id = reply.headers.get("x-request-id") or new_id("req_")
    response = {"status_code": reply.status, "request_id": request_id, "body": body}
    is_ok = reply.status == 200
    return LineResult(
        number=line.number,
        is_ok=is_ok,
        told=_told(line, response, error=None),
        usage=_usage(body.get("usage") or {}) if is_ok else {},
    )


def _told(line: InputLine, response: Json | None, *, error: Json | None) -> str:
    """A line of the output or error file."""
    told = {"id": new_id("batch_req_"), "custom_id": line.custom_id, "response": response, "error": error}
    return orjson.dumps(told).decode()


def _usage(told: Mapping[str, Any]) -> dict[str, int]:
    """Of a reply, in the words of Responses, whatever its route's own are."""
    read = told.get("prompt_tokens", told.get("input_tokens")) or 0
    written = told.get("completion_tokens", told.get("output_tokens")) or 0
    read_details = told.get("prompt_tokens_details") or told.get("input_tokens_details") or {}
    written_details = told.get("completion_tokens_details") or told.get("output_tokens_details") or {}
    return {
        "input_tokens": read,
        "cached_tokens": read_details.get("cached_tokens") or 0,
        "output_tokens": written,
        "reasoning_tokens": written_details.get("reasoning_tokens") or 0,
    }
