"""Notes which collections are in use, behind the searches: nobody waits for it, and it writes once a minute at most."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from sqlalchemy.exc import OperationalError

from retrieval.database import Database
from retrieval.expiry import RENEW_AFTER_S, renew
from retrieval.scope import Scope
from retrieval.together import in_thread

log = logging.getLogger("strongroom.activity")

REMEMBER_MOST = 10_000


class Activity:
    """Open as long as the api role. `last_active_at` of a collection, and with it its expiry, rest on it."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._noted_at: dict[tuple[str, frozenset[str] | None], float] = {}
        self._writing: set[asyncio.Task[None]] = set()

    def note(self, scope: Scope, collection_ids: Sequence[str] | None) -> None:
        """They were searched; None is all of the tenant."""
        used = (scope.tenant_id, frozenset(collection_ids) if collection_ids is not None else None)
        now = self._clock()
        if now - self._noted_at.get(used, 0.0) < RENEW_AFTER_S:
            return
        if len(self._noted_at) >= REMEMBER_MOST:
            self._noted_at.clear()
        self._noted_at[used] = now
        task = asyncio.create_task(self._write(scope, collection_ids, now))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def close(self) -> None:
        """Ends once all that was noted is written."""
        await asyncio.gather(*self._writing)

    async def _write(self, scope: Scope, collection_ids: Sequence[str] | None, now: float) -> None:
        try:
            await in_thread(self._renew, scope, collection_ids, now)
        except OperationalError:
            # The next search after a minute says the same again; days do not hang on one.
            log.warning("activity_not_noted")

    def _renew(self, scope: Scope, collection_ids: Sequence[str] | None, now: float) -> None:
        with self._database.write() as session:
            renew(session, scope, collection_ids, now=now)
