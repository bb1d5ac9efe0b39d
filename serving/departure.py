"""Work for a client ends when the client closes its connection: whatever was computed for it is cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

Result = TypeVar("Result")


class Departed(Exception):
    """The client closed the connection before its reply was ready."""

    def __init__(self) -> None:
        super().__init__("The client closed the connection.")


async def unless_departed(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The work's result; cancels it and raises Departed when the client leaves first. Read the body before."""
    working = asyncio.current_task()
    assert working is not None
    watching: asyncio.Task[None] | None = None
    departed = False

    async def watch() -> None:
        nonlocal departed
        # The body has been read, so the next message can only be the disconnect.
        while (await receive())["type"] != "http.disconnect":
            pass
        departed = True
        working.cancel()

    def begin_to_watch() -> None:
        nonlocal watching
        watching = asyncio.create_task(watch())

    # Only when the work has to wait: a refusal at the door, of which a burst brings many, needs no task.
    beginning = asyncio.get_running_loop().call_soon(begin_to_watch)
    try:
        return await work
    except asyncio.CancelledError:
        # The server may stop at the same moment, and then it is obeyed.
        if departed and not working.uncancel():
            raise Departed from None
        raise
    finally:
        beginning.cancel()
        if watching is not None:
            watching.cancel()
