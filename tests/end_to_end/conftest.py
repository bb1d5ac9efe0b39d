"""One stack with a real engine for the whole folder: it takes a minute to start."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from playwright.sync_api import Page, sync_playwright

from tests.app.browser import CHROMIUM, FLAGS, NO_CHROMIUM
from tests.stack import ENGINE_PYTHON, MODELS, Stack


@pytest.fixture(scope="session")
def sources_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder below which the stack may watch places."""
    return tmp_path_factory.mktemp("watched")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, sources_root: Path) -> Iterator[Stack]:
    if not ENGINE_PYTHON.exists() or not (MODELS / "SmolLM2-135M-Instruct").is_dir():
        pytest.skip("The engine's environment or the demo models are missing: run `make setup`.")
    settings = {"STRONGROOM_SOURCES__ROOTS": str(sources_root)}
    running = Stack(tmp_path_factory.mktemp("stack") / "data", settings)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def client(stack: Stack) -> OpenAI:
    return stack.client()


@pytest.fixture
def page(stack: Stack) -> Iterator[Page]:
    """The stack's console in a browser, signed in with its first key."""
    if not CHROMIUM.exists():
        pytest.skip(NO_CHROMIUM)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.goto(stack.url)
        page.fill("#key", stack.key)
        page.click("form button:has-text('Sign in')")
        page.wait_for_selector("#composer")
        yield page
        browser.close()


@pytest.fixture(scope="session")
def handbook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PDF of three pages with one fact on each."""
    return write_pdf(
        tmp_path_factory.mktemp("documents") / "lighthouse-handbook.pdf",
        [
            (
                "Tower",
                "The Brennick lighthouse tower is 47 metres high. It was built by Aldous Wren in 1871.",
            ),
            (
                "Lamp",
                "The lamp of the Brennick lighthouse has a range of 23 nautical miles. It turns every 12 seconds.",
            ),
            (
                "Keeper",
                "The keeper of the Brennick lighthouse is Ismene Calder. She lives in the white cottage.",
            ),
        ],
    )


def write_pdf(path: Path, pages: list[tuple[str, str]]) -> Path:
    from reportlab.lib.styles import getSampleStyleSheet
    from reportlab.platypus import PageBreak, Paragraph, SimpleDocTemplate

    styles = getSampleStyleSheet()
    story = [
        flowable
        for title, text in pages
        for flowable in (
            Paragraph(title, styles["Heading1"]),
            Paragraph(text, styles["BodyText"]),
            PageBreak(),
        )
    ]
    SimpleDocTemplate(str(path)).build(story)
    return path
