"""The console in a browser beside 100,000 documents: first paint, repaint of an answer, a table that moves."""

import json
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright
from rich.progress import Progress
from sqlalchemy import insert

from retrieval.tables import Blob, Collection, Document, DocumentStatus, File, new_id
from tests.app.browser import CHROMIUM, FLAGS, NO_CHROMIUM
from tests.bench.figures import Bound, Figure, Samples, skipped
from tests.bench.ingestion_stack import IngestionStack, text_files
from tests.bench.run import QUICK_REASON
from tests.stack import ROOT, eventually

SAYS = "console: first paint, interaction, repaint of answers, and documents in progress"
FIRST_PAINT, READY = Bound(1.0, is_upper=True), Bound(1.5, is_upper=True)
REPAINT, FRAME = Bound(100, is_upper=True), Bound(50, is_upper=True)
"""A frame each 50 ms: below that a moving page is seen to jump."""
DOCUMENTS, QUICK_DOCUMENTS = 100_000, 1_000
IN_PROGRESS, QUICK_IN_PROGRESS = 1_000, 50
VISITS, QUICK_VISITS = 5, 1
WATCHED_S, QUICK_WATCHED_S = 15, 3
MANUAL = ROOT / "data" / "samples" / "icehouse-vault-manual.pdf"
QUESTION = "At what temperature does the Icehouse keep the seed vault?"
WORDS, BETWEEN_WORDS_S = 100, 0.05
FAILED_EVERY = 97
ROWS_AT_ONCE = 5_000

PAINTED = """performance.getEntriesByName("first-contentful-paint").length"""
TIMES = """() => {
  const [page] = performance.getEntriesByType("navigation");
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  return {paint: paint.startTime / 1000, ready: page.domContentLoadedEventEnd / 1000};
}"""
WATCH_WORDS = """() => {
  window.delays = [];
  const seen = new Set();
  new MutationObserver(() => requestAnimationFrame(() => {
    // After this frame was painted.
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      const answer = document.querySelector(".turn:last-child .answer").textContent;
      for (const word of answer.match(/\\d{13}/g) || []) {
        if (!seen.has(word)) window.delays.push(Date.now() - Number(word));
        seen.add(word);
      }
    };
    channel.port2.postMessage(null);
  })).observe(document.getElementById("turns"), {childList: true, subtree: true, characterData: true});
}"""
WATCH_FRAMES = """() => {
  window.frames_ms = [];
  let before = performance.now();
  const next = (now) => {
    window.frames_ms.push(now - before);
    before = now;
    requestAnimationFrame(next);
  };
  requestAnimationFrame(next);
}"""


def compare(is_quick: bool, progress: Progress) -> list[Figure]:
    if not CHROMIUM.exists():
        return [skipped("console", SAYS, NO_CHROMIUM)]
    told = {"is_judged": not is_quick, "reason": QUICK_REASON if is_quick else ""}
    with (
        tempfile.TemporaryDirectory(prefix="strongroom-bench-") as folder,
        _engine() as engine,
        IngestionStack.running(Path(folder), {"STRONGROOM_ENGINE__URL": engine}) as ours,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            store_id = ours.api.create_store("bench: console")
            _fill(ours, store_id, QUICK_DOCUMENTS if is_quick else DOCUMENTS, progress)
            figures = _opened(ours, browser, store_id, QUICK_VISITS if is_quick else VISITS, told)
            figures += _repainted(ours, browser, told)
            figures += _moving(ours, browser, is_quick, told)
        finally:
            browser.close()
    return figures


def _opened(
    ours: IngestionStack, browser: Browser, store_id: str, visits: int, told: dict[str, Any]
) -> list[Figure]:
    here = f"/console/collections/{store_id}"
    pages = {
        "ask": "/console",
        "collections": "/console/collections",
        "documents": here,
        "by name": f"{here}?sort=name",
        "named": f"{here}?named=letter-77",
        "failed": f"{here}?status=failed&sort=largest",
    }
    paint: dict[str, Samples] = {}
    ready: dict[str, Samples] = {}
    for name, path in pages.items():
        times = []
        for _ in range(visits):
            # A browser of its own each time, that has none of the scripts yet.
            with _signed_in(ours, browser) as page:
                page.goto(ours.stack.url + path)
                # Asked from outside: the page's policy lets nothing be evaluated in it, as `wait_for_function` would.
                while not page.evaluate(PAINTED):
                    page.wait_for_timeout(10)
                times.append(page.evaluate(TIMES))
        paint[name] = Samples(tuple(each["paint"] for each in times), "s")
        ready[name] = Samples(tuple(each["ready"] for each in times), "s")
    return [
        Figure(
            f"console_{name}",
            f"{says}, the slowest page's median",
            unit="s",
            measured=round(max(each.percentile(50) for each in samples.values()), 3),
            bound=bound,
            samples=samples,
            **told,
        )
        for name, says, bound, samples in (
            ("first_paint", "first paint beside 100,000 documents", FIRST_PAINT, paint),
            ("ready", "ready for interaction beside 100,000 documents", READY, ready),
        )
    ]


def _repainted(ours: IngestionStack, browser: Browser, told: dict[str, Any]) -> list[Figure]:
    store_id = ours.api.create_store("bench: vault")
    ours.api.attach(store_id, ours.api.upload(MANUAL.name, MANUAL.read_bytes()))
    ours.wait_until_quiet()
    eventually(lambda: (ours.stack.readiness() or {})["roles"]["engine"]["state"] == "ready", within_s=60)
    with _signed_in(ours, browser) as page:
        page.evaluate(WATCH_WORDS)
        page.fill("#question", QUESTION)
        page.click("#send")
        page.wait_for_selector("#stop:visible")
        page.wait_for_selector("#send:visible")
        delays = Samples(tuple(page.evaluate("window.delays")), "ms")
    return [
        Figure(
            "console_repaint",
            "from a word's leaving the engine until it is painted, p95",
            unit="ms",
            measured=round(delays.percentile(95), 1),
            bound=REPAINT,
            samples={"words": delays},
            **told,
        )
    ]


def _moving(ours: IngestionStack, browser: Browser, is_quick: bool, told: dict[str, Any]) -> list[Figure]:
    store_id = ours.api.create_store("bench: in progress")
    count = QUICK_IN_PROGRESS if is_quick else IN_PROGRESS
    words = np.random.default_rng(7).integers(1000, 9999, (count, 60))
    texts = {
        f"letter-{number}": " ".join(f"crate {each}" for each in row) for number, row in enumerate(words)
    }
    adding = threading.Thread(target=ours.add, args=(store_id, text_files(texts)))
    with _signed_in(ours, browser) as page:
        adding.start()
        page.goto(f"{ours.stack.url}/console/collections/{store_id}")
        eventually(
            lambda: bool(re.search("[0-9]", page.inner_text("#counts"))) or _reloaded(page), within_s=30
        )
        page.evaluate(WATCH_FRAMES)
        page.wait_for_timeout(1000 * (QUICK_WATCHED_S if is_quick else WATCHED_S))
        frames = Samples(tuple(page.evaluate("window.frames_ms")), "ms")
    adding.join()
    ours.wait_until_quiet()
    return [
        Figure(
            "console_in_progress",
            "frames of a table while 1,000 documents are in progress, p95",
            unit="ms",
            measured=round(frames.percentile(95), 1),
            bound=FRAME,
            samples={"frames": frames},
            facts={"longest frame, ms": round(max(frames.values), 1)},
            **told,
        )
    ]


def _reloaded(page: Page) -> bool:
    page.reload()
    return False


@contextmanager
def _signed_in(ours: IngestionStack, browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.request.post(f"{ours.stack.url}/console/sign-in", form={"key": ours.stack.key}, max_redirects=0)
    page.goto(f"{ours.stack.url}/console")
    yield page
    context.close()


def _fill(ours: IngestionStack, store_id: str, count: int, progress: Progress) -> None:
    """Rows alone: pages of lists read nothing else."""
    blob_id = new_id("blob_")
    with ours.stack.database() as database:
        with database.write() as session:
            tenant_id = session.get_one(Collection, store_id).tenant_id
            session.add(Blob(id=blob_id, tenant_id=tenant_id, digest="0" * 64, size_bytes=1))
        for first in progress.track(range(0, count, ROWS_AT_ONCE), description="documents"):
            numbers = range(first, min(first + ROWS_AT_ONCE, count))
            ids = {number: new_id("file-") for number in numbers}
            with database.write() as session:
                session.execute(
                    insert(File),
                    [
                        {
                            "id": file_id,
                            "tenant_id": tenant_id,
                            "blob_id": blob_id,
                            "filename": f"letter-{number * 7919 % count}.txt",
                            "purpose": "assistants",
                            "media_type": "text/plain",
                            "size_bytes": number * 104_729 % 1_000_003,
                            "created_at": float(number),
                        }
                        for number, file_id in ids.items()
                    ],
                )
                session.execute(
                    insert(Document),
                    [
                        {
                            "tenant_id": tenant_id,
                            "collection_id": store_id,
                            "file_id": file_id,
                            "status": DocumentStatus.COMPLETED
                            if number % FAILED_EVERY
                            else DocumentStatus.FAILED,
                            "attributes": {},
                            "chunking": {"type": "auto"},
                            "usage_bytes": 0,
                            "created_at": float(number),
                        }
                        for number, file_id in ids.items()
                    ],
                )


class _Engine(BaseHTTPRequestHandler):
    """Writes the time of each word, in milliseconds, as that word."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        models = {"object": "list", "data": [{"id": "clock", "object": "model", "max_model_len": 8192}]}
        self._whole(200 if self.path in ("/v1/models", "/health") else 404, json.dumps(models).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with suppress(BrokenPipeError):  # Who asked has left.
            for number in range(WORDS):
                time.sleep(BETWEEN_WORDS_S)
                self._event({"content": f"{time.time() * 1000:.0f} "}, None if number < WORDS - 1 else "stop")
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")

    def _event(self, delta: dict[str, str], ended: str | None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": ended}
        told = {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "clock",
            "choices": [choice],
        }
        self._chunk(b"data: " + json.dumps(told).encode() + b"\n\n")

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        self.wfile.flush()

    def _whole(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: the table of figures is what is shown."""


@contextmanager
def _engine() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Engine) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
