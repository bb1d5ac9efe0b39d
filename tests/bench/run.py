"""What every measure is given: the running stack, how much to measure, and where to show progress."""

from dataclasses import dataclass

from rich.progress import Progress

from tests.bench.clients import Api
from tests.stack import Stack


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    pairs: int
    """Requests for the first token through Strongroom, and as many to the engine itself."""
    documents: int
    """Uploaded one at a time until each is searchable."""
    chunks: int
    """Of the collection whose searches are timed."""
    searches: int
    is_quick: bool
    """Takes a sample of the retrieval sets, and judges nothing."""


FULL = Sizes(pairs=200, documents=30, chunks=10_000, searches=200, is_quick=False)
QUICK = Sizes(pairs=10, documents=3, chunks=300, searches=20, is_quick=True)
QUICK_REASON = "not judged: --quick"


@dataclass(frozen=True)
class Run:
    stack: Stack
    api: Api
    sizes: Sizes
    progress: Progress
