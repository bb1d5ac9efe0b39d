"""One process leads, another takes over when it is silent, and what the earlier one still does changes nothing."""

from dataclasses import dataclass

import pytest
from sqlalchemy import select

from ingest.leadership import LEASE_S, Deposed, Election
from retrieval.database import Database
from retrieval.tables import Leadership


@dataclass
class Clock:
    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


class Member:
    """A process with clocks of its own."""

    def __init__(self, database: Database) -> None:
        self.wall = Clock()
        self.monotonic = Clock(now=5.0)
        self.database = database
        self.election = Election(database, "schedules", clock=self.wall, monotonic=self.monotonic)

    def beat(self) -> int | None:
        self.election.beat()
        return self.election.fence

    def act(self, fence: int) -> None:
        with self.database.write() as session:
            self.election.check(session, fence)


def pass_time(seconds: float, *members: Member) -> None:
    for member in members:
        member.wall.now += seconds
        member.monotonic.now += seconds


@pytest.fixture
def members(database: Database) -> tuple[Member, Member]:
    return Member(database), Member(database)


def test_the_first_leads_and_the_others_look_on_as_long_as_it_beats(members: tuple[Member, Member]) -> None:
    first, second = members
    assert first.beat() == 1
    for _ in range(20):
        assert second.beat() is None
        pass_time(LEASE_S - 1, first, second)
        assert first.beat() == 1


def test_a_silent_leader_is_followed_by_another_within_15_s(members: tuple[Member, Member]) -> None:
    first, second = members
    first.beat()
    waited = 0.0
    while second.beat() is None:
        pass_time(2.0, second)
        waited += 2.0
        assert waited <= 15
    assert waited >= LEASE_S
    assert second.election.fence == 2


def test_a_leader_that_was_suspended_learns_it_and_can_do_nothing_more(
    members: tuple[Member, Member],
) -> None:
    first, second = members
    first.beat()
    second.beat()
    pass_time(60, first, second)
    # Before it has asked SQL it knows by its own clock that it was away for too long.
    assert first.election.fence is None
    assert second.beat() == 2
    with pytest.raises(Deposed):
        first.act(1)
    second.act(2)
    assert first.beat() is None


def test_a_leader_that_was_suspended_leads_on_if_nobody_took_over(members: tuple[Member, Member]) -> None:
    first, _ = members
    first.beat()
    pass_time(60, first)
    assert first.beat() == 1
    first.act(1)


def test_a_process_that_was_suspended_does_not_depose_a_leader_that_beats(
    members: tuple[Member, Member],
) -> None:
    first, second = members
    first.beat()
    second.beat()
    pass_time(60, second)
    pass_time(2, first)
    first.beat()
    assert second.beat() is None
    assert first.beat() == 1


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, 86_400.0, -86_400.0])
def test_a_clock_that_jumps_changes_no_leader(members: tuple[Member, Member], jump_s: float) -> None:
    first, second = members
    first.beat()
    second.beat()
    for jumping in (first, second):
        jumping.wall.now += jump_s
        for _ in range(5):
            pass_time(2, first, second)
            assert (first.beat(), second.beat()) == (1, None)


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_take_over_is_as_quick_when_the_dead_leaders_clock_was_wrong(
    members: tuple[Member, Member], jump_s: float
) -> None:
    first, second = members
    first.wall.now += jump_s
    first.beat()
    second.beat()
    pass_time(LEASE_S + 1, second)
    assert second.beat() == 2


def test_who_steps_down_is_followed_at_once(members: tuple[Member, Member]) -> None:
    first, second = members
    first.beat()
    first.election.step_down()
    assert second.beat() == 2
    with pytest.raises(Deposed):
        first.act(1)


def test_of_several_that_see_a_dead_leader_one_takes_over(database: Database) -> None:
    members = [Member(database) for _ in range(4)]
    members[0].beat()
    for member in members:
        member.beat()
    pass_time(LEASE_S + 1, *members)
    assert [member.beat() for member in members[1:]].count(2) == 1
    with database.read() as session:
        assert session.scalar(select(Leadership.fence)) == 2
