"""The worker: claims jobs, runs several at once, decides what is tried again, and says that it is alive."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace

from sqlalchemy import delete
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from ingest import jobs
from ingest.elements import ParseFailed
from ingest.jobs import ClaimedJob, JobProgress, LeaseLost
from ingest.parsed_files import ParsedElsewhere
from ingest.pipeline import Outcome, ParsersTaken, Pipeline, WrongModel
from ingest.rebuilds import tend
from retrieval.beats import BEAT_S
from retrieval.database import Database
from retrieval.segments import Damaged
from retrieval.tables import WorkerBeat
from retrieval.together import in_thread
from retrieval.wakes import LOOK_S, Listener, Topic
from serving.protocols import ModelUnavailable, ModelUnknown, Overloaded, TextRefused
from serving.request_ids import REQUEST_ID
from serving.tracing import continuing, span

log = logging.getLogger("strongroom.worker")

IDLE_LOOK_S = 0.1
"""Where nothing wakes the worker, a job that arrives while all is quiet waits this long at most."""
FREE_SHARE = 0.25
"""Of the places: so many are filled at once where jobs end fast."""
WATCH_S = 1.0
"""So soon is noticed that a document was deleted or cancelled, and so often is progress told."""
LOOK_AGAIN_S = 1.0
TEND_S = 1.0
"""So soon a rebuild that is complete answers, and not more often is looked whether one is."""
MAX_ATTEMPTS = 5
FORGET_BEATS_AFTER_S = 3600.0


@dataclass(frozen=True)
class Permanent:
    """Trying again would end the same way."""

    code: str
    message: str


@dataclass(frozen=True)
class Retry:
    """Something broke that may work next time: counted, so that a document which kills parsers ends."""

    message: str
    code: str = "server_error"
    """Told once the tries are used up."""


@dataclass(frozen=True)
class Wait:
    """A role that the job needs is away: the document is not to blame, so nothing is counted."""

    delay_s: float


def verdict(error: Exception) -> Permanent | Retry | Wait:
    """The one place that decides what a failed job means."""
    match error:
        case ParseFailed(transient=False):
            return Permanent(code=error.code.value, message=str(error))
        case Damaged():
            return Permanent(code="stored_bytes_damaged", message=str(error))
        case TextRefused():
            return Permanent(code="unreadable_text", message=str(error))
        case WrongModel():
            return Permanent(code="embedding_model_changed", message=str(error))
        case ModelUnknown():
            # A models server that starts again with new settings may be a moment behind. Then it is the owner's
            # to say: the file is kept, and once the model is back it can be added again.
            return Retry(
                code="embedding_model_removed",
                message=f"{error} Add it to models.embedding again, or add the file to a new vector store.",
            )
        case ModelUnavailable() | ParsedElsewhere() | ParsersTaken():
            return Wait(delay_s=LOOK_AGAIN_S)
        case Overloaded():
            return Wait(delay_s=error.retry_after_s)
        case OperationalError():
            return Wait(delay_s=2.0)
        case ParseFailed():
            return Retry(message=str(error))
        case _:
            return Retry(message=f"Internal error ({type(error).__name__}); the worker's log has more.")


def backoff_s(attempt: int) -> float:
    """1, 4, 16, 64 s."""
    return float(4**attempt)


class Worker:
    """Runs until cancelled; then gives its unfinished jobs back."""

    def __init__(
        self,
        database: Database,
        pipeline: Pipeline,
        *,
        concurrency: int,
        lease_s: float,
        isolated: bool,
        listener: Listener | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Without a listener it looks for jobs often."""
        listener = listener or Listener()
        self._queued = listener.waiter(Topic.JOBS)
        self._changed = listener.waiter(Topic.INDEXES)
        self._database = database
        self._pipeline = pipeline
        self._concurrency = concurrency
        self._lease_s = lease_s
        self._isolated = isolated
        self._clock = clock
        self._id = secrets.token_hex(8)
        self._running: dict[asyncio.Task[None], ClaimedJob] = {}
        self._progress: dict[str, JobProgress] = {}
        """By the lease of the running job."""
        self._last_tenant = ""
        self._next_due_at = 0.0
        """Of the jobs that were not due at the last look."""

    async def run(self) -> None:
        beside = [asyncio.create_task(each) for each in (self._beat(), self._watch(), self._tend())]
        try:
            while True:
                await self._fill()
                if len(self._running) >= self._concurrency:
                    await self._some_done()
                else:
                    await self._queued.wait(blind_s=IDLE_LOOK_S, look_s=self._until_due_s())
        finally:
            for each in beside:
                each.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self._stop()

    async def drain(self) -> None:
        """Works until no job is due: lets a test go step by step."""
        while True:
            await self._fill()
            if not self._running:
                if await in_thread(tend, self._database, now=self._clock()):
                    continue
                return
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)

    async def _fill(self) -> None:
        while (free := self._concurrency - len(self._running)) > 0:
            try:
                claimed = await in_thread(self._claim, free)
            except OperationalError:
                log.warning("database_unavailable")
                await asyncio.sleep(1.0)
                return
            for job in claimed:
                task = asyncio.create_task(self._work(job))
                self._running[task] = job
                task.add_done_callback(self._running.pop)
            if len(claimed) < free:
                return

    async def _some_done(self) -> None:
        """Until there is room for several jobs, if they end fast: to claim ten takes little longer than one."""
        await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        while len(self._running) > self._concurrency * (1 - FREE_SHARE):
            done, _ = await asyncio.wait(
                self._running, timeout=IDLE_LOOK_S, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                return

    def _claim(self, most: int) -> list[ClaimedJob]:
        if not self._database.reserve.hold():
            return []
        with self._database.read() as session:
            if not jobs.any_due(session, now=self._clock()):
                self._next_due_at = jobs.next_due_at(session)
                return []
        with self._database.write() as session:
            claimed = jobs.claim(
                session,
                now=self._clock(),
                lease_s=self._lease_s,
                most=most,
                after_tenant=self._last_tenant,
            )
        if claimed:
            self._last_tenant = claimed[-1].tenant_id
        return claimed

    def _until_due_s(self) -> float:
        return min(max(self._next_due_at - self._clock(), IDLE_LOOK_S), LOOK_S)

    async def _work(self, job: ClaimedJob) -> None:
        started = time.monotonic()
        REQUEST_ID.set(job.request_id)
        progress = self._progress[job.lease] = JobProgress()
        try:
            with (
                continuing(job.trace),
                span("ingest document", document=job.document_id, attempt=job.attempt),
            ):
                outcome = await self._pipeline.run(job, progress)
        except LeaseLost:
            log.info("job_dropped", extra={"document": job.document_id})
        except Exception as error:  # noqa: BLE001
            # The loop's edge: whatever a document does, the worker goes on and the document's fate is written down.
            await self._settle(job, error)
        else:
            if outcome is Outcome.DONE:
                log.info(
                    "document_completed",
                    extra={"document": job.document_id, "seconds": round(time.monotonic() - started, 3)},
                )
            else:
                await in_thread(self._put_off, job, outcome)
        finally:
            del self._progress[job.lease]

    def _put_off(self, job: ClaimedJob, outcome: Outcome) -> None:
        """Its lease ends by itself if the database is away."""
        waits = outcome is Outcome.AWAITS_OTHERS
        with suppress(OperationalError), self._database.write() as session:
            if waits:
                jobs.tell(session, job, JobProgress(step="waiting", unit="files"))
            due_at = self._clock() + (LOOK_AGAIN_S if waits else 0)
            jobs.give_back(session, job, due_at=due_at, attempt=job.attempt)

    async def _settle(self, job: ClaimedJob, error: Exception) -> None:
        decided = verdict(error)
        if isinstance(decided, Retry):
            log.error("job_error", exc_info=error, extra={"document": job.document_id})
            if job.attempt + 1 >= MAX_ATTEMPTS:
                gave_up = f"Gave up after {MAX_ATTEMPTS} tries: {decided.message}"
                decided = Permanent(code=decided.code, message=gave_up)
        try:
            await in_thread(self._write_verdict, job, decided)
        except (LeaseLost, OperationalError):
            # Deleted meanwhile, or the database is away: the lease ends by itself and the job is claimed again.
            log.info("job_dropped", extra={"document": job.document_id})

    def _write_verdict(self, job: ClaimedJob, decided: Permanent | Retry | Wait) -> None:
        now = self._clock()
        with self._database.write() as session:
            match decided:
                case Permanent(code, message):
                    jobs.fail(session, job, code=code, message=message)
                    log.info("document_failed", extra={"document": job.document_id, "code": code})
                case Retry():
                    due_at = now + backoff_s(job.attempt)
                    jobs.give_back(session, job, due_at=due_at, attempt=job.attempt + 1)
                case Wait(delay_s):
                    jobs.give_back(session, job, due_at=now + delay_s, attempt=job.attempt)

    async def _watch(self) -> None:
        """Stops jobs that were taken away, and tells how far the others are."""
        told: dict[str, JobProgress] = {}
        seen: Set[str] = frozenset()
        """What ran a look ago already: of what ends sooner nobody needs to know how far it is."""
        while True:
            await asyncio.sleep(WATCH_S)
            running = {job.lease: (task, job) for task, job in self._running.items()}
            if not running:
                continue
            news = {
                lease: replace(progress)
                for lease, progress in self._progress.items()
                if lease in seen and progress != told.get(lease)
            }
            seen = set(running)
            try:
                held = await in_thread(self._tell, [job for _, job in running.values()], news)
            except SQLAlchemyError as error:
                log.warning("watch_failed", exc_info=error)
                continue
            told = {lease: progress for lease, progress in (told | news).items() if lease in running}
            for lease, (task, _) in running.items():
                if lease not in held:
                    task.cancel()

    def _tell(self, running: Sequence[ClaimedJob], news: Mapping[str, JobProgress]) -> Set[str]:
        """Writes the news, and returns the leases that are still held."""
        if news:
            with self._database.write() as session:
                for job in running:
                    if job.lease in news:
                        jobs.tell(session, job, news[job.lease])
        with self._database.read() as session:
            return jobs.held(session, [job.lease for job in running])

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(TEND_S)
            await self._changed.wait(blind_s=0)
            try:
                await in_thread(tend, self._database, now=self._clock())
            except SQLAlchemyError as error:
                log.warning("tend_failed", exc_info=error)

    async def _beat(self) -> None:
        """Renews the leases of running jobs and this worker's own sign of life."""
        while True:
            try:
                await in_thread(self._write_beat)
            except SQLAlchemyError as error:
                # Whatever the database says, the next beat may get through; without beats our leases end.
                log.warning("beat_failed", exc_info=error)
            await asyncio.sleep(min(BEAT_S, self._lease_s / 3))

    def _write_beat(self) -> None:
        now = self._clock()
        leases = [job.lease for job in list(self._running.values())]
        with self._database.write() as session:
            session.merge(WorkerBeat(id=self._id, seen_at=now, isolated=self._isolated))
            session.execute(delete(WorkerBeat).where(WorkerBeat.seen_at < now - FORGET_BEATS_AFTER_S))
            if leases:
                jobs.renew(session, leases, now=now, lease_s=self._lease_s)

    async def _stop(self) -> None:
        unfinished = dict(self._running)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        with suppress(OperationalError):
            await in_thread(self._write_farewell, [job.lease for job in unfinished.values()])

    def _write_farewell(self, leases: list[str]) -> None:
        with self._database.write() as session:
            session.execute(delete(WorkerBeat).where(WorkerBeat.id == self._id))
            jobs.give_back_all(session, leases, now=self._clock())
