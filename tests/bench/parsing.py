"""Annual and quarterly reports: parsed alone, and through the API beside the bare embedding loop and OGX.

`python -m tests.bench --only parsing [--quick]` runs it alone. Parsed alone, they go through one child of the
sandbox, which has one core; pages count from the first file's request to the last part.
"""

import asyncio
import tempfile
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import psutil
from rich.progress import Progress

from ingest.elements import Attachment
from ingest.sandbox import ParserPool
from tests.bench.corpora import SHARED
from tests.bench.figures import Bound, Figure, MeasureFailed, Samples, skipped
from tests.bench.ingestion_stack import IngestionStack
from tests.bench.peers.embedding_servers import MODEL
from tests.bench.peers.install import PeerAbsent
from tests.bench.peers.ogx import ogx
from tests.bench.run import QUICK_REASON

SAYS = "annual and quarterly reports: parsed alone, and through the API"
REPORTS = SHARED / "financebench" / "pdfs"
PDF = "application/pdf"
FIVE = (
    "AMAZON_2017_10K.pdf",
    "BESTBUY_2024Q2_10Q.pdf",
    "FOOTLOCKER_2022_8K_dated-2022-05-20.pdf",
    "JOHNSON_JOHNSON_2023_8K_dated-2023-08-30.pdf",
    "Pfizer_2023Q2_10Q.pdf",
)
"""Those that OGX was first measured with: 218 pages."""
QUICK_FIVE = (FIVE[2],)
QUICK_OTHERS = 1
DIMENSIONS = 384
RAW = 1_500


def compare(is_quick: bool, progress: Progress) -> list[Figure]:
    if not REPORTS.is_dir():
        return [skipped("parsing", SAYS, f"{REPORTS} is absent")]
    five = [REPORTS / name for name in (QUICK_FIVE if is_quick else FIVE)]
    others = sorted((path for path in REPORTS.glob("*.pdf") if path.name not in FIVE), key=_size)
    others = others[:QUICK_OTHERS] if is_quick else others
    progress.console.print(f"parsing: {len(five) + len(others)} reports", highlight=False)
    pages, alone = asyncio.run(_parsed_alone([*five, *others]))
    with (
        tempfile.TemporaryDirectory(prefix="bench-parsing-") as folder,
        IngestionStack.running(Path(folder)) as ours,
    ):
        figures = [alone, *_through_the_api(Path(folder), ours, five, others, pages)]
    return [replace(each, is_judged=False, reason=QUICK_REASON) for each in figures] if is_quick else figures


async def _parsed_alone(paths: list[Path]) -> tuple[dict[Path, int], Figure]:
    """Pages by report, and the figure."""
    pages: dict[Path, int] = {}
    rates = []
    async with ParserPool(1) as pool:
        await _page_count(pool, paths[0])  # warms up; not counted
        cpu_s = _children_cpu_s()
        started = time.monotonic()
        for path in paths:
            began = time.monotonic()
            pages[path] = await _page_count(pool, path)
            rates.append(pages[path] / (time.monotonic() - began))
        seconds = time.monotonic() - started
        cpu_s = _children_cpu_s() - cpu_s
    total = sum(pages.values())
    return pages, Figure(
        "parsing",
        "reports parsed alone, by one parser",
        unit="pages/s",
        measured=round(total / seconds, 1),
        bound=Bound(100.0, is_upper=False),
        samples={"by report": Samples(tuple(rates), "pages/s")},
        facts={"pages": total, "pages a CPU second of the parser": round(total / cpu_s, 1)},
    )


async def _page_count(pool: ParserPool, path: Path) -> int:
    """Of a report that is parsed to its end."""
    done = 0
    async with aclosing(pool.parse(path, PDF)) as pieces:
        async for piece in pieces:
            assert not isinstance(piece, Attachment)
            done = piece.pages_done or done
    return done


def _children_cpu_s() -> float:
    each = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(times.user + times.system for times in each)


def _through_the_api(
    folder: Path, ours: IngestionStack, five: list[Path], others: list[Path], pages: dict[Path, int]
) -> list[Figure]:
    warm_up = ours.api.create_store("bench: warm-up")
    # Other bytes than the report's own, which would be parsed already when it comes.
    ours.add(warm_up, {"warm-up.pdf": others[0].read_bytes() + b"\n"})
    ours.wait_until_quiet()
    rounds = [{path.name: path.read_bytes() for path in some} for some in (five, others)]
    ingested = ours.ingest("reports", rounds, raw=RAW)
    of_five = sum(pages[path] for path in five)
    throughput = Figure(
        "parsing_through_the_api",
        "five reports through the API: upload, attach, ready",
        unit="pages/s",
        measured=round(of_five / ingested.rounds_s[0], 1),
        facts={"pages": of_five, **_ogx(folder, ours, five, of_five)},
    )
    return [throughput, ingested.share_of_raw("parsing_of_raw", "reports")]


def _ogx(folder: Path, ours: IngestionStack, reports: list[Path], pages: int) -> dict[str, float | str]:
    """The same reports, one after the other; or why it was not measured."""
    stack = ours.stack
    try:
        with ogx(folder, api=stack.url, key=stack.key, model=MODEL, dimensions=DIMENSIONS) as api:
            store_id = api.create_store("bench")
            api.add(store_id, [("warm-up.txt", b"It starts.")])
            started = time.monotonic()
            for path in reports:
                api.add(store_id, [(path.name, path.read_bytes())])
            seconds = time.monotonic() - started
            if (counts := api.counts(store_id))["completed"] != len(reports) + 1:
                raise MeasureFailed(f"Of {len(reports)} reports and a text: {counts}")
    except (PeerAbsent, MeasureFailed) as error:
        return {"OGX: not measured": str(error)}
    return {"OGX, pages/s": round(pages / seconds, 2)}


def _size(path: Path) -> int:
    return path.stat().st_size
