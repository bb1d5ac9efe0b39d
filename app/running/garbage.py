"""Keeps Python's garbage collector from what lives as long as the process."""

import gc

COLLECT_AFTER = 20_000
"""New objects. Python's own 700 cost the api and the worker a seventh of their time under load: SQLAlchemy and asyncio
make many objects, and next to no cycles.
"""


def settle() -> None:
    """For a process that has loaded its libraries: their half a million objects are not looked at again.

    Each full collection would, which stops everything for some tenths of a second: a query's budget many times over.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 20)
