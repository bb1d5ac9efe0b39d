"""Keeps indexes up to date behind the searches, those of generations that may be switched to as well."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.exc import OperationalError

from retrieval.database import Database
from retrieval.together import in_thread
from retrieval.views import IndexViews
from retrieval.wakes import Listener, Topic, Waiter

log = logging.getLogger("strongroom.standby")

LOOK_S = 1.0
"""A look is two reads of small tables, where something changed or nothing would tell of it; what was added meanwhile
is all that a search has to catch up with."""


@asynccontextmanager
async def standing_by(database: Database, views: IndexViews, listener: Listener) -> AsyncIterator[None]:
    following = asyncio.create_task(_follow(database, views, listener.waiter(Topic.INDEXES)))
    try:
        yield
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def _follow(database: Database, views: IndexViews, changed: Waiter) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        await changed.wait(blind_s=0)
        try:
            await in_thread(_keep_ready, database, views)
        except OperationalError:
            log.warning("database_unavailable")


def _keep_ready(database: Database, views: IndexViews) -> None:
    with database.read() as session:
        views.keep_ready(session)
