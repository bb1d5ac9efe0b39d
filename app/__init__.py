"""The edges: settings, composition, HTTP routes, chat, citations, keys, command line."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - an older interpreter would only say that a name is missing
    sys.exit(
        "Strongroom needs Python 3.11 or newer; this is Python " + ".".join(map(str, sys.version_info[:3]))
    )
