"""The edges: settings, composition, HTTP routes, chat, citations, keys, command line."""

import gc
import sys

if sys.version_info < (3, 11):  # noqa: UP036 - an older interpreter would only say that a name is missing
    sys.exit(
        "Strongroom needs Python 3.11 or newer; this is Python " + ".".join(map(str, sys.version_info[:3]))
    )

COLLECT_AFTER = 20_000
"""New objects. Python's own 700 cost a start a seventh of its time, and the api and the worker as much of theirs under
load: imports, SQLAlchemy and asyncio make many objects, and next to no cycles.
"""
gc.set_threshold(COLLECT_AFTER, 20, 20)
