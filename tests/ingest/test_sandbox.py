"""The sandbox against files that do their worst: the file fails with a reason, the pool goes on, nothing gets out."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from ingest.elements import ParseFailed, ParseFailure
from ingest.media_types import MediaType
from ingest.sandbox import ParserLimits, ParserPool

REPOSITORY = Path(__file__).parents[2]
LIMITS = ParserLimits(
    memory_bytes=512 << 20,
    file_bytes=1 << 20,
    timeout_s=1.5,
    timeout_s_per_mib=0.0,
    recycle_at_bytes=200 << 20,
)

Obey = Callable[[str], Awaitable[str]]


@pytest.fixture
async def pool() -> AsyncIterator[ParserPool]:
    async with ParserPool(limits=LIMITS, child_module="tests.ingest.wild_child") as pool:
        yield pool


@pytest.fixture
def obey(pool: ParserPool, tmp_path: Path) -> Obey:
    """Has the child do what the command says and gives the text of the document that it answers with."""

    async def obey(command: str) -> str:
        path = tmp_path / "command"
        path.write_text(command)
        return (await pool.parse(path, MediaType.TEXT)).text

    return obey


async def failure(work: Awaitable[str]) -> ParseFailed:
    with pytest.raises(ParseFailed) as caught:
        await work
    return caught.value


async def test_a_child_takes_one_file_after_the_other(obey: Obey) -> None:
    assert await obey("pid") == await obey("pid")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("hang", ParseFailure.LIMIT),
        ("allocate", ParseFailure.LIMIT),
        ("die SIGSEGV", ParseFailure.CORRUPT),
        ("die SIGABRT", ParseFailure.CORRUPT),
        ("die SIGXCPU", ParseFailure.LIMIT),
        ("exit", ParseFailure.CORRUPT),
        ("answer 12345678nonsense", ParseFailure.TOO_LARGE),
        ("answer \0\0\0\0\0\0\0\x02{}\0\0\0\0\0\0\0\0", ParseFailure.CORRUPT),
    ],
)
async def test_what_a_file_does_to_its_child_is_the_files_failure_and_the_next_one_parses(
    obey: Obey, command: str, code: ParseFailure
) -> None:
    before = await obey("pid")
    failed = await failure(obey(command))
    assert failed.code is code
    assert not failed.transient
    assert await obey("pid") != before


async def test_a_child_killed_from_outside_is_worth_another_try(obey: Obey) -> None:
    failed = await failure(obey("die SIGKILL"))
    assert failed.code is ParseFailure.INTERRUPTED
    assert failed.transient


async def test_an_exception_of_a_library_fails_the_file_and_keeps_the_child(obey: Obey) -> None:
    before = await obey("pid")
    assert (await failure(obey("raise word/document.xml"))).code is ParseFailure.CORRUPT
    assert await obey("pid") == before


async def test_a_hanging_file_is_given_up_in_time(obey: Obey) -> None:
    await obey("pid")
    started = time.monotonic()
    await failure(obey("hang"))
    assert time.monotonic() - started < LIMITS.timeout_s + 1


async def test_what_libraries_print_does_not_disturb_the_answers(obey: Obey) -> None:
    assert await obey("print") == await obey("pid")


async def test_a_child_that_grew_too_large_is_replaced(obey: Obey) -> None:
    before = await obey("grow 250")
    assert await obey("pid") != before


async def test_a_child_is_replaced_after_its_share_of_files(tmp_path: Path) -> None:
    limits = ParserLimits(recycle_after_files=2)
    path = tmp_path / "command"
    path.write_text("pid")
    async with ParserPool(limits=limits, child_module="tests.ingest.wild_child") as pool:
        pids = [(await pool.parse(path, MediaType.TEXT)).text for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


async def test_cancelling_kills_the_child_and_frees_its_place(pool: ParserPool, obey: Obey) -> None:
    pid = int(await obey("pid"))
    parsing = asyncio.create_task(asyncio.wait_for(obey("hang"), 60))
    await asyncio.sleep(0.2)
    parsing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await parsing
    await gone(pid)
    assert int(await obey("pid")) != pid


async def test_no_child_outlives_the_pool(tmp_path: Path) -> None:
    path = tmp_path / "command"
    path.write_text("pid")
    async with ParserPool(child_module="tests.ingest.wild_child") as pool:
        pid = int((await pool.parse(path, MediaType.TEXT)).text)
    await gone(pid)


async def test_no_child_outlives_a_pool_that_is_closed_while_one_hangs(tmp_path: Path) -> None:
    path = tmp_path / "command"
    path.write_text("pid")
    async with ParserPool(child_module="tests.ingest.wild_child") as pool:
        pid = int((await pool.parse(path, MediaType.TEXT)).text)
        path.write_text("hang")
        parsing = asyncio.create_task(pool.parse(path, MediaType.TEXT))
        await asyncio.sleep(0.2)
        parsing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await parsing
    await gone(pid)


async def test_no_child_outlives_a_worker_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "command"
    path.write_text("pid")
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, str(path), stdout=asyncio.subprocess.PIPE, cwd=REPOSITORY
    )
    assert worker.stdout is not None
    pid = int(await worker.stdout.readline())
    worker.send_signal(signal.SIGKILL)
    await worker.wait()
    await gone(pid)


WORKER = """
import asyncio, sys
from pathlib import Path
from ingest.sandbox import ParserPool

async def main():
    async with ParserPool(child_module="tests.ingest.wild_child") as pool:
        document = await pool.parse(Path(sys.argv[1]), "text/plain")
        print(document.text, flush=True)
        Path(sys.argv[1]).write_text("hang")
        await pool.parse(Path(sys.argv[1]), "text/plain")

asyncio.run(main())
"""


async def gone(pid: int) -> None:
    """Returns when the process has ended; fails after two seconds."""
    async with asyncio.timeout(2):
        while is_running(pid):  # noqa: ASYNC110 - it is no child of ours, so nothing tells us
            await asyncio.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A killed worker's children may wait for whoever reaps them.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


async def test_a_child_has_no_network(pool: ParserPool, obey: Obey) -> None:
    if not pool.isolated:
        pytest.skip("this system allows neither network nor user namespaces")
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert await obey(f"connect {server.getsockname()[1]}") == "refused"


async def test_a_child_sees_no_environment_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRONGROOM_MASTER_KEY", "secret")
    path = tmp_path / "command"
    path.write_text("environment")
    async with ParserPool(child_module="tests.ingest.wild_child") as pool:
        seen = (await pool.parse(path, MediaType.TEXT)).text
    assert "STRONGROOM" not in seen
    assert "DO_NOT_TRACK=1" in seen


async def test_a_child_cannot_fill_the_disk(obey: Obey) -> None:
    assert await obey("write 2") == "refused"


async def test_two_children_parse_at_once(tmp_path: Path) -> None:
    path = tmp_path / "command"
    path.write_text("pid")
    async with ParserPool(2, child_module="tests.ingest.wild_child") as pool:
        pids = await asyncio.gather(*(pool.parse(path, MediaType.TEXT) for _ in range(8)))
    assert len({pid.text for pid in pids}) == 2


async def test_a_child_that_cannot_start_fails_the_file_and_not_the_worker(tmp_path: Path) -> None:
    path = tmp_path / "command"
    path.write_text("pid")
    async with ParserPool(child_module="tests.no_such_module") as pool:
        for _ in range(2):
            with pytest.raises(ParseFailed) as caught:
                await pool.parse(path, MediaType.TEXT)
            assert caught.value.transient
