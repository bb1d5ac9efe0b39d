"""The program that parses: `python -m ingest.parse.child DESCRIPTOR SECONDS`, started by the sandbox only."""

import select
import sys
from pathlib import Path

from ingest.parse.serve import serve

if __name__ == "__main__":
    # The parsers' libraries take seconds of a core: until there is a file, others may need it more.
    select.select([sys.stdin], [], [], float(sys.argv[2]))

    from ingest.parse.documents import prepare
    from ingest.parse.formats import parse

    prepare(Path.cwd())
    serve(parse, replies=int(sys.argv[1]))
