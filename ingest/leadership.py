"""Elects one of several processes, through a row in SQL, and keeps what an earlier one still does from counting.

A leader changes its row with each beat. Who sees the row unchanged for a whole lease, by a clock of its own that
never jumps, takes it over and counts its fence up; no two machines' clocks are compared. A leader that was suspended
may still believe in itself, so each of its effects checks the fence in the transaction that makes it.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import case, select, text, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from retrieval.database import Database
from retrieval.tables import Leadership
from retrieval.together import in_thread

log = logging.getLogger("strongroom.leadership")

LEASE_S = 8.0
BEAT_S = 2.0
"""So another takes over 10 s at most after a leader's last beat."""
NOBODY = ""
SILENT_TRANSACTION_S = 4
"""Shorter than a lease: see `_free_when_suspended`."""


class Deposed(Exception):
    """Another process leads by now: nothing more may be done under this fence."""


@dataclass(frozen=True)
class _Seen:
    """The row as this process saw it first, and when."""

    holder: str
    fence: int
    until: float
    since: float


class Election:
    """One process's part in the election of `name`. `run` takes part until it is cancelled, then steps down."""

    def __init__(
        self,
        database: Database,
        name: str,
        *,
        lease_s: float = LEASE_S,
        beat_s: float = BEAT_S,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._name = name
        self._lease_s = lease_s
        self._beat_s = beat_s
        self._clock = clock
        self._monotonic = monotonic
        self._holder = secrets.token_hex(8)
        self._seen: _Seen | None = None
        self._fence: int | None = None
        self._beaten_at = 0.0

    @property
    def fence(self) -> int | None:
        """Of this process while it leads, as far as it knows; None otherwise."""
        return self._fence if self._monotonic() - self._beaten_at < self._lease_s else None

    async def run(self) -> None:
        try:
            while True:
                try:
                    await in_thread(self.beat)
                except SQLAlchemyError as error:
                    # The database is away for all: who led goes on to lead if it is back within the lease.
                    log.warning("election_failed", exc_info=error)
                await asyncio.sleep(self._beat_s)
        finally:
            with suppress(SQLAlchemyError):
                await in_thread(self.step_down)

    def beat(self) -> None:
        """Renews the lead, takes over a lead that ended, or looks on."""
        before = self._monotonic()
        with self._database.write() as session:
            _free_when_suspended(session)
            fence = self._renewed(session) if self._fence is not None else None
            if fence is None:
                fence = self._taken(session)
        if fence is not None and fence != self._fence:
            log.info("leading", extra={"leadership": self._name, "fence": fence})
        if fence is None and self._fence is not None:
            log.warning("deposed", extra={"leadership": self._name, "fence": self._fence})
        self._fence = fence
        # From before the transaction: it may have waited for locks, while others already counted.
        self._beaten_at = before

    def check(self, session: Session, fence: int) -> None:
        """For the transaction of each effect. Raises Deposed; else nobody takes over before that transaction ends."""
        _free_when_suspended(session)
        now = session.scalar(
            select(Leadership.fence).where(Leadership.name == self._name).with_for_update(read=True)
        )
        if now != fence:
            raise Deposed(f"Another process leads {self._name}.")

    def step_down(self) -> None:
        """Lets another take over at once."""
        if self._fence is None:
            return
        with self._database.write() as session:
            session.execute(
                update(Leadership)
                .where(Leadership.name == self._name, Leadership.fence == self._fence)
                .values(holder=NOBODY)
            )
        self._fence = None

    def _renewed(self, session: Session) -> int | None:
        """Leads on, unless another took over meanwhile."""
        # Raised in any case: a clock that was set back must not make a beat look like none.
        until = self._clock() + self._lease_s
        return session.scalar(
            update(Leadership)
            .where(Leadership.name == self._name, Leadership.fence == self._fence)
            .values(until=case((Leadership.until + 0.001 > until, Leadership.until + 0.001), else_=until))
            .returning(Leadership.fence)
        )

    def _taken(self, session: Session) -> int | None:
        """The lead, if it is free or its holder has been silent for a lease."""
        until = self._clock() + self._lease_s
        row = session.execute(
            select(Leadership.holder, Leadership.fence, Leadership.until).where(Leadership.name == self._name)
        ).one_or_none()
        if row is None:
            try:
                with session.begin_nested():
                    session.add(Leadership(name=self._name, holder=self._holder, fence=1, until=until))
            except IntegrityError:
                return None
            return 1
        seen = self._seen
        if seen is None or (seen.holder, seen.fence, seen.until) != tuple(row):
            self._seen = seen = _Seen(row.holder, row.fence, row.until, since=self._monotonic())
        if row.holder != NOBODY and self._monotonic() - seen.since < self._lease_s:
            return None
        return session.scalar(
            update(Leadership)
            .where(
                Leadership.name == self._name,
                Leadership.fence == row.fence,
                Leadership.until == row.until,
            )
            .values(holder=self._holder, fence=row.fence + 1, until=max(row.until + 0.001, until))
            .returning(Leadership.fence)
        )


def _free_when_suspended(session: Session) -> None:
    """Has PostgreSQL end this transaction when its process is suspended in it: else nobody could take over.

    SQLite knows no such limit; but there one box is all there is, and a write lock that is held stops everybody.
    """
    if session.get_bind().dialect.name == "postgresql":
        limit = f"set local idle_in_transaction_session_timeout = '{SILENT_TRANSACTION_S}s'"
        session.execute(text(limit))
