"""Keeps indexes ready for generations that may be switched to, so that no search waits for one at a switch."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.exc import OperationalError

from retrieval.database import Database
from retrieval.together import in_thread
from retrieval.views import IndexViews

log = logging.getLogger("strongroom.standby")

LOOK_S = 1.0
"""A look is one read of a small table; what was added meanwhile is all that a search may have to catch up with."""


@asynccontextmanager
async def standing_by(database: Database, views: IndexViews) -> AsyncIterator[None]:
    following = asyncio.create_task(_follow(database, views))
    try:
        yield
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def _follow(database: Database, views: IndexViews) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            await in_thread(_keep_ready, database, views)
        except OperationalError:
            log.warning("database_unavailable")


def _keep_ready(database: Database, views: IndexViews) -> None:
    with database.read() as session:
        views.keep_ready(session)
