"""One tenant's huge files and bombs: another tenant's small files come in beside them as if they were not there."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from app.settings import Settings
from tests.bench.corpora import SHARED
from tests.faults.big_files import MIB, BigFileStack, write_pdf, write_text
from tests.stack import ROOT, eventually

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

BOMB = SHARED / "hostile" / "bombs" / "poi__poc-shared-strings.xlsx"
PLACES = Settings().ingest.concurrency
BOMBS = 4 * Settings().ingest.parsers
NOTES = 5
IN_TIME_S = 10.0
"""Of a small file, from its upload until it is completed. Alone it takes a second; the cores are shared."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BigFileStack]:
    with BigFileStack.running(tmp_path_factory.mktemp("others")) as running:
        yield running


@pytest.fixture(scope="module")
def other_tenant(stack: BigFileStack) -> Iterator[OpenAI]:
    command = [
        sys.executable,
        "-m",
        "app.cli",
        "keys",
        "add",
        "other",
        "--role",
        "writer",
        "--tenant",
        "south",
    ]
    made = subprocess.run(
        [*command, "--data-dir", str(stack.stack.folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    with OpenAI(base_url=f"{stack.stack.url}/v1", api_key=made.stdout.strip(), max_retries=0) as client:
        yield client


def seconds_of_notes(client: OpenAI, folder: Path) -> list[float]:
    """Of one small file after the other, each of new content, until it is completed."""
    store = client.vector_stores.create(name="notes")
    taken = []
    for number in range(NOTES):
        note = folder / f"note-{number}.txt"
        note.write_text(f"{folder.name}: the password of locker {number} is marigold{number}.")
        started = time.monotonic()
        file = client.files.create(file=note, purpose="assistants")
        document = client.vector_stores.files.create_and_poll(
            file.id, vector_store_id=store.id, poll_interval_ms=50
        )
        taken.append(time.monotonic() - started)
        assert document.status == "completed", document.last_error
    return taken


@pytest.mark.parametrize(("kind", "count"), [("pdf", 1), ("txt", 1), ("pdf", PLACES)])
def test_small_files_of_another_tenant_come_in_while_huge_ones_do(
    stack: BigFileStack, other_tenant: OpenAI, tmp_path: Path, kind: str, count: int
) -> None:
    """The last time as many as the worker has places, so that only sharing leaves one for others."""
    first = tmp_path / f"huge.{kind}"
    if kind == "pdf":
        write_pdf(first, pages=1_500)
    else:
        write_text(first, size_bytes=24 * MIB)
    huge = [stack.add(path) for path in different_copies(first, count, into=tmp_path)]
    eventually(lambda: any(step_of(stack, each) not in (None, "queued") for each in huge), within_s=60)
    taken = seconds_of_notes(other_tenant, tmp_path)
    cancelled = [stack.ask_cancel(each) for each in huge]
    assert "cancelled" in cancelled, "the huge files were in before the small ones: nothing was shown"
    assert max(taken) < IN_TIME_S, taken


def test_bombs_in_all_parsers_hold_no_one_up(
    stack: BigFileStack, other_tenant: OpenAI, tmp_path: Path
) -> None:
    if not BOMB.exists():
        pytest.skip(f"{BOMB} is absent")
    bombs = [stack.add(path) for path in different_copies(BOMB, BOMBS, into=tmp_path)]
    taken = seconds_of_notes(other_tenant, tmp_path)
    assert max(taken) < IN_TIME_S, taken
    eventually(lambda: all(stack.document(each)["status"] == "failed" for each in bombs), within_s=180)
    assert all(stack.document(each)["last_error"]["message"] for each in bombs)


def different_copies(path: Path, count: int, *, into: Path) -> list[Path]:
    """With some bytes more at the end of each: a file is parsed once."""
    copies = []
    for number in range(count):
        copies.append(into / f"{number}-{path.name}")
        copies[-1].write_bytes(path.read_bytes() + b"\n" * number)
    return copies


def step_of(stack: BigFileStack, file_id: str) -> str | None:
    progress = stack.document(file_id)["progress"]
    return None if progress is None else str(progress["step"])
