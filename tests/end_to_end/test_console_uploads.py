"""Thousands of files are dropped on the console at once, and page and server are ended while they come."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.stack import Stack

pytestmark = pytest.mark.slow

FILES, FOLDERS = 2_000, 4
SETTINGS = {"STRONGROOM_ENGINE__URL": "http://127.0.0.1:9", "STRONGROOM_MODELS__RERANKER": ""}
ROLES = ("database", "models", "worker")
PATIENCE_MS = 600_000
PAUSES_SEEN = """() => {
  window.longest_ms = 0;
  let before = performance.now();
  const next = (now) => {
    window.longest_ms = Math.max(window.longest_ms, now - before);
    before = now;
    requestAnimationFrame(next);
  };
  requestAnimationFrame(next);
}"""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    running = Stack(tmp_path / "data", SETTINGS)
    try:
        running.start(roles=ROLES)
        yield running
    finally:
        running.stop()


def test_thousands_of_files_come_whole_though_page_and_server_end_meanwhile(
    stack: Stack, page: Page, tmp_path: Path
) -> None:
    letters = tmp_path / "letters"
    for number in range(FILES):
        folder = letters / f"shelf-{number % FOLDERS}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"letter-{number}.txt").write_text(f"Letter {number} tells of harbour {number * 7919}.")
    with stack.http() as http:
        store = http.post("/v1/vector_stores", json={"name": "letters"}).json()["id"]
        sent: list[str] = []
        page.on("request", lambda each: sent.append(each.url) if each.url.endswith("/upload") else None)
        page.goto(f"{stack.url}/console/collections/{store}")

        page.set_input_files("#folder", letters)
        page.evaluate(PAUSES_SEEN)
        until_sent(page, FILES // 4)
        # The page is of use meanwhile.
        page.fill("#named", "letter-77")
        expect(page.locator("tr[id]").first).to_contain_text("letter-77", timeout=PATIENCE_MS)
        page.fill("#named", "")
        print(f"longest pause between frames: {page.evaluate('window.longest_ms'):.0f} ms")
        before = count_sent(page)

        page.reload()
        expect(page.locator("#cut-off")).to_be_visible()
        sent.clear()
        page.set_input_files("#folder", letters)
        until_sent(page, FILES // 2)
        # What came before is not sent again, but for the few that were on their way.
        assert len(sent) <= count_sent(page) - before + 10

        os.kill(stack.pid("api"), signal.SIGKILL)
        until_sent(page, FILES)
        expect(page.locator("#refused li")).to_have_count(0)
        expect(page.locator("#cut-off")).to_be_hidden()
        expect(page.locator("#documents")).not_to_contain_text("in progress", timeout=PATIENCE_MS)
        counts = http.get(f"/v1/vector_stores/{store}").json()["file_counts"]
        assert (counts["completed"], counts["total"]) == (FILES, FILES)
        page.fill("#named", f"letter-{FILES - 1}")
        row = page.locator("tr[id]")
        expect(row).to_have_count(1)
        expect(row).to_contain_text(f"letters/shelf-{(FILES - 1) % FOLDERS}")
        expect(row).to_contain_text("completed")


def until_sent(page: Page, number: int) -> None:
    for _ in range(PATIENCE_MS // 100):
        if count_sent(page) >= number:
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{count_sent(page)} of {number} files were sent")


def count_sent(page: Page) -> int:
    return int((page.locator("#sent-of").text_content() or "0").split()[0] or 0)
