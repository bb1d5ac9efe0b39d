"""Wakes who waits for what other processes write: NOTIFY in the transaction that writes it, LISTEN in each process.

A wake says that there is something to look for, not what. So one that is lost costs a wait and nothing else: whoever
waits looks now and then all the same, and often where no wake can come, as an embedded database has no NOTIFY and a
connection may be away. https://www.postgresql.org/docs/current/sql-notify.html
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import StrEnum

import psycopg
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

log = logging.getLogger("strongroom.wakes")

CHANNEL = "strongroom"
LOOK_S = 5.0
"""So long a wait is at most where wakes come."""
CHECK_S = 10.0
"""A connection that said nothing for so long is asked whether it is alive, and has so long to answer."""
RECONNECT_S = 1.0

_PENDING = "wakes"


class Topic(StrEnum):
    JOBS = "jobs"
    """A job was queued or given back."""
    INDEXES = "indexes"
    """The log of a generation's chunks grew, or a generation began, answers or is gone."""


def wake(session: Session, topic: Topic) -> None:
    """In the transaction that writes it: whoever waits is woken once that is committed."""
    session.info.setdefault(_PENDING, set()).add(topic)


def send(session: Session) -> None:
    """The transaction's last statement: one for all that it wrote. PostgreSQL delivers it at the commit."""
    topics: set[Topic] = session.info.pop(_PENDING, set())
    if topics and session.get_bind().dialect.name == "postgresql":
        session.execute(select(*(func.pg_notify(CHANNEL, topic.value) for topic in sorted(topics))))


class Waiter:
    """One task's wait for a topic. A wake that comes while it looks ends its next wait at once."""

    def __init__(self, listener: "Listener") -> None:
        self._listener = listener
        self._woken = asyncio.Event()

    def wake(self) -> None:
        self._woken.set()

    async def wait(self, *, blind_s: float, look_s: float = LOOK_S) -> None:
        """Until it is woken, `look_s` at most; where no wake can come, `blind_s`."""
        longest_s = look_s if self._listener.is_connected else blind_s
        # Not wait_for: in Python 3.11 it forgets to be cancelled when what it waits for comes at the same moment.
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                await self._woken.wait()
        self._woken.clear()


class Listener:
    """A process's one connection that listens, and those of its tasks that wait."""

    def __init__(self) -> None:
        self.is_connected = False
        self._waiters: dict[Topic, list[Waiter]] = {topic: [] for topic in Topic}

    def waiter(self, *topics: Topic) -> Waiter:
        waiter = Waiter(self)
        for topic in topics:
            self._waiters[topic].append(waiter)
        return waiter

    async def listen(self, engine: Engine) -> None:
        """To a PostgreSQL server, until cancelled; a connection that is lost is made anew."""
        while True:
            try:
                await self._listen(engine)
            except (psycopg.Error, OSError, TimeoutError) as error:
                if self.is_connected:
                    log.warning("listening_lost", extra={"reason": type(error).__name__})
            finally:
                # Whoever relied on wakes looks often from now on.
                self.is_connected = False
                self._wake(*Topic)
            await asyncio.sleep(RECONNECT_S)

    async def _listen(self, engine: Engine) -> None:
        args, options = engine.dialect.create_connect_args(engine.url)
        async with await psycopg.AsyncConnection.connect(*args, **{**options, "autocommit": True}) as server:
            await server.execute(f"listen {CHANNEL}")
            self.is_connected = True
            # What was committed while nobody listened.
            self._wake(*Topic)
            log.info("listening")
            while True:
                async for notice in server.notifies(timeout=CHECK_S):
                    self._wake(*(topic for topic in Topic if topic == notice.payload))
                async with asyncio.timeout(CHECK_S):
                    await server.execute("select 1")

    def _wake(self, *topics: Topic) -> None:
        for topic in topics:
            for waiter in self._waiters[topic]:
                waiter.wake()


@asynccontextmanager
async def listening(engine: Engine) -> AsyncIterator[Listener]:
    """Over an embedded database it never connects, so that whoever waits looks as often as without it."""
    listener = Listener()
    if engine.dialect.name != "postgresql":
        yield listener
        return
    running = asyncio.create_task(listener.listen(engine))
    try:
        yield listener
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
