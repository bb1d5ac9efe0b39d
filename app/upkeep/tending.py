"""Tends the indexes behind the searches of the api role: rebuilds, recall, snapshots; and tells metrics of them."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.exc import OperationalError

from app.metrics import ApiMetrics
from retrieval.database import Database
from retrieval.together import in_thread
from retrieval.views import IndexViews

log = logging.getLogger("strongroom.tending")

LOOK_S = 1.0
"""What was deleted is gone from snapshots after about so long."""


@asynccontextmanager
async def tending(database: Database, views: IndexViews, metrics: ApiMetrics) -> AsyncIterator[None]:
    stopping = threading.Event()
    running = asyncio.create_task(_tend(database, views, metrics, stopping))
    try:
        yield
    finally:
        stopping.set()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _tend(
    database: Database, views: IndexViews, metrics: ApiMetrics, stopping: threading.Event
) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            await in_thread(views.tend, database, stopping=stopping)
        except (OperationalError, OSError) as error:
            # A full disk or an absent database. Snapshots are a cache, and the next look is soon.
            log.warning("tending_failed", extra={"reason": type(error).__name__})
        metrics.tell_indexes(views.indexes())
