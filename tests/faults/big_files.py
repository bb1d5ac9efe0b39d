"""Ingests huge files and watches the memory: `python -m tests.faults.big_files [--pages 10000] [--mib 1024]`.

A PDF of so many pages and a text file of that size go in through the API, each with a look at what the worker and
its parsers take; then a second one of each is cancelled in the middle. Embeddings cost nothing.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
from reportlab.pdfgen.canvas import Canvas
from sqlalchemy import func, select

from retrieval.tables import Chunk, ParsedPart
from tests.bench.corpora import prose
from tests.faults.ingesting import NOWHERE, quick_models
from tests.faults.quick_models import ALIAS
from tests.faults.report import Row
from tests.stack import Stack, eventually

MIB = 1 << 20
ROLES = ("database", "models", "worker")
LINES = 45
WORDS_A_LINE = 11
LONGEST_S = 3_600.0
SAMPLE_EVERY_S = 0.2
STILL_S = 1.5
"""For so long nothing more may be kept of a cancelled file."""


@dataclass(frozen=True)
class Measured:
    """What one file took. Memory is that of the worker and all that it started; what they share counts once."""

    name: str
    idle_bytes: int
    peak_bytes: int
    seconds: float
    cancelled_s: float
    """From the request to cancel until the worker had let go."""

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.peak_bytes / MIB:.0f} MiB at most, {self.idle_bytes / MIB:.0f} MiB when idle, "
            f"{self.seconds:.0f} s, cancelled within {self.cancelled_s:.1f} s"
        )


class BigFileStack:
    """A stack with quick embeddings, and a look into it."""

    def __init__(self, stack: Stack, client: httpx.Client) -> None:
        self.stack = stack
        self._client = client
        self.store_id = str(self._call("POST", "/v1/vector_stores", json={"name": "huge"})["id"])

    @classmethod
    @contextmanager
    def running(cls, folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[Self]:
        temporary = folder / "tmp"
        temporary.mkdir()
        with quick_models(folder / "models.log") as models_url:
            stack = Stack(
                folder / "data",
                {
                    "STRONGROOM_MODELS__URL": models_url,
                    "STRONGROOM_MODELS__EMBEDDING": ALIAS,
                    "STRONGROOM_ENGINE__URL": NOWHERE,
                    "TMPDIR": str(temporary),
                    "STRONGROOM_STORAGE__MAX_UPLOAD_BYTES": str(4 << 30),
                    **(settings or {}),
                },
            )
            try:
                stack.start(roles=ROLES)
                headers = {"Authorization": f"Bearer {stack.key}"}
                with httpx.Client(base_url=stack.url, headers=headers, timeout=600) as client:
                    yield cls(stack, client)
            finally:
                stack.stop()

    def add(self, path: Path) -> str:
        """Uploads and attaches. Returns the file's id."""
        with path.open("rb") as content:
            file = self._call("POST", "/v1/files", files={"file": (path.name, content)})
        self._call("POST", f"/v1/vector_stores/{self.store_id}/files", json={"file_id": file["id"]})
        return str(file["id"])

    def document(self, file_id: str) -> dict[str, Any]:
        return self._call("GET", f"/v1/vector_stores/{self.store_id}/files/{file_id}")

    def wait_completed(self, file_id: str, *, within_s: float = LONGEST_S) -> None:
        eventually(lambda: self.document(file_id)["status"] != "in_progress", within_s=within_s)
        document = self.document(file_id)
        assert document["status"] == "completed", document

    def ask_cancel(self, file_id: str) -> str:
        """The document's status then: `cancelled`, unless it had ended already."""
        path = f"/v1/vector_stores/{self.store_id}/files/{file_id}/cancel"
        return str(self._call("POST", path)["status"])

    def cancel(self, file_id: str) -> float:
        """Seconds until nothing more was kept of it, seen over some time after. Fails when it was not cancelled."""
        started = time.monotonic()
        assert self.ask_cancel(file_id) == "cancelled"
        changed_at, kept = time.monotonic(), self.kept()
        while time.monotonic() - changed_at < STILL_S:
            if (now := self.kept()) != kept:
                changed_at, kept = time.monotonic(), now
            time.sleep(0.05)
        return changed_at - started

    def kept(self) -> tuple[int, int]:
        """Parts and chunks, of all files."""
        with self.stack.database() as database, database.read() as session:
            parts = session.scalar(select(func.count()).select_from(ParsedPart)) or 0
            return parts, session.scalar(select(func.max(Chunk.id))) or 0

    @contextmanager
    def watched(self) -> Iterator[Callable[[], int]]:
        """Gives the most bytes that the worker and its parsers had so far."""
        peak = 0
        ended = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(SAMPLE_EVERY_S):
                peak = max(peak, self.memory_bytes())

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            yield lambda: peak
        finally:
            ended.set()
            watching.join()

    def memory_bytes(self) -> int:
        """Their proportional set sizes: the libraries' pages that all of them map are not taken three times."""
        worker = psutil.Process(self.stack.pid("worker"))
        return sum(map(_memory_bytes, (worker, *worker.children(recursive=True))))

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        reply = self._client.request(method, path, **options)
        assert reply.status_code == 200, reply.text
        told: dict[str, Any] = reply.json()
        return told


def measure(
    folder: Path, *, pages: int, text_bytes: int, tell: Callable[[Measured], None] = lambda _: None
) -> list[Measured]:
    """A PDF, then a text file, each once to its end and once cancelled."""
    files = [
        (
            write_pdf(folder / "huge.pdf", pages=pages),
            write_pdf(folder / "other.pdf", pages=pages, title="Other"),
        ),
        (
            write_text(folder / "huge.txt", size_bytes=text_bytes),
            write_text(folder / "other.txt", size_bytes=text_bytes, title="Other"),
        ),
    ]
    measured = []
    with BigFileStack.running(folder) as stack:
        small = write_pdf(folder / "small.pdf", pages=1)
        stack.wait_completed(stack.add(small))
        for whole, cancelled in files:
            measured.append(_measure(stack, whole, cancelled))
            tell(measured[-1])
    return measured


def _measure(stack: BigFileStack, whole: Path, cancelled: Path) -> Measured:
    idle_bytes = stack.memory_bytes()
    started = time.monotonic()
    with stack.watched() as peak:
        stack.wait_completed(stack.add(whole))
        seconds = time.monotonic() - started
        before = stack.kept()
        file_id = stack.add(cancelled)
        # In the middle: some is kept already, and more is on its way.
        eventually(
            lambda: all(now > then for now, then in zip(stack.kept(), before, strict=True)), within_s=300
        )
        cancelled_s = stack.cancel(file_id)
        assert stack.document(file_id)["status"] == "cancelled"
        return Measured(whole.name, idle_bytes, peak(), seconds, cancelled_s)


def write_pdf(path: Path, *, pages: int, title: str = "Register") -> Path:
    """Pages of plain lines, each with its number."""
    words = prose(words=LINES * WORDS_A_LINE * 20)
    lines = [" ".join(words[start : start + WORDS_A_LINE]) for start in range(0, len(words), WORDS_A_LINE)]
    canvas = Canvas(str(path), pageCompression=1)
    for number in range(1, pages + 1):
        text = canvas.beginText(50, 790)
        text.setFont("Helvetica", 9)
        text.textLine(f"{title}, entry {number}")
        for line in range(LINES):
            text.textLine(f"{lines[(number * 7 + line) % len(lines)]} {number}")
        canvas.drawText(text)
        canvas.showPage()
    canvas.save()
    return path


def write_text(path: Path, *, size_bytes: int, title: str = "Ledger") -> Path:
    """Paragraphs, each with its number."""
    words = prose(words=30_000)
    paragraphs = [" ".join(words[start : start + 100]) for start in range(0, len(words), 100)]
    written = number = 0
    with path.open("w") as output:
        while written < size_bytes:
            written += output.write(f"{title} {number}. {paragraphs[number % len(paragraphs)]}\n\n")
            number += 1
    return path


def _memory_bytes(process: psutil.Process) -> int:
    try:
        taken: int = process.memory_full_info().pss
    except psutil.NoSuchProcess:
        return 0
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.big_files", description=__doc__)
    parser.add_argument("--pages", type=int, default=10_000)
    parser.add_argument("--mib", type=int, default=1_024, help="of the text file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="strongroom-big-") as folder:
        measured = measure(Path(folder), pages=options.pages, text_bytes=options.mib * MIB, tell=print)
    violations = sum(each.peak_bytes > 1024 * MIB or each.cancelled_s > 2 for each in measured)
    figures = "; ".join(
        f"{each.peak_bytes / MIB:.0f} MiB (1,024), cancelled in {each.cancelled_s:.1f} s (2)"
        for each in measured
    )
    what = f"F18 a PDF of {options.pages:,} pages, a text of {options.mib:,} MiB"
    Row(what, len(measured), violations, None, figures).show()
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
