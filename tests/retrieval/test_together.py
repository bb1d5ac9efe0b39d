"""Tasks that end together: all of them, or the first failure."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from retrieval.together import in_thread, together


async def forever() -> None:
    await asyncio.Event().wait()


async def fail(error: Exception) -> None:
    raise error


Parts = list[asyncio.Task[None]]


async def wait_beside_a_task_that_fails(parts: Parts) -> None:
    async with together() as tasks:
        parts.append(tasks.create_task(forever()))
        tasks.create_task(fail(KeyError()))


async def fail_beside_a_task(parts: Parts) -> None:
    async with together() as tasks:
        parts.append(tasks.create_task(forever()))
        await asyncio.sleep(0)
        raise KeyError


async def nest(parts: Parts) -> None:
    async with together():
        await fail_beside_a_task(parts)


@pytest.mark.parametrize("whole", [wait_beside_a_task_that_fails, fail_beside_a_task, nest])
async def test_the_first_failure_is_raised_as_it_is_and_ends_the_others(
    whole: Callable[[Parts], Coroutine[Any, Any, None]],
) -> None:
    parts: Parts = []
    with pytest.raises(KeyError):
        await whole(parts)
    assert parts[0].cancelled()


async def test_who_cancels_the_whole_cancels_each_part() -> None:
    parts: Parts = []
    began = asyncio.Event()

    async def whole() -> None:
        async with together() as tasks:
            parts.append(tasks.create_task(forever()))
            began.set()

    running = asyncio.create_task(whole())
    await began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert parts[0].cancelled()


async def test_a_threads_result_and_failure_come_back() -> None:
    assert await in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 7, 0)


async def test_who_is_cancelled_leaves_when_the_thread_has_ended() -> None:
    began, may_end, ended = asyncio.Event(), threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        loop.call_soon_threadsafe(began.set)
        assert may_end.wait(10)
        ended.set()

    running = asyncio.create_task(in_thread(work))
    await began.wait()
    running.cancel()
    await asyncio.sleep(0)
    assert not running.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()
