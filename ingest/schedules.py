"""Runs sweeps and upkeep in the one process that leads, on schedule and when somebody asks.

Ticks are counted by a clock that never jumps; only due times, in SQL, are wall-clock times. So a clock that is set
forward makes each source due once, and one that is set back delays nothing by more than its usual wait. (APScheduler
gives the cron arithmetic only: its own timers would sleep through the hour that a clock was set back by.)
"""

import asyncio
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Thread

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from ingest import jobs
from ingest.leadership import Deposed, Election
from ingest.sealing import SealBroken, Sealer
from ingest.sources import runs
from ingest.sources.addresses import Address, open_source
from ingest.sources.entries import SourceRefused, SourceUnavailable
from ingest.sources.runs import BegunSweep
from ingest.sources.sweep import Report, Sweep, SweepStopped
from ingest.sources.watch import Watches
from ingest.upkeep import SteadyClock, Upkeep
from retrieval.blobs import BlobStore
from retrieval.catalog import NotFound
from retrieval.database import Database
from retrieval.tables import Source
from retrieval.together import in_thread

log = logging.getLogger("strongroom.schedules")

LEADERSHIP = "schedules"
TICK_S = 0.5
UPKEEP_EVERY_S = 30.0
SWEEPS_AT_ONCE = 2
"""Each mostly waits for its source; the documents it finds wait for the worker anyway."""
STOP_S = 5.0
"""A sweep that hangs in a network's silence is left behind after this; its fence does not count any more."""


@dataclass
class _Running:
    begun: BegunSweep
    thread: Thread
    stopping: Event


class Schedules:
    """Runs beside a worker's jobs until cancelled. Any number of processes may run it: one leads."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        sealer: Sealer,
        *,
        cache: Path,
        keep_answers_s: float | None = None,
        chore: Callable[[], None] | None = None,
        election: Election | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._sealer = sealer
        self._cache = cache
        self._chore = chore
        """What else the leader does now and then, such as a backup when one is due."""
        self._election = election or Election(database, LEADERSHIP, clock=clock)
        self._clock = SteadyClock(clock)
        self._wall = clock
        self._upkeep = Upkeep(database, blobs, keep_answers_s=keep_answers_s)
        self._watches = Watches(self._note_change)
        self._stopping = Event()
        self._sweeps: dict[str, _Running] = {}
        """By source: one at a time each."""

    async def run(self) -> None:
        electing = asyncio.create_task(self._election.run())
        upkeep = asyncio.create_task(self._keep_up())
        try:
            while True:
                try:
                    await self.tick()
                except (SQLAlchemyError, Deposed) as error:
                    # The database is away, or the lead went during the tick: the next one sees what is true then.
                    log.warning("tick_failed", exc_info=error)
                await asyncio.sleep(TICK_S)
        finally:
            self._stopping.set()
            upkeep.cancel()
            await self._watches.close()
            await self._stop_sweeps()
            # Last, so that nobody else begins what still runs here.
            electing.cancel()
            await asyncio.gather(electing, upkeep, return_exceptions=True)

    async def tick(self) -> None:
        """Begins what is due, if this process leads."""
        fence = self._election.fence
        self._sweeps = {key: each for key, each in self._sweeps.items() if each.thread.is_alive()}
        if fence is None:
            for each in self._sweeps.values():
                each.stopping.set()
            await self._watches.follow({})
            return
        now = self._clock.look()
        waiting = await in_thread(self._look, fence, now)
        for source_id in waiting:
            if len(self._sweeps) >= SWEEPS_AT_ONCE:
                break
            if source_id not in self._sweeps:
                begun = await in_thread(self._begin, fence, source_id, now)
                if begun is not None:
                    self._start(fence, begun)
        await self._watches.follow(await in_thread(self._watched))

    async def settle(self) -> None:
        """Returns when no sweep runs: lets a test go step by step."""
        for each in list(self._sweeps.values()):
            await asyncio.to_thread(each.thread.join)

    def _look(self, fence: int, now: float) -> list[str]:
        with self._database.read() as session:
            waiting = runs.waiting(session, now=now)
            tidy = runs.needs_tidying(session, but=self._running_ids(), now=now)
            tidy = tidy or jobs.wait_too_long(session, now=now)
        if tidy:
            with self._database.write() as session:
                self._election.check(session, fence)
                runs.abandon_unfinished(session, but=self._running_ids(), now=now)
                runs.pull_back(session, now=now)
                jobs.pull_back(session, now=now)
        return waiting

    def _running_ids(self) -> list[int]:
        return [each.begun.sweep_id for each in self._sweeps.values()]

    def _begin(self, fence: int, source_id: str, now: float) -> BegunSweep | None:
        with self._database.write() as session:
            self._election.check(session, fence)
            return runs.begin(session, source_id, now=now)

    def _start(self, fence: int, begun: BegunSweep) -> None:
        stopping = Event()
        # Of its own, not of the pool that the worker's SQL waits for; and a daemon, as a network may hang.
        thread = Thread(target=self._sweep, args=(fence, begun, stopping), name="sweep", daemon=True)
        self._sweeps[begun.source.source_id] = _Running(begun, thread, stopping)
        thread.start()

    def _sweep(self, fence: int, begun: BegunSweep, stopping: Event) -> None:
        """The thread's edge: whatever a source does, its fate is written down."""
        started = time.monotonic()
        check = partial(self._check, fence=fence)
        try:
            outcome: Report | str = self._swept(begun, stopping, check)
        except (SweepStopped, Deposed, NotFound):
            return  # The next leader sees an unfinished sweep, unless the source is gone.
        except (SourceUnavailable, SourceRefused, SealBroken) as error:
            outcome = str(error)
        except Exception as error:
            log.exception("sweep_error", extra={"source": begun.source.source_id})
            outcome = f"Internal error ({type(error).__name__}); the worker's log has more."
        log.info(
            "swept" if isinstance(outcome, Report) else "sweep_failed",
            extra={"source": begun.source.source_id, "seconds": round(time.monotonic() - started, 3)},
        )
        try:
            with self._database.write() as session:
                check(session)
                if isinstance(outcome, Report):
                    runs.finish(session, begun, outcome, now=self._wall())
                else:
                    runs.fail(session, begun, outcome, now=self._wall())
        except (SQLAlchemyError, Deposed) as error:
            log.warning("sweep_unfinished", exc_info=error, extra={"source": begun.source.source_id})

    def _swept(self, begun: BegunSweep, stopping: Event, check: Callable[[Session], None]) -> Report:
        source_id = begun.source.source_id
        options: dict[str, str] = {}
        if begun.options is not None:
            options = json.loads(self._sealer.open(begun.options, owner=source_id))
        files = open_source(Address(begun.url, options), cache=self._cache / source_id)
        try:
            sweep = Sweep(
                self._database,
                self._blobs,
                begun.source,
                files,
                check=check,
                stopping=stopping,
                clock=self._wall,
            )
            return sweep.run(is_dry=begun.is_dry, may_empty=begun.may_empty)
        finally:
            files.close()

    def _check(self, session: Session, *, fence: int) -> None:
        self._election.check(session, fence)

    async def _keep_up(self) -> None:
        while True:
            fence = self._election.fence
            # Also while another leads, to know whether this clock can be trusted once this one does.
            now = self._clock.look()
            if fence is not None:
                try:
                    await self._run_upkeep(fence, now)
                except (SQLAlchemyError, Deposed, OSError) as error:
                    log.warning("upkeep_failed", exc_info=error)
            await asyncio.sleep(UPKEEP_EVERY_S)

    async def _run_upkeep(self, fence: int, now: float) -> None:
        if self._clock.is_steady:
            check = partial(self._check, fence=fence)
            await in_thread(self._upkeep.run, now=now, check=check, stopping=self._stopping)
        await in_thread(self._clear_cache)
        if self._chore is not None:
            await in_thread(self._chore)

    def _clear_cache(self) -> None:
        """Clones of repositories whose sources are gone."""
        if not self._cache.is_dir():
            return
        names = {path.name for path in self._cache.iterdir()}
        with self._database.read() as session:
            names -= set(session.scalars(select(Source.id).where(Source.id.in_(names))))
        for name in names:
            shutil.rmtree(self._cache / name, ignore_errors=True)

    async def _note_change(self, source_id: str) -> None:
        fence = self._election.fence
        if fence is None:
            return

        def note() -> None:
            with self._database.write() as session:
                self._election.check(session, fence)
                runs.make_due(session, source_id, at=self._wall())

        await in_thread(note)

    def _watched(self) -> dict[str, Path]:
        with self._database.read() as session:
            rows = session.execute(
                select(Source.id, Source.url).where(Source.is_watched, Source.is_paused.is_(False))
            ).all()
        folders = ((source_id, Address(url, {}).folder) for source_id, url in rows)
        return {source_id: folder for source_id, folder in folders if folder is not None}

    async def _stop_sweeps(self) -> None:
        for each in self._sweeps.values():
            each.stopping.set()
        deadline = time.monotonic() + STOP_S
        for each in self._sweeps.values():
            await asyncio.to_thread(each.thread.join, max(0.0, deadline - time.monotonic()))
