"""Wakes: delivered with the commit, to every process that listens; lost ones cost a wait, and no more."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import Engine, event, text

from retrieval.database import Database, open_database
from retrieval.wakes import CHANNEL, Listener, Topic, Waiter, listening, wake

LONG_S = 60.0
"""A wait that a wake ends, unless the test is to fail."""

pytestmark = pytest.mark.slow


@pytest.fixture
def database_kind() -> str:
    return "postgresql"


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not reached():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.02)


async def woken(waiter: Waiter) -> None:
    async with asyncio.timeout(30):
        await waiter.wait(blind_s=LONG_S, look_s=LONG_S)


@asynccontextmanager
async def connected(engine: Engine) -> AsyncIterator[tuple[Listener, Waiter]]:
    """With a waiter for jobs that was not woken since the connection stands."""
    async with listening(engine) as listener:
        waiter = listener.waiter(Topic.JOBS)
        await until(lambda: listener.is_connected)
        await woken(waiter)
        yield listener, waiter


def end_the_connection(database: Database) -> None:
    """As a server does that is restarted, or a cable that is cut."""
    ends = "select pg_terminate_backend(pid) from pg_stat_activity where query = :listens"
    with database.engine.connect() as connection:
        assert connection.execute(text(ends), {"listens": f"listen {CHANNEL}"}).all()


async def test_a_commit_wakes_those_who_listen_in_other_processes(
    database: Database, database_url: str
) -> None:
    other = open_database(database_url)
    async with connected(other.engine) as (listener, waiter):
        indexes = listener.waiter(Topic.INDEXES)
        with database.write() as session:
            wake(session, Topic.JOBS)
            wake(session, Topic.JOBS)
        await woken(waiter)
        assert not indexes._woken.is_set()
    other.close()


async def test_nobody_is_woken_before_the_commit_or_without_one(database: Database) -> None:
    async with connected(database.engine) as (_, waiter):
        with database.write() as session:
            wake(session, Topic.JOBS)
            session.rollback()
        with database.write() as session:
            wake(session, Topic.INDEXES)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiter._woken.wait(), 0.3)
        with database.write() as session:
            wake(session, Topic.JOBS)
        await woken(waiter)


async def test_a_transaction_sends_all_its_wakes_in_one_statement_and_others_none(database: Database) -> None:
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    with database.write() as session:
        for topic in Topic:
            wake(session, topic)
    with database.write() as session:
        session.execute(text("select 1"))
    assert sum("pg_notify" in each for each in statements) == 1


async def test_a_wake_that_comes_during_a_look_ends_the_next_wait(database: Database) -> None:
    async with connected(database.engine) as (_, waiter):
        with database.write() as session:
            wake(session, Topic.JOBS)
        await until(waiter._woken.is_set)
        await woken(waiter)
        assert not waiter._woken.is_set()


async def test_a_lost_connection_is_made_anew_and_wakes_for_what_came_meanwhile(database: Database) -> None:
    async with connected(database.engine) as (listener, waiter):
        end_the_connection(database)
        await woken(waiter)
        with database.write() as session:
            wake(session, Topic.JOBS)
        await until(lambda: listener.is_connected)
        await woken(waiter)
        indexes = listener.waiter(Topic.INDEXES)
        with database.write() as session:
            wake(session, Topic.INDEXES)
        await woken(indexes)


async def test_without_a_connection_a_wait_is_short(database: Database) -> None:
    waiter = Listener().waiter(Topic.JOBS)
    async with asyncio.timeout(30):
        await waiter.wait(blind_s=0.01, look_s=LONG_S)
