"""Many questions to one server: what is asked again, what ends a run, and what is only one question's trouble."""

import asyncio

import pytest

from app.commands.remote import RemoteRefused, RemoteUnreachable
from app.evaluation.asking import QuestionRefused, in_parallel, patiently, stage_ms


async def test_a_server_with_too_much_to_do_is_asked_again() -> None:
    refusals = [RemoteRefused("Busy.", 429), RemoteRefused("Busy.", 429)]

    async def ask() -> str:
        if refusals:
            raise refusals.pop()
        return "done"

    assert await patiently(ask, pause_s=0) == "done"


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RemoteRefused("Too long.", 400), QuestionRefused),
        (RemoteRefused("No such model.", 404), RemoteRefused),
        (RemoteRefused("No engine.", 503), RemoteRefused),
        (RemoteUnreachable("Nobody there."), RemoteUnreachable),
    ],
)
async def test_only_what_lies_in_the_question_lets_a_run_go_on(
    error: RemoteRefused, raised: type[Exception]
) -> None:
    async def ask() -> None:
        raise error

    with pytest.raises(raised, match=str(error)):
        await patiently(ask)


async def test_no_more_are_asked_at_once_than_may_be_and_each_is_asked_once() -> None:
    running = most = 0
    asked: list[int] = []

    async def work(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        asked.append(number)
        running -= 1

    await in_parallel(work, range(20), at_once=3)
    assert sorted(asked) == list(range(20))
    assert most == 3


async def test_the_first_that_fails_ends_all_and_is_raised_as_it_is() -> None:
    asked: list[int] = []

    async def work(number: int) -> None:
        asked.append(number)
        if number == 1:
            raise RemoteUnreachable("Nobody there.")
        await asyncio.Event().wait()

    with pytest.raises(RemoteUnreachable):
        await in_parallel(work, range(100), at_once=2)
    assert asked == [0, 1]


def test_stages_are_read_from_the_header_that_servers_tell_them_in() -> None:
    assert stage_ms("embed;dur=4.2, keywords;dur=3.1") == {"embed": 4.2, "keywords": 3.1}
    assert stage_ms("") == {}
