"""Sweeps run when they are due or asked for, once each, whatever clocks, sources and processes do."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import sqlcipher3.dbapi2 as sqlite
from sqlalchemy import func, select, update

from ingest.leadership import Election
from ingest.schedules import Schedules
from ingest.sources import registry
from ingest.sources.registry import KEEP_SWEEPS
from ingest.upkeep import DISTRUST_S, SteadyClock, Upkeep
from retrieval.database import Database
from retrieval.responses import add_response
from retrieval.scope import Scope
from retrieval.tables import (
    AuditEntry,
    AuditEvent,
    Collection,
    Document,
    File,
    Item,
    Leadership,
    ResponseStatus,
    Source,
    StoredCompletion,
    StoredResponse,
    Sweep,
)
from tests.ingest.sources.watched import Watched
from tests.ingest.stack import SEALER, Clock

pytestmark = pytest.mark.slow

TAKE_OVER_S = 15.0


class Led:
    """A watched folder and the one process that runs its schedules, step by step."""

    def __init__(self, database: Database, scope: Scope, folder: Path) -> None:
        self.watched = Watched(database, scope, folder)
        self.database = database
        self.scope = scope
        self.source_id = self.watched.source_id
        self.clock = Clock(now=1e11)
        self.cache = folder / "cache"
        self.election = Election(database, "schedules", clock=self.clock)
        self.schedules = self.new_schedules(self.election)
        self.set(every_s=300.0)

    def new_schedules(self, election: Election) -> Schedules:
        return Schedules(
            self.database,
            self.watched.stack.blobs,
            SEALER,
            cache=self.cache,
            election=election,
            clock=self.clock,
        )

    def set(self, **values: object) -> None:
        with self.database.write() as session:
            session.execute(update(Source).where(Source.id == self.source_id).values(**values))

    async def tick(self) -> None:
        self.election.beat()
        await self.schedules.tick()
        await self.schedules.settle()
        # The next one sees that the sweep has ended.
        await self.schedules.tick()

    @property
    def source(self) -> Source:
        with self.database.read() as session:
            return registry.get_source(session, self.scope, self.source_id)

    @property
    def sweeps(self) -> list[Sweep]:
        """The oldest first."""
        with self.database.read() as session:
            return registry.last_sweeps(session, self.source_id)[::-1]

    def ask(self, *, is_dry: bool = False, may_empty: bool = False) -> int:
        with self.database.write() as session:
            return registry.ask_sweep(
                session,
                self.scope,
                self.source_id,
                is_dry=is_dry,
                may_empty=may_empty,
                now=self.clock(),
            ).id


@pytest.fixture
def led(database: Database, scope: Scope, tmp_path: Path) -> Led:
    return Led(database, scope, tmp_path)


async def test_a_source_is_swept_at_once_and_then_every_so_long(led: Led) -> None:
    led.watched.write("a.txt", "The vault opens at nine.")
    await led.tick()
    assert [sweep.counts["added"] for sweep in led.sweeps] == [1]
    led.clock.now += 299
    await led.tick()
    assert len(led.sweeps) == 1
    led.clock.now += 1
    await led.tick()
    assert [sweep.counts["unchanged"] for sweep in led.sweeps] == [0, 1]


async def test_a_machine_that_slept_for_days_sweeps_once(led: Led) -> None:
    await led.tick()
    led.clock.now += 3 * 86_400
    for _ in range(5):
        await led.tick()
    assert len(led.sweeps) == 2
    assert led.source.due_at == led.clock.now + 300


@pytest.mark.parametrize("jump_s", [-3600.0, -86_400.0])
async def test_a_clock_that_is_set_back_delays_nothing(led: Led, jump_s: float) -> None:
    await led.tick()
    led.clock.now += jump_s
    await led.tick()
    assert len(led.sweeps) == 1
    led.clock.now += 300
    await led.tick()
    assert len(led.sweeps) == 2


async def test_a_cron_schedule_is_kept(led: Led) -> None:
    led.set(every_s=None, cron="0 3 * * *")
    await led.tick()
    due_at = led.source.due_at
    assert due_at is not None
    assert (due_at % 86_400, 0 < due_at - led.clock.now <= 86_400) == (3 * 3600, True)
    led.clock.now = due_at
    await led.tick()
    assert [sweep.due_at for sweep in led.sweeps][1:] == [due_at]


async def test_a_paused_source_is_swept_only_when_asked(led: Led) -> None:
    led.set(is_paused=True)
    await led.tick()
    assert led.sweeps == []
    led.ask()
    await led.tick()
    assert len(led.sweeps) == 1


async def test_a_dry_run_reports_and_leaves_the_schedule_alone(led: Led) -> None:
    await led.tick()
    due_at = led.source.due_at
    led.watched.write("a.txt", "The vault opens at nine.")
    assert led.ask(is_dry=True) == led.ask(is_dry=True)
    await led.tick()
    assert (led.sweeps[-1].is_dry, led.sweeps[-1].counts["added"]) == (True, 1)
    assert led.source.due_at == due_at
    assert led.watched.entries() == []


async def test_a_failing_source_backs_off_says_so_and_recovers(led: Led) -> None:
    led.set(every_s=30.0)
    led.watched.root.rename(led.watched.root.with_name("away"))
    waits = []
    for _ in range(8):
        await led.tick()
        due_at = led.source.due_at
        assert due_at is not None
        waits.append(due_at - led.clock.now)
        led.clock.now = due_at
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert "cannot be opened" in (led.sweeps[-1].error or "")
    led.watched.root.with_name("away").rename(led.watched.root)
    await led.tick()
    assert (led.sweeps[-1].error, led.source.failures) == (None, 0)
    assert led.source.due_at == led.clock.now + 30


async def test_credentials_that_cannot_be_opened_are_told_as_such(led: Led) -> None:
    led.set(options=b"sealed under another secret")
    await led.tick()
    assert "keys of another data folder" in (led.sweeps[-1].error or "")


async def test_a_sweep_that_died_with_its_leader_is_run_again(led: Led) -> None:
    led.watched.write("a.txt", "The vault opens at nine.")
    with led.database.write() as session:
        session.add(Sweep(source_id=led.source_id, due_at=5.0, started_at=5.0, counts={}))
    led.set(due_at=led.clock.now + 300)
    await led.tick()
    await led.tick()
    died, again = led.sweeps
    assert "stopped" in (died.error or "")
    assert again.counts["added"] == 1


async def test_only_the_last_sweeps_are_kept(led: Led) -> None:
    with led.database.write() as session:
        session.add_all(
            Sweep(source_id=led.source_id, due_at=n + 2.0, started_at=n, ended_at=n, counts={})
            for n in range(KEEP_SWEEPS + 20)
        )
    await led.tick()
    assert len(led.sweeps) == KEEP_SWEEPS
    with led.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Sweep)) == KEEP_SWEEPS


async def test_a_due_time_that_had_its_sweep_has_no_second_one(led: Led) -> None:
    await led.tick()
    led.set(due_at=led.sweeps[0].due_at)
    await led.tick()
    assert len(led.sweeps) == 1
    assert led.source.due_at == led.clock.now + 300


async def test_who_does_not_lead_sweeps_nothing(led: Led) -> None:
    Election(led.database, "schedules").beat()
    await led.tick()
    assert led.sweeps == []


# Running by itself


@asynccontextmanager
async def running(schedules: Schedules) -> AsyncIterator[None]:
    task = asyncio.create_task(schedules.run())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until(seconds: float, reached: object) -> None:
    assert callable(reached)
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(reached):
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.05)


async def test_a_change_in_a_watched_folder_is_taken_within_seconds_once_it_is_whole(led: Led) -> None:
    led.set(every_s=None, is_watched=True)
    led.clock.now = time.time()
    schedules = Schedules(led.database, led.watched.stack.blobs, SEALER, cache=led.cache)
    async with running(schedules):
        await until(20, lambda: any(sweep.ended_at for sweep in led.sweeps))
        path = led.watched.root / "new" / "a.txt"
        path.parent.mkdir()
        with path.open("w") as slowly:
            for number in range(20):
                slowly.write(f"The vault opens at nine on day {number}.\n\n")
                slowly.flush()
                await asyncio.sleep(0.1)
        written = path.read_bytes()
        await until(20, lambda: led.watched.entries() == ["new/a.txt"])
        path.rename(led.watched.root / "b.txt")
        await until(20, lambda: led.watched.entries() == ["b.txt"])
    with led.database.read() as session:
        file = session.scalars(select(File)).one()
    assert (file.path, file.size_bytes) == ("b.txt", len(written))


async def test_who_stops_steps_down_so_that_another_leads_at_once(led: Led) -> None:
    first = Election(led.database, "schedules")
    async with running(led.new_schedules(first)):
        await until(10, lambda: first.fence is not None)
    second = Election(led.database, "schedules")
    second.beat()
    assert second.fence == 2


# Upkeep


def keep_up(led: Led, now: float, *, keep_answers_s: float | None = None) -> None:
    upkeep = Upkeep(led.database, led.watched.stack.blobs, keep_answers_s=keep_answers_s)
    upkeep.run(now=now, check=lambda _: None, stopping=Event())


async def test_expired_files_go_with_their_documents_and_bytes(led: Led) -> None:
    stack = led.watched.stack
    kept, expired = stack.add("The vault opens at nine."), stack.add("The key hangs in the hall.")
    with led.database.write() as session:
        session.execute(update(File).where(File.id == expired.file_id).values(expires_at=500.0))
        session.execute(update(File).where(File.id == kept.file_id).values(expires_at=501.0))
    keep_up(led, now=500.0)
    with led.database.read() as session:
        assert list(session.scalars(select(File.id))) == [kept.file_id]
        assert list(session.scalars(select(Document.file_id))) == [kept.file_id]
    assert led.watched.blob_count() == 1


async def test_expired_collections_go_and_their_files_stay(led: Led) -> None:
    led.watched.stack.add("The vault opens at nine.")
    with led.database.write() as session:
        session.execute(update(Collection).values(expires_after_days=1, last_active_at=1_000.0))
    keep_up(led, now=1_000.0 + 86_399)
    with led.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Collection)) == 1
    keep_up(led, now=1_000.0 + 86_400)
    with led.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Collection)) == 0
        assert session.scalar(select(func.count()).select_from(File)) == 1


async def test_stored_answers_expire_but_for_those_that_younger_ones_go_on_from(led: Led) -> None:
    tenant_id = led.watched.stack.scope.tenant_id

    def response(response_id: str, created_at: float, *, after: str | None = None, **more: Any) -> None:
        row = StoredResponse(
            id=response_id,
            tenant_id=tenant_id,
            key_id="key_1",
            status=ResponseStatus.COMPLETED,
            previous_id=after,
            conversation_id=None,
            is_background=False,
            content={},
            request=None,
            created_at=created_at,
            **more,
        )
        add_response(session, row, asked=[{"id": f"msg_{response_id}", "type": "message"}])

    with led.database.write() as session:
        response("resp_begun", 1.0)
        response("resp_going_on", 2.0, after="resp_begun")
        response("resp_young", 1_000.0, after="resp_going_on")
        response("resp_chain", 3.0)
        response("resp_chain_end", 4.0, after="resp_chain")
        response("resp_queued", 5.0, due_at=6.0)
        for number, created_at in enumerate((1.0, 1_000.0)):
            session.add(
                StoredCompletion(
                    id=f"chatcmpl-{number}",
                    tenant_id=tenant_id,
                    key_id="key_1",
                    model="m",
                    attributes={},
                    messages="[]",
                    completion="{}",
                    created_at=created_at,
                )
            )

    def left() -> list[str]:
        with led.database.read() as session:
            found = [
                *session.scalars(select(StoredResponse.id)),
                *session.scalars(select(StoredCompletion.id)),
            ]
            return sorted(found)

    keep_up(led, now=1_100.0)
    assert len(left()) == 8
    keep_up(led, now=1_100.0, keep_answers_s=200.0)
    kept = ["chatcmpl-1", "resp_begun", "resp_going_on", "resp_queued", "resp_young"]
    assert left() == kept
    with led.database.read() as session:
        assert len(session.scalars(select(Item.id)).all()) == 4
        entered = session.execute(select(AuditEntry.event, AuditEntry.key_id, AuditEntry.objects)).all()
    deleted = {(event, key_id) for event, key_id, objects in entered if "resp_chain" in objects}
    assert deleted == {(AuditEvent.RESPONSE_DELETED, "upkeep")}
    assert AuditEvent.COMPLETION_DELETED in [event for event, *_ in entered]
    keep_up(led, now=2_000.0, keep_answers_s=200.0)
    assert left() == ["resp_queued"]


def test_after_a_clock_was_set_nothing_expires_until_it_has_gone_steadily_for_a_while() -> None:
    wall, monotonic = Clock(), Clock()
    steady = SteadyClock(wall, monotonic)
    for _ in range(10):
        wall.now += 30
        monotonic.now += 30
        steady.look()
        assert steady.is_steady
    wall.now += 86_400
    steady.look()
    assert not steady.is_steady
    while monotonic.now < 1_300 + DISTRUST_S:
        wall.now += 30
        monotonic.now += 30
        steady.look()
    assert not steady.is_steady
    monotonic.now += 1
    assert steady.is_steady


# Several processes


@contextmanager
def started(count: int, url: str, folder: Path) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Processes that run schedules, by the name that each has in the election."""
    command = [sys.executable, "-m", "tests.ingest.scheduling_process", url, str(folder)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        yield {
            json.loads(process.stdout.readline())["holder"]: process
            for process in processes
            if process.stdout
        }
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def suspend(pid: int, database_url: str) -> None:
    """Not in a transaction where that would stop everybody: SQLite's one write lock is never taken from its holder."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        if not database_url.startswith("sqlite") or not is_locked(database_url):
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)


def is_locked(database_url: str) -> bool:
    connection = sqlite.connect(database_url.removeprefix("sqlite:///"), timeout=0.5, isolation_level=None)
    try:
        connection.execute("begin immediate")
    except sqlite.OperationalError:
        return True
    finally:
        connection.close()
    return False


@pytest.mark.processes
@pytest.mark.timeout(300)
async def test_four_schedulers_of_which_the_leader_is_suspended_have_one_effect_for_each_run(
    led: Led, database_url: str, tmp_path: Path
) -> None:
    led.set(every_s=1.0, due_at=time.time())

    def leader() -> str:
        with led.database.read() as session:
            return session.scalar(select(Leadership.holder)) or ""

    def ended() -> int:
        return sum(1 for sweep in led.sweeps if sweep.ended_at is not None)

    with started(4, database_url, tmp_path) as processes:
        await until(30, lambda: ended() >= 3)
        first = leader()
        # It is stopped in the middle of a sweep: files are there for seconds of work.
        for number in range(400):
            led.watched.write(f"{number}.txt", f"The vault opens at nine on day {number}.")
        await until(20, lambda: len(led.watched.entries()) >= 5)
        suspend(processes[first].pid, database_url)
        stopped = time.monotonic()
        await until(TAKE_OVER_S, lambda: leader() not in ("", first))
        took_s = time.monotonic() - stopped
        before = ended()
        await until(40, lambda: len(led.watched.entries()) == 400 and ended() > before + 2)
        os.kill(processes[first].pid, signal.SIGCONT)
        before = ended()
        await until(30, lambda: ended() >= before + 4)
        assert leader() != first
    assert took_s <= TAKE_OVER_S
    with led.database.read() as session:
        paths = [str(path) for path in session.scalars(select(File.path))]
        documents = session.scalar(select(func.count()).select_from(Document))
    assert sorted(paths) == sorted(f"{number}.txt" for number in range(400))
    assert documents == 400
    added = sum(sweep.counts.get("added", 0) for sweep in led.sweeps)
    assert added <= 400
    # Never two at once, and never one that began before it was due.
    spans = sorted((sweep.started_at or 0, sweep.ended_at or 1e12, sweep.due_at) for sweep in led.sweeps)
    assert all(end <= start for (_, end, _), (start, _, _) in pairwise(spans))
    assert all(started_at >= due_at for started_at, _, due_at in spans)
    assert len({due_at for _, _, due_at in spans}) == len(spans)
