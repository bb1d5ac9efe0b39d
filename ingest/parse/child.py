"""The program that parses: `python -m ingest.parse.child DESCRIPTOR`, started by the sandbox only."""

import sys
from pathlib import Path

from ingest.parse.documents import prepare
from ingest.parse.formats import parse
from ingest.parse.serve import serve

if __name__ == "__main__":
    prepare(Path.cwd())
    serve(parse, replies=int(sys.argv[1]))
