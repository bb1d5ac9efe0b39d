"""What makes a rebuild end by itself: the switch to a generation that is complete, and the removal of discarded ones.

Every worker does it, between its jobs; each step is one transaction, which finds out whether it is still due. So a
worker that is killed leaves nothing half done, and several do nothing twice.
"""

import logging

from retrieval import generations
from retrieval.database import Database

log = logging.getLogger("strongroom.rebuilds")


def tend(database: Database, *, now: float) -> bool:
    """Switches to what is complete, and removes what was discarded. Returns whether there was any.

    Where there is none it costs two reads of a small table.
    """
    with database.read() as session:
        complete = generations.to_switch_to(session)
        discarded = generations.to_remove(session)
    for collection_id, number in complete:
        with database.write() as session:
            switched = generations.switch_if_complete(session, collection_id, number, now=now)
        if switched:
            log.info("generation_switched", extra={"collection": collection_id, "generation": number})
    for collection_id, number in discarded:
        _remove(database, collection_id, number)
    return bool(complete or discarded)


def _remove(database: Database, collection_id: str, number: int) -> None:
    after_id: int | None = 0
    while after_id is not None:
        with database.write() as session:
            after_id = generations.remove_slice(session, collection_id, number, after_id=after_id)
    log.info("generation_removed", extra={"collection": collection_id, "generation": number})
