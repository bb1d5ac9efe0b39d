"""`strongroom add`: many files over HTTP to a running api, with a worker behind it."""

import asyncio
import io
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import select

from app.commands.adding import GROUP_FILES, Outcome, PathMissing, add_files, describe, files_under
from app.commands.remote import Remote, RemoteRefused, RemoteUnreachable
from app.routes import progress
from ingest.elements import ParseFailed, ParseFailure
from retrieval.tables import Document, DocumentStatus, File
from tests.app.alone import Alone, api_alone
from tests.serving.hosting import served, until
from tests.stack import ROOT

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Desk(Alone):
    """With the command's connection and what it prints."""

    url: str
    remote: Remote
    screen: io.StringIO

    async def add(self, *paths: Path, password: str | None = None, wait: bool = True) -> Outcome:
        console = Console(file=self.screen, width=200)
        found = files_under(paths)
        return await add_files(
            self.remote, found.files, "letters", console=console, password=password, wait=wait
        )

    @property
    def said(self) -> str:
        return self.screen.getvalue()

    def statuses(self) -> list[DocumentStatus]:
        with self.services.database.read() as session:
            return list(session.scalars(select(Document.status)))


@pytest.fixture
async def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    monkeypatch.setattr(progress, "LOOK_S", 0.02)
    async with (
        api_alone(tmp_path / "data") as alone,
        served(alone.app, is_started=True) as url,
        Remote(url, alone.key) as remote,
    ):
        yield Desk(**vars(alone), url=url, remote=remote, screen=io.StringIO())


@pytest.fixture
async def working(desk: Desk) -> AsyncIterator[None]:
    async with desk.working():
        yield


def letters(folder: Path, number: int) -> Path:
    (folder / "letters").mkdir()
    for each in range(number):
        (folder / "letters" / f"{each:04}.txt").write_text(f"This is the letter {each} of the archive.")
    return folder / "letters"


@pytest.mark.usefixtures("working")
async def test_a_folder_is_added_in_groups_and_all_of_it_can_be_searched(desk: Desk, tmp_path: Path) -> None:
    number = GROUP_FILES + 20
    outcome = await desk.add(letters(tmp_path, number))
    assert (outcome.completed, outcome.attached, outcome.failures) == (number, number, [])
    assert desk.statuses() == [DocumentStatus.COMPLETED] * number
    assert f"{number}/{number}" in desk.said
    assert f"{number} of {number} files can be searched in letters." in desk.said


@pytest.mark.usefixtures("working")
async def test_each_file_that_failed_is_named_with_its_reason(desk: Desk, tmp_path: Path) -> None:
    async def trip(text: str) -> None:
        if "unlucky" in text:
            raise ParseFailed(ParseFailure.CORRUPT, "Its middle is missing.")

    desk.parser.meanwhile = trip
    good, empty, unlucky = tmp_path / "good.txt", tmp_path / "empty.txt", tmp_path / "unlucky.txt"
    good.write_text("A letter.")
    empty.write_text("")
    unlucky.write_text("An unlucky letter.")
    outcome = await desk.add(good, empty, unlucky)
    assert (outcome.completed, len(outcome.failures)) == (1, 2)
    reasons = dict(outcome.failures)
    assert "empty" in reasons[empty]
    assert reasons[unlucky]
    for path, reason in outcome.failures:
        assert f"{path}: {reason}" in desk.said
    assert "2 failed" in desk.said


async def test_without_waiting_it_ends_once_all_is_on_the_server(desk: Desk, tmp_path: Path) -> None:
    outcome = await desk.add(letters(tmp_path, 3), wait=False)
    assert (outcome.attached, outcome.completed, outcome.failures) == (3, 0, [])
    assert desk.statuses() == [DocumentStatus.IN_PROGRESS] * 3
    assert "3 are on the server, which goes on with them." in desk.said


async def test_interrupted_it_says_what_the_server_goes_on_with(desk: Desk, tmp_path: Path) -> None:
    adding = asyncio.create_task(desk.add(letters(tmp_path, 3)))
    await until(lambda: b"/events" in desk.services.metrics.render())
    adding.cancel()
    with suppress(asyncio.CancelledError):
        await adding
    assert (
        "0 of 3 files can be searched in letters. 3 are on the server, which goes on with them." in desk.said
    )
    assert desk.statuses() == [DocumentStatus.IN_PROGRESS] * 3


async def test_ctrl_c_at_the_terminal_ends_the_command_and_not_the_work(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(desk.key)
    command = [sys.executable, "-m", "app.cli", "add", str(letters(tmp_path, 3)), "--url", desk.url]
    # In a shell's background the signal is ignored, by what the tests start as well.
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)
    adding = await asyncio.create_subprocess_exec(
        *command, "--key-file", str(tmp_path / "key"), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        # Its start is an import of most of the api.
        async with asyncio.timeout(60):
            while b"/events" not in desk.services.metrics.render():  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0.05)
        adding.send_signal(signal.SIGINT)
        said, _ = await asyncio.wait_for(adding.communicate(), 20)
    finally:
        signal.signal(signal.SIGINT, heeded)
        with suppress(ProcessLookupError):
            adding.kill()
    assert adding.returncode == 130
    assert b"3 are on the server, which goes on with them." in said
    assert desk.statuses() == [DocumentStatus.IN_PROGRESS] * 3


async def test_the_password_goes_with_each_file(desk: Desk, tmp_path: Path) -> None:
    await desk.add(letters(tmp_path, 2), password="open sesame", wait=False)
    with desk.services.database.read() as session:
        files = session.scalars(select(File)).all()
    assert [desk.services.sealer.open(file.password or b"", owner=file.id) for file in files] == [
        "open sesame"
    ] * 2


async def test_a_server_that_is_away_ends_it_with_one_reason(desk: Desk, tmp_path: Path) -> None:
    async with Remote("http://127.0.0.1:9", "any") as nobody:
        with pytest.raises(
            RemoteUnreachable, match=r"^http://127\.0\.0\.1:9 does not answer: connection refused$"
        ):
            await add_files(nobody, [tmp_path], "letters", console=Console(file=desk.screen))


async def test_an_address_that_is_none_is_told_as_such(desk: Desk, tmp_path: Path) -> None:
    async with Remote("nonsense", "any") as nobody:
        with pytest.raises(RemoteRefused, match="nonsense is no address of a server"):
            await add_files(nobody, [tmp_path], "letters", console=Console(file=desk.screen))


def test_folders_are_walked_for_what_is_read_and_nothing_hidden(tmp_path: Path) -> None:
    for name in ("b.txt", "inner/a.md", "program.exe", ".git/config.txt", "inner/.secret.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("A letter.")
    found = files_under([tmp_path, tmp_path / "program.exe", tmp_path / "b.txt"])
    assert found.files == [tmp_path / "b.txt", tmp_path / "inner/a.md", tmp_path / "program.exe"]
    assert found.left_out == 1
    with pytest.raises(PathMissing, match="absent"):
        files_under([tmp_path / "absent"])


def test_what_fits_a_pattern_is_taken_and_nothing_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.txt", "inner/a.md", "inner/c.txt", ".git/config.txt", "inner/.secret.txt", "[1].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("A letter.")
    monkeypatch.chdir(tmp_path)
    assert files_under([Path("**/*.txt")]).files == [Path("[1].txt"), Path("b.txt"), Path("inner/c.txt")]
    assert files_under([tmp_path / "inn*"]).files == [tmp_path / "inner/a.md", tmp_path / "inner/c.txt"]
    assert files_under([Path("[1].txt")]).files == [Path("[1].txt")]
    with pytest.raises(PathMissing, match=r"\*\.pdf"):
        files_under([Path("*.pdf")])


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"step": "queued"}, "queued"),
        ({"step": "embedding", "done": 1200, "unit": "characters"}, "embedding 1,200 characters"),
        (
            {"step": "parsing", "done": 40, "total": 120, "unit": "pages", "rate": 2.0, "seconds_left": 40.0},
            "parsing 40 of 120 pages, 2.0/s, 0:00:40 left",
        ),
        ({"step": "waiting", "waiting_for": 3}, "waiting, 3 files inside to go"),
    ],
)
def test_progress_is_told_in_a_few_words(told: dict[str, object], words: str) -> None:
    nothing = {"done": 0, "total": None, "unit": None, "rate": None, "seconds_left": None, "waiting_for": 0}
    assert describe({**nothing, **told}) == words
