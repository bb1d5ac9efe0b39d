"""The sandbox against files that do their worst: the file fails with a reason, the pool goes on, nothing gets out."""

import asyncio
import os
import platform
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from ingest.elements import Attachment, Parsed, ParsedPart, ParseFailed, ParseFailure, ParseOptions, Progress
from ingest.kinds import MediaType
from ingest.parse.confine import Isolation
from ingest.sandbox import ParserLimits, ParserPool
from tests.parts import joined

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
WILD = "tests.ingest.wild_child"
LIMITS = ParserLimits(
    memory_bytes=512 << 20,
    resident_bytes=400 << 20,
    file_bytes=2 << 20,
    folder_bytes=64 << 20,
    timeout_s=2.0,
    timeout_s_per_mib=0.0,
    timeout_s_per_page=0.5,
    recycle_at_bytes=100 << 20,
    pages=1_000,
    attachments=20,
    attachment_bytes=3 << 20,
)
UNSHARE = {"x86_64": 272, "aarch64": 97}
SECRET = "correct horse battery"

Obey = Callable[[str], Awaitable[str]]


@pytest.fixture
async def pool() -> AsyncIterator[ParserPool]:
    async with ParserPool(limits=LIMITS, child_module=WILD) as pool:
        yield pool


@pytest.fixture
def command(tmp_path: Path) -> Path:
    return tmp_path / "command"


@pytest.fixture
def obey(pool: ParserPool, command: Path) -> Obey:
    """Has the child do what the command says and gives the text of the document that it answers with."""

    async def obey(order: str) -> str:
        command.write_text(order)
        return await text_of(pool, command)

    return obey


async def found_in(pool: ParserPool, path: Path, options: ParseOptions = ParseOptions()) -> list[Parsed]:  # noqa: B008
    async with aclosing(pool.parse(path, MediaType.TEXT, options)) as found:
        return [parsed async for parsed in found]


async def text_of(pool: ParserPool, path: Path) -> str:
    return joined(await found_in(pool, path)).text


async def failure(work: Awaitable[object]) -> ParseFailed:
    with pytest.raises(ParseFailed) as caught:
        await work
    return caught.value


async def test_a_child_takes_one_file_after_the_other(obey: Obey) -> None:
    assert await obey("pid") == await obey("pid")


HUGE_FRAME = "answer \x02" + "\x7f" * 8
TEXT_WITHOUT_PART = "answer \x03\0\0\0\0\0\0\0\x02{}"
PART_OF_NONSENSE = "answer \x02\0\0\0\0\0\0\0\x02{}\x03\0\0\0\0\0\0\0\0"
NO_KIND_OF_FRAME = "answer \x63\0\0\0\0\0\0\0\x02{}"
NO_VERDICT = "answer \x06\0\0\0\0\0\0\0\x02{}"


@pytest.mark.parametrize(
    ("order", "code"),
    [
        ("hang", ParseFailure.LIMIT),
        ("spin", ParseFailure.LIMIT),
        ("allocate", ParseFailure.LIMIT),
        ("swell 6", ParseFailure.LIMIT),
        ("fill", ParseFailure.LIMIT),
        ("fork", ParseFailure.LIMIT),
        ("die SIGSEGV", ParseFailure.CORRUPT),
        ("die SIGABRT", ParseFailure.CORRUPT),
        ("die SIGXCPU", ParseFailure.LIMIT),
        ("exit", ParseFailure.CORRUPT),
        (HUGE_FRAME, ParseFailure.TOO_LARGE),
        (TEXT_WITHOUT_PART, ParseFailure.CORRUPT),
        (PART_OF_NONSENSE, ParseFailure.CORRUPT),
        (NO_KIND_OF_FRAME, ParseFailure.CORRUPT),
        (NO_VERDICT, ParseFailure.CORRUPT),
        ("flood 2", ParseFailure.CORRUPT),
        ("flood 3", ParseFailure.CORRUPT),
        ("flood 5", ParseFailure.CORRUPT),
        ("gap", ParseFailure.CORRUPT),
        ("pages-without-end", ParseFailure.TOO_LARGE),
        ("attach 21", ParseFailure.TOO_LARGE),
        ("attach-link /etc/hostname", ParseFailure.CORRUPT),
    ],
)
async def test_what_a_file_does_to_its_child_is_the_files_failure_and_the_next_one_parses(
    obey: Obey, order: str, code: ParseFailure
) -> None:
    before = await obey("pid")
    async with asyncio.timeout(LIMITS.timeout_s + 2):
        failed = await failure(obey(order))
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


async def test_a_child_that_hangs_up_and_lives_on_is_given_up(obey: Obey) -> None:
    assert (await failure(obey("close"))).code is ParseFailure.CORRUPT
    await obey("pid")


async def test_a_child_that_nobody_needs_yet_has_not_loaded_the_parsers(tmp_path: Path) -> None:
    (letter := tmp_path / "letter.txt").write_text("The key hangs in the hall.")
    ours = psutil.Process()
    before = ours.children()
    async with ParserPool() as pool:
        [child] = (each for each in ours.children() if each not in before)
        while not (idle := libraries_of(child)):  # noqa: ASYNC110 - a process, not a task
            await asyncio.sleep(0.02)
        assert "The key hangs" in await text_of(pool, letter)
        assert len(libraries_of(child)) > 2 * len(idle)


def libraries_of(child: psutil.Process) -> set[str]:
    """Shared objects in the memory of the program that parses; none until it runs."""
    inner = [
        each for each in [child, *child.children(recursive=True)] if "ingest.parse.child" in each.cmdline()
    ]
    maps = [Path(f"/proc/{each.pid}/maps").read_text() for each in inner[-1:]]
    return {line.split()[-1] for text in maps for line in text.splitlines() if ".so" in line}


async def test_what_libraries_print_does_not_disturb_the_answers(obey: Obey) -> None:
    assert await obey("print") == await obey("pid")


async def test_a_child_that_grew_too_large_is_replaced(obey: Obey) -> None:
    before = await obey("grow 120")
    assert await obey("pid") != before


async def test_a_child_is_replaced_after_its_share_of_files(command: Path) -> None:
    command.write_text("pid")
    async with ParserPool(limits=ParserLimits(recycle_after_files=2), child_module=WILD) as pool:
        pids = [await text_of(pool, command) for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


async def test_the_parts_of_a_document_come_one_by_one_and_in_order(pool: ParserPool, command: Path) -> None:
    command.write_text("stream 4")
    parts = await found_in(pool, command)
    assert [part.start_char for part in parts if isinstance(part, ParsedPart)] == [
        0,
        200_000,
        400_000,
        600_000,
    ]
    assert len(joined(parts).text) == 800_000


async def test_a_slow_reader_costs_a_document_nothing_of_its_time(pool: ParserPool, command: Path) -> None:
    command.write_text("stream 40")
    started = time.monotonic()
    parts = 0
    async with aclosing(pool.parse(command, MediaType.TEXT)) as found:
        async for _ in found:
            parts += 1
            await asyncio.sleep(2 * LIMITS.timeout_s / 40)
    assert parts == 40
    assert time.monotonic() - started > LIMITS.timeout_s


async def read_until_failure(pool: ParserPool, path: Path, pause_s: float) -> tuple[int, float, ParseFailed]:
    """How many parts came, when the last was read, and the failure after them."""
    parts, read_at = 0, time.monotonic()

    async def read() -> None:
        nonlocal parts, read_at
        async with aclosing(pool.parse(path, MediaType.TEXT)) as found:
            async for _ in found:
                parts += 1
                await asyncio.sleep(pause_s)
                read_at = time.monotonic()

    failed = await failure(read())
    return parts, read_at, failed


async def test_a_child_that_hangs_after_some_parts_is_given_up_though_its_reader_was_slow(
    pool: ParserPool, command: Path
) -> None:
    command.write_text("stream-then-hang 3")
    parts, read_at, failed = await read_until_failure(pool, command, pause_s=0.5)
    assert (parts, failed.code) == (3, ParseFailure.LIMIT)
    assert time.monotonic() - read_at < LIMITS.timeout_s + 1


async def test_a_child_that_dies_after_some_parts_fails_the_file(pool: ParserPool, command: Path) -> None:
    command.write_text("stream-then-die 3")
    parts, _, failed = await read_until_failure(pool, command, pause_s=0)
    assert (parts, failed.code) == (3, ParseFailure.CORRUPT)


async def test_a_child_waits_for_its_reader_so_that_no_document_is_held_whole(
    pool: ParserPool, command: Path
) -> None:
    command.write_text("stream 400")
    async with aclosing(pool.parse(command, MediaType.TEXT)) as found:
        async for _ in found:
            await asyncio.sleep(0.5)
            break
        children = [slot.result() for slot in pool._slots_in_use]
        assert len(children[0]._replies._buffer) < 8 << 20  # type: ignore[attr-defined]


async def test_pages_that_are_done_give_a_long_document_more_time(pool: ParserPool, command: Path) -> None:
    command.write_text("pages 6")
    found = await found_in(pool, command)
    told = [one for one in found if isinstance(one, Progress)]
    assert told
    assert {progress.page_count for progress in told} == {6}
    assert LIMITS.timeout_s < 6 * 0.4


async def test_what_is_larger_than_a_document_may_be_is_refused(command: Path) -> None:
    command.write_text("stream 4")
    limits = ParserLimits(document_bytes=500_000)
    async with ParserPool(limits=limits, child_module=WILD) as pool:
        assert (await failure(found_in(pool, command))).code is ParseFailure.TOO_LARGE


async def test_files_within_a_file_are_there_until_the_next_step(pool: ParserPool, command: Path) -> None:
    command.write_text("attach 3")
    seen: list[tuple[str, str]] = []
    paths: list[Path] = []
    async with aclosing(pool.parse(command, MediaType.TEXT)) as found:
        async for one in found:
            if isinstance(one, Attachment):
                seen.append((one.name, one.path.read_text()))
                paths.append(one.path)
    assert seen == [(f"folder/{number}.txt", f"file {number}") for number in range(3)]
    assert not any(path.exists() for path in paths)


async def test_files_within_a_file_are_bounded_by_their_bytes(pool: ParserPool, command: Path) -> None:
    command.write_text("attach-large 1")
    await found_in(pool, command)
    tight = ParserLimits(attachment_bytes=1 << 10)
    async with ParserPool(limits=tight, child_module=WILD) as narrow:
        assert (await failure(found_in(narrow, command))).code is ParseFailure.TOO_LARGE


async def test_closing_a_parse_early_kills_its_child_and_frees_its_place(
    pool: ParserPool, command: Path, obey: Obey
) -> None:
    pid = int(await obey("pid"))
    command.write_text("stream-then-hang 1")
    async with aclosing(pool.parse(command, MediaType.TEXT)) as found:
        async for _ in found:
            break
        started = time.monotonic()
    await gone(pid)
    assert int(await obey("pid")) != pid
    assert time.monotonic() - started < 2


async def test_cancelling_kills_the_child_and_frees_its_place(pool: ParserPool, obey: Obey) -> None:
    pid = int(await obey("pid"))
    parsing = asyncio.create_task(asyncio.wait_for(obey("hang"), 60))
    await asyncio.sleep(0.2)
    parsing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await parsing
    await gone(pid)
    assert int(await obey("pid")) != pid


async def test_what_a_parser_starts_ends_with_its_child(pool: ParserPool, command: Path) -> None:
    command.write_text("spawn and hang")
    async with aclosing(pool.parse(command, MediaType.TEXT)) as found:
        async for part in found:
            assert isinstance(part, ParsedPart)
            pid = int(part.text)
            break
        assert is_running(pid)
    await gone(pid)


async def test_a_child_that_leaves_a_process_behind_is_replaced(obey: Obey) -> None:
    before = await obey("pid")
    left = int(await obey("spawn"))
    assert await obey("pid") != before
    await gone(left)


async def test_what_a_parser_leaves_in_its_folder_is_removed(obey: Obey) -> None:
    await obey("leave")
    assert await obey("left") == "nothing"


async def test_no_child_outlives_the_pool(command: Path) -> None:
    command.write_text("pid")
    async with ParserPool(child_module=WILD) as pool:
        pid = int(await text_of(pool, command))
    await gone(pid)


async def test_no_child_outlives_a_pool_that_is_closed_while_one_hangs(command: Path) -> None:
    command.write_text("pid")
    async with ParserPool(child_module=WILD) as pool:
        pid = int(await text_of(pool, command))
        command.write_text("hang")
        parsing = asyncio.create_task(text_of(pool, command))
        await asyncio.sleep(0.2)
        parsing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await parsing
    await gone(pid)


async def test_nothing_outlives_a_worker_that_is_killed_and_the_next_one_removes_its_folder(
    tmp_path: Path, command: Path
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    command.write_text("spawn and hang")
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        WORKER,
        str(command),
        str(folder),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
    )
    assert worker.stdout is not None
    async with asyncio.timeout(60):
        closed_early = int(await worker.stdout.readline())
        spawned = int(await worker.stdout.readline())
    await gone(closed_early)
    async with ParserPool(child_module=WILD, temporary_folder=folder):
        assert len(list(folder.iterdir())) == 2, "a living worker keeps its folder"
        worker.send_signal(signal.SIGKILL)
        await worker.wait()
        await gone(spawned)
    assert len(list(folder.iterdir())) == 1
    async with ParserPool(child_module=WILD, temporary_folder=folder):
        assert len(list(folder.iterdir())) == 1
    assert not list(folder.iterdir())


@pytest.mark.skipif(
    platform.machine() not in UNSHARE, reason="the number of unshare is known for two machines"
)
async def test_nothing_outlives_a_worker_that_is_killed_where_there_are_no_namespaces(
    tmp_path: Path, command: Path
) -> None:
    command.write_text("spawn and hang")
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WITHOUT_NAMESPACES + WORKER, str(command), str(tmp_path)),
        str(UNSHARE[platform.machine()]),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
    )
    assert worker.stdout is not None
    async with asyncio.timeout(60):
        closed_early = int(await worker.stdout.readline())
        spawned = int(await worker.stdout.readline())
        isolation = Isolation(int(await worker.stdout.readline()))
    await gone(closed_early)
    assert is_running(spawned)
    assert Isolation.PROCESSES not in isolation
    worker.send_signal(signal.SIGKILL)
    await worker.wait()
    await gone(spawned)


WITHOUT_NAMESPACES = """
import ctypes, struct, sys
# As containers do by default: a filter of two steps that forbids one system call.
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, int(sys.argv[3])), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program)), 0, 0) == 0
"""
WORKER = """
import asyncio, sys
from contextlib import aclosing
from pathlib import Path
from ingest.sandbox import ParserPool

async def main():
    pool = ParserPool(child_module="tests.ingest.wild_child", temporary_folder=Path(sys.argv[2]))
    async with pool:
        async with aclosing(pool.parse(Path(sys.argv[1]), "text/plain")) as found:
            async for part in found:
                print(part.text, flush=True)
                break
        async for part in pool.parse(Path(sys.argv[1]), "text/plain"):
            print(part.text, pool.isolation.value, sep="\\n", flush=True)

asyncio.run(main())
"""


async def gone(pid: int) -> None:
    """Returns when the process has ended; fails after two seconds."""
    async with asyncio.timeout(2):
        while is_running(pid):  # noqa: ASYNC110 - it is no child of ours, so nothing tells us
            await asyncio.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        # A killed worker's children may wait for whoever reaps them.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def needs(pool: ParserPool, isolation: Isolation) -> None:
    if isolation not in pool.isolation:
        pytest.skip(f"this system does not isolate: {isolation.name}")


async def test_a_child_has_no_network(pool: ParserPool, obey: Obey) -> None:
    needs(pool, Isolation.NETWORK)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert await obey(f"connect {server.getsockname()[1]}") == "refused"


@pytest.mark.parametrize("path", ["/etc/shadow", "/etc/hostname", "/root", "/home", "/var/log", "/tmp"])
async def test_a_child_reads_nothing_of_the_system_but_programs(
    pool: ParserPool, obey: Obey, path: str
) -> None:
    needs(pool, Isolation.FILESYSTEM)
    assert await obey(f"{'list' if Path(path).is_dir() else 'read'} {path}") == "refused"


async def test_a_child_reads_its_own_file_and_no_other(pool: ParserPool, obey: Obey, tmp_path: Path) -> None:
    needs(pool, Isolation.FILESYSTEM)
    other = tmp_path / "other"
    other.write_text("of another tenant")
    assert await obey(f"read {other}") == "refused"
    assert await obey(f"link {other}") == "refused"
    assert await obey(f"read {REPOSITORY / 'pyproject.toml'}") == "refused"
    assert await obey(f"list {tmp_path}") == "refused"


async def test_a_child_changes_neither_its_file_nor_others(
    pool: ParserPool, obey: Obey, command: Path, tmp_path: Path
) -> None:
    needs(pool, Isolation.FILESYSTEM)
    assert await obey("overwrite") == "refused"
    assert command.read_text() == "overwrite"
    assert await obey(f"overwrite {tmp_path / 'new'}") == "refused"
    assert await obey(f"overwrite {REPOSITORY / 'ingest' / 'new.py'}") == "refused"
    assert await obey("overwrite mine") == "4"


async def test_a_child_learns_nothing_of_the_worker(pool: ParserPool, obey: Obey) -> None:
    needs(pool, Isolation.FILESYSTEM)
    assert await obey(f"read /proc/{os.getpid()}/environ") == "refused"
    assert await obey(f"signal {os.getpid()}") == "refused"


async def test_a_child_has_no_capabilities(obey: Obey) -> None:
    assert int(await obey("capabilities"), 16) == 0


async def test_a_child_sees_no_environment_of_ours(command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRONGROOM_MASTER_KEY", "secret")
    command.write_text("environment")
    async with ParserPool(child_module=WILD) as pool:
        seen = await text_of(pool, command)
    assert "STRONGROOM" not in seen
    assert "DO_NOT_TRACK=1" in seen


async def test_a_password_reaches_the_parser_and_no_list_of_processes(
    pool: ParserPool, command: Path
) -> None:
    command.write_text("password and hang")
    options = ParseOptions(password=SECRET)
    async with aclosing(pool.parse(command, MediaType.TEXT, options)) as found:
        async for part in found:
            assert isinstance(part, ParsedPart)
            assert part.text.startswith(SECRET)
            shown = [content for path in Path("/proc").glob("[0-9]*") for content in shown_of(path)]
            assert any(WILD.encode() in content for content in shown)
            assert not any(SECRET.encode() in content for content in shown)
            break
    assert SECRET not in repr(options)


def shown_of(process: Path) -> list[bytes]:
    try:
        return [(process / name).read_bytes() for name in ("cmdline", "environ")]
    except OSError:
        return []


async def test_a_child_cannot_write_a_large_file(obey: Obey) -> None:
    assert await obey("write 1") == "written"
    assert await obey("write 3") == "refused"


async def test_two_children_parse_at_once(command: Path) -> None:
    command.write_text("pid")
    async with ParserPool(2, child_module=WILD) as pool:
        pids = await asyncio.gather(*(text_of(pool, command) for _ in range(8)))
    assert len(set(pids)) == 2


@pytest.mark.parametrize("order", ["run tesseract --list-langs", "run pandoc --version", "run fc-list"])
async def test_programs_that_parsers_need_run_in_a_child(command: Path, order: str) -> None:
    if shutil.which(order.split()[1]) is None:
        pytest.skip(f"{order.split()[1]} is not installed")
    command.write_text(order)
    async with ParserPool(child_module=WILD) as pool:
        assert (await text_of(pool, command)).startswith("0 ")


async def test_libreoffice_converts_a_document_in_a_child(command: Path) -> None:
    if shutil.which("soffice") is None:
        pytest.skip("LibreOffice is not installed")
    command.write_text("convert soffice --headless --convert-to doc")
    async with ParserPool(child_module=WILD) as pool:
        assert int(await text_of(pool, command)) > 1000


async def test_a_child_that_cannot_start_fails_the_file_and_not_the_worker(command: Path) -> None:
    command.write_text("pid")
    async with ParserPool(child_module="tests.no_such_module") as pool:
        for _ in range(2):
            assert (await failure(found_in(pool, command))).transient
