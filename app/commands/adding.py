"""`strongroom add`: uploads files in groups, attaches each group as a file batch, and shows how far all of it is."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from app.commands.remote import Json, Remote, RemoteRefused, RemoteUnreachable
from ingest.media_types import SUPPORTED_EXTENSIONS
from retrieval.together import together

UPLOADS_AT_ONCE = 8
GROUPS_AT_ONCE = 4
"""So many batches the worker has to choose from, while the next group is uploaded."""
GROUP_FILES = 200
GROUP_BYTES = 64 * 1024 * 1024
MOST_LINES = 10
"""Files that are shown one by one."""


class PathMissing(Exception):
    """What was to be added is not there."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} does not exist, and no file fits it as a pattern.")


@dataclass(frozen=True)
class Found:
    """What stands under the paths to add. `left_out` counts files of folders that are of no kind that is read."""

    files: list[Path]
    left_out: int


@dataclass
class Outcome:
    """What became of the files so far."""

    attached: int = 0
    """Queued on the server."""
    completed: int = 0
    ended: int = 0
    """Of those attached: completed, failed or cancelled."""
    refused: int = 0
    """Never attached."""
    failures: list[tuple[Path, str]] = field(default_factory=list)
    """With the reason."""


def files_under(paths: Sequence[Path], *, except_name: str | None = None) -> Found:
    """Files as named or by patterns, and those of folders whose kind is read; nothing hidden. Raises PathMissing."""
    files: list[Path] = []
    left_out = 0
    for path in chain.from_iterable(map(_named, paths)):
        if not path.is_dir():
            files.append(path)
            continue
        for each in sorted(path.rglob("*")):
            inside = each.relative_to(path).parts
            if any(part.startswith(".") for part in inside) or each.name == except_name or not each.is_file():
                continue
            if each.suffix.lower() in SUPPORTED_EXTENSIONS:
                files.append(each)
            else:
                left_out += 1
    return Found(files=list(dict.fromkeys(files)), left_out=left_out)


async def add_files(
    remote: Remote,
    files: Sequence[Path],
    collection: str,
    *,
    console: Console,
    password: str | None = None,
    wait: bool = True,
) -> Outcome:
    """Uploads, and waits until all can be searched or have failed, unless `wait` is off. Prints what failed and why.

    Raises RemoteUnreachable. When it is cancelled it tells what the server goes on with.
    """
    outcome = Outcome()
    try:
        collection_id = await remote.collection(collection)
        with _Board(console, f"Adding to {collection}", total=len(files)) as board:
            adding = _Adding(remote, collection_id, board, outcome, password=password, wait=wait)
            await adding.run(files)
    finally:
        # Also when it was interrupted: the server goes on without us.
        _print_outcome(console, outcome, len(files), collection)
    return outcome


class _Adding:
    """One run. Groups go through upload, attach and wait; a few of them at once."""

    def __init__(
        self,
        remote: Remote,
        collection_id: str,
        board: "_Board",
        outcome: Outcome,
        *,
        password: str | None,
        wait: bool,
    ) -> None:
        self._remote = remote
        self._collection_id = collection_id
        self._board = board
        self._outcome = outcome
        self._password = password
        self._wait = wait
        self._uploads = asyncio.Semaphore(UPLOADS_AT_ONCE)
        self._groups = asyncio.Semaphore(GROUPS_AT_ONCE)

    async def run(self, files: Sequence[Path]) -> None:
        async with together() as tasks:
            for group in _groups(files):
                await self._groups.acquire()
                task = tasks.create_task(self._add(group))
                task.add_done_callback(lambda _: self._groups.release())

    async def _add(self, group: Sequence[Path]) -> None:
        uploaded: dict[str, Path] = {}
        batch_id: str | None = None
        try:
            async with together() as tasks:
                for path in group:
                    tasks.create_task(self._upload(path, uploaded))
            if uploaded:
                batch_id = await self._remote.attach(self._collection_id, list(uploaded))
        except RemoteUnreachable:
            raise
        except RemoteRefused as error:
            for path in uploaded.values():
                self._refuse(path, str(error))
        finally:
            if batch_id is None:
                # In no collection, nobody would find them.
                removing = (self._remote.remove(file_id) for file_id in uploaded)
                await asyncio.gather(*removing, return_exceptions=True)
        if batch_id is not None:
            self._outcome.attached += len(uploaded)
            if self._wait:
                await self._follow(batch_id, uploaded)
            else:
                self._board.advance(len(uploaded))

    async def _upload(self, path: Path, uploaded: dict[str, Path]) -> None:
        async with self._uploads:
            with self._board.uploading(path):
                try:
                    uploaded[await self._remote.upload(path, password=self._password)] = path
                except RemoteUnreachable:
                    raise
                except (RemoteRefused, OSError) as error:
                    self._refuse(path, str(error))

    async def _follow(self, batch_id: str, paths: Mapping[str, Path]) -> None:
        completed = ended = 0
        async for told in self._remote.batch_events(self._collection_id, batch_id):
            counts = told["file_counts"]
            self._outcome.completed += counts["completed"] - completed
            self._outcome.ended += len(paths) - counts["in_progress"] - ended
            self._board.advance(len(paths) - counts["in_progress"] - ended)
            completed, ended = counts["completed"], len(paths) - counts["in_progress"]
            self._board.show(batch_id, {paths[each["id"]]: each["progress"] for each in told["running"]})
        if completed < len(paths):
            async for document in self._remote.unfinished(self._collection_id, batch_id):
                error = document["last_error"]
                reason = error["message"] if error is not None else "It was cancelled."
                self._outcome.failures.append((paths[document["id"]], reason))

    def _refuse(self, path: Path, reason: str) -> None:
        self._outcome.refused += 1
        self._outcome.failures.append((path, reason))
        self._board.advance(1)


class _Board:
    """What is seen meanwhile: a bar for all files, and a line for each that is in hand."""

    def __init__(self, console: Console, title: str, *, total: int) -> None:
        self._all = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _FilesPerSecond(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._each = Progress(
            TextColumn("  {task.description}", markup=False),
            TextColumn("{task.fields[told]}", markup=False, style="dim"),
        )
        self._live = Live(Group(self._all, self._each), console=console, refresh_per_second=4)
        self._bar = self._all.add_task(title, total=total)
        self._lines: dict[tuple[str, Path], TaskID] = {}

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        for line in self._lines.values():
            self._each.remove_task(line)
        self._live.stop()
        if not self._live.console.is_terminal:
            self._live.console.line()

    def advance(self, files: int) -> None:
        self._all.advance(self._bar, files)

    @contextmanager
    def uploading(self, path: Path) -> Iterator[None]:
        self._set(("upload", path), "uploading")
        try:
            yield
        finally:
            self._drop(("upload", path))

    def show(self, batch_id: str, running: Mapping[Path, Json | None]) -> None:
        """The files of a batch that the worker has in hand, instead of those before."""
        for line in [each for each in self._lines if each[0] == batch_id and each[1] not in running]:
            self._drop(line)
        for path, progress in running.items():
            if progress is not None:
                self._set((batch_id, path), describe(progress))

    def _set(self, line: tuple[str, Path], told: str) -> None:
        if line in self._lines:
            self._each.update(self._lines[line], told=told)
        elif len(self._lines) < MOST_LINES:
            self._lines[line] = self._each.add_task(line[1].name, told=told)

    def _drop(self, line: tuple[str, Path]) -> None:
        if line in self._lines:
            self._each.remove_task(self._lines.pop(line))


class _FilesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed is not None else "", style="progress.data.speed")


def describe(progress: Json) -> str:
    """`progress` of a vector store file in a few words."""
    told = str(progress["step"])
    if progress["total"] is not None:
        told += f" {progress['done']:,} of {progress['total']:,} {progress['unit'] or ''}".rstrip()
    elif progress["done"]:
        told += f" {progress['done']:,} {progress['unit'] or ''}".rstrip()
    if progress["waiting_for"]:
        told += f", {progress['waiting_for']:,} files inside to go"
    if progress["rate"]:
        told += f", {progress['rate']:,.1f}/s"
    if progress["seconds_left"] is not None:
        told += f", {timedelta(seconds=round(progress['seconds_left']))} left"
    return told


def _named(path: Path) -> list[Path]:
    """Itself, or what fits it as a pattern, which shells leave to us in quotes; nothing hidden. Raises PathMissing."""
    if path.exists():
        return [path]
    fitting = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    named = [
        each for each in fitting if not any(part.startswith(".") for part in {*each.parts} - {*path.parts})
    ]
    if not named:
        raise PathMissing(path)
    return sorted(named)


def _groups(files: Sequence[Path]) -> Iterator[list[Path]]:
    """In their order, each small enough to be on its way soon."""
    group: list[Path] = []
    group_bytes = 0
    for path in files:
        size_bytes = path.stat().st_size if path.is_file() else 0
        if group and (len(group) == GROUP_FILES or group_bytes + size_bytes > GROUP_BYTES):
            yield group
            group, group_bytes = [], 0
        group.append(path)
        group_bytes += size_bytes
    if group:
        yield group


def _print_outcome(console: Console, outcome: Outcome, total: int, collection: str) -> None:
    for path, reason in outcome.failures:
        console.print(f"{path}: {reason}", style="red", markup=False, highlight=False, soft_wrap=True)
    sentences = [f"{outcome.completed} of {total} files can be searched in {collection}."]
    if outcome.failures:
        sentences.append(f"{len(outcome.failures)} failed, as told above.")
    if outcome.attached > outcome.ended:
        sentences.append(f"{outcome.attached - outcome.ended} are on the server, which goes on with them.")
    if total > outcome.attached + outcome.refused:
        sentences.append(f"{total - outcome.attached - outcome.refused} were not added.")
    console.print(" ".join(sentences), markup=False, highlight=False, soft_wrap=True)
