"""Asks a server many questions, a few at a time, and tells an error of one question from the end of a run."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from app.commands.remote import RemoteRefused
from app.evaluation.runs import Outcome, RunFolder
from retrieval.together import together

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

PATIENCE_S = 60.0
"""How long an overloaded server is asked again."""
PAUSE_S = 1.0
OVERLOADED = 429
OF_THE_QUESTION = (400, 413, 422)
"""Statuses that tell of this question and not of the server, the key or the collection."""
_STAGE = re.compile(r"([\w-]+);dur=([\d.]+)")


class QuestionRefused(Exception):
    """The server cannot take this question; others it may."""


async def ask_missing(
    folder: RunFolder,
    variant: str,
    question_ids: Sequence[str],
    ask: Callable[[str], Awaitable[Outcome]],
    *,
    at_once: int,
    console: Console,
) -> None:
    """Asks those questions of which the folder has no outcome, and keeps each outcome as it comes."""
    rest = [each for each in question_ids if (variant, each) not in folder.outcomes]
    with shown_progress(console) as progress:
        bar = progress.add_task(variant, total=len(question_ids), completed=len(question_ids) - len(rest))

        async def ask_one(question_id: str) -> None:
            folder.add(await ask(question_id))
            progress.advance(bar)

        await in_parallel(ask_one, rest, at_once=at_once)


async def in_parallel(
    work: Callable[[Asked], Awaitable[None]], asked: Iterable[Asked], *, at_once: int
) -> None:
    """Does `work` for each. The first failure cancels the rest."""
    rest = iter(asked)

    async def take() -> None:
        for each in rest:
            await work(each)

    async with together() as tasks:
        for _ in range(at_once):
            tasks.create_task(take())


async def patiently(ask: Callable[[], Awaitable[Answer]], *, pause_s: float = PAUSE_S) -> Answer:
    """What `ask` gives, asked again while the server has too much to do.

    Raises QuestionRefused, and RemoteRefused when it makes no sense to go on.
    """
    waited_s = 0.0
    while True:
        try:
            return await ask()
        except RemoteRefused as error:
            if error.status in OF_THE_QUESTION:
                raise QuestionRefused(str(error)) from error
            if error.status != OVERLOADED or waited_s >= PATIENCE_S:
                raise
        await asyncio.sleep(pause_s)
        waited_s += pause_s


def stage_ms(header: str) -> dict[str, float]:
    """Milliseconds by stage, from a Server-Timing header. Source: W3C, Server Timing."""
    return {name: float(duration) for name, duration in _STAGE.findall(header)}


def shown_progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
