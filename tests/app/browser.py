"""A browser for the tests of the console: Debian's Chromium, driven by playwright."""

import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from tests.serving.hosting import REPOSITORY

CHROMIUM = Path("/usr/bin/chromium")
NO_CHROMIUM = "there is no /usr/bin/chromium: run `make test-packages`"
AXE = REPOSITORY / ".venv" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
NO_AXE = "axe-core is not there: run `make test-packages` with npm"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 60_000


@asynccontextmanager
async def opened_browser() -> AsyncIterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(NO_CHROMIUM)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


class Visit:
    """One signed-in page, and what the browser tried on it that it should not have."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.elsewhere: list[str] = []
        self.errors: list[str] = []
        self._blocked: set[str] = set()
        page.on("requestfailed", lambda request: self._note_failure(request.url, request.failure))
        page.on("request", lambda request: self._note(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: self.errors.append(dialog.message))

    def _note(self, url: str) -> None:
        if not url.startswith((f"{self.url}/", "data:", "blob:")):
            self.elsewhere.append(url)

    def _note_failure(self, url: str, why: str | None) -> None:
        if why == "csp":
            self._blocked.add(url)

    def blocked(self, url: str) -> bool:
        """Whether the page's policy kept the request in."""
        return url in self._blocked

    async def open(self, path: str) -> None:
        await self.page.goto(f"{self.url}{path}")

    async def was_harmless(self) -> bool:
        pwned: bool = await self.page.evaluate("window.pwned !== undefined")
        return not pwned and not self.elsewhere and not self.errors


@asynccontextmanager
async def signed_in(
    browser: Browser, url: str, key: str, *, width: int = 1280, height: int = 800, scheme: str = "light"
) -> AsyncIterator[Visit]:
    context: BrowserContext = await browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        accept_downloads=True,
    )
    page = await context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    visit = Visit(page, url)
    await visit.open("/")
    await page.fill("#key", key)
    await page.click("form button:has-text('Sign in')")
    await page.wait_for_selector("#composer")
    yield visit
    await context.close()


def must_light(screenshot: bytes, size: tuple[float, float], box: Mapping[str, float]) -> None:
    """The lit pixels of a page's picture are those of the box and no others; size and box are in points."""
    picture = Image.open(io.BytesIO(screenshot)).convert("RGB")
    scale = picture.width / size[0]
    assert abs(picture.height - size[1] * scale) < 3
    red, green, blue = np.asarray(picture).astype(int).transpose(2, 0, 1)
    rows, columns = np.nonzero((red > 200) & (green > 170) & (green < 245) & (blue < green - 40))
    assert rows.size, "nothing is lit"
    edges = [columns.min(), rows.min(), columns.max(), rows.max()]
    wanted = [box[side] * scale for side in ("x0", "y0", "x1", "y1")]
    assert all(abs(edge - want) < 3 for edge, want in zip(edges, wanted, strict=True)), (edges, wanted)
