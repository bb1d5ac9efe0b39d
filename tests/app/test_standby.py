"""The api keeps indexes ready for a switch, and goes on when the database was away."""

import asyncio
import logging
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.upkeep.standby import standing_by
from retrieval import catalog
from retrieval.database import Database, open_database
from retrieval.scope import Scope
from retrieval.views import IndexViews
from retrieval.wakes import Listener, listening
from tests.retrieval.library import shelve
from tests.retrieval.shelf import Shelf

pytestmark = pytest.mark.slow


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not reached():  # noqa: ASYNC110 - nothing tells of a look
            await asyncio.sleep(0.05)


@pytest.fixture
def database_away() -> Iterator[list[bool]]:
    """Away as long as the list is not empty."""
    away = [True]

    def refuse(_: object) -> None:
        if away:
            raise OperationalError("select", {}, Exception("away"))

    event.listen(Session, "do_orm_execute", refuse)
    yield away
    event.remove(Session, "do_orm_execute", refuse)


async def test_what_may_be_switched_to_is_followed_and_what_is_gone_is_dropped(
    database: Database, scope: Scope
) -> None:
    shelf, views = Shelf(database, scope), IndexViews()
    shelf.follow(views)
    number = shelf.begin()
    async with standing_by(database, views, Listener()):
        shelf.fill(number, shelf.documents[:1])
        key = shelf.collection.id, number
        await until(lambda: key in views._views)
        shelf.fill(number, shelf.documents[1:])
        await until(lambda: len(views._views[key].vectors.chunk_ids()) == 3)
        shelf.discard(number)
        await until(lambda: key not in views._views)


@pytest.mark.parametrize("database_kind", ["postgresql"])
async def test_what_other_processes_add_and_delete_is_in_the_indexes_before_anybody_searches(
    database: Database, database_url: str, scope: Scope
) -> None:
    shelf, views, other = Shelf(database, scope), IndexViews(), open_database(database_url)
    shelf.follow(views)
    vectors = views._views[shelf.collection.id, 0].vectors
    async with listening(other.engine) as listener, standing_by(other, views, listener):
        await until(lambda: listener.is_connected)
        added = shelve(database, scope, shelf.collection, "A lamp lights the stair.")
        await until(lambda: len(vectors.chunk_ids()) == 7)
        with database.write() as session:
            catalog.delete_document(session, scope, shelf.collection.id, added.file_id)
        await until(lambda: len(vectors.chunk_ids()) == 6)
        with database.write() as session:
            catalog.delete_collection(session, scope, shelf.collection.id)
        await until(lambda: not views._views)
    other.close()


async def test_a_database_that_was_away_is_followed_again(
    database: Database, scope: Scope, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    shelf, views = Shelf(database, scope), IndexViews()
    shelf.follow(views)
    number = shelf.begin()
    shelf.fill(number, shelf.documents)
    away: list[bool] = request.getfixturevalue("database_away")
    with caplog.at_level(logging.WARNING, logger="strongroom.standby"):
        async with standing_by(database, views, Listener()):
            await until(lambda: "database_unavailable" in caplog.text)
            away.clear()
            await until(lambda: (shelf.collection.id, number) in views._views)
