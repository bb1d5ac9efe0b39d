"""Who goes next while all engines are full: lanes, tenants, bounds, and what is predicted of the wait."""

import random

import pytest

from serving.generation.waiting import FairQueue, Line, Pace, RetryBudget
from serving.protocols import Lane


def anyone(_: Lane) -> bool:
    return True


def drained(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


def test_a_tenants_own_requests_go_in_the_order_in_which_they_came() -> None:
    queue = FairQueue[str]()
    for name in ("a", "b", "c"):
        queue.push("t", name, cost=1)
    assert drained(queue) == ["a", "b", "c"]


def test_a_thousand_requests_of_one_tenant_delay_anothers_first_by_one() -> None:
    queue = FairQueue[str]()
    for number in range(1000):
        queue.push("busy", f"busy {number}", cost=1)
    queue.pop()
    queue.push("light", "light", cost=1)
    assert "light" in [queue.pop(), queue.pop()]


def test_tenants_that_wait_are_served_in_turn_whatever_they_queued() -> None:
    queue = FairQueue[str]()
    for tenant, waiting in (("a", 50), ("b", 20), ("c", 5)):
        for number in range(waiting):
            queue.push(tenant, f"{tenant}{number}", cost=1)
    first = [queue.pop()[0] for _ in range(15)]
    assert {tenant: first.count(tenant) for tenant in "abc"} == {"a": 5, "b": 5, "c": 5}


def test_long_prompts_get_fewer_turns() -> None:
    queue = FairQueue[str]()
    for number in range(40):
        queue.push("long", f"long {number}", cost=3)
        queue.push("short", f"short {number}", cost=1)
    first = [queue.pop().split()[0] for _ in range(40)]
    assert first.count("short") == 30


def test_what_left_unserved_is_not_charged() -> None:
    queue = FairQueue[str]()
    for number in range(100):
        queue.push("changed its mind", f"gone {number}", cost=1)
    for number in range(20):
        queue.push("other", f"other {number}", cost=1)
    for number in range(100):
        queue.remove("changed its mind", f"gone {number}")
    queue.remove("changed its mind", "never there")
    queue.push("changed its mind", "kept", cost=1)
    assert len(queue) == 21
    assert "kept" in [queue.pop(), queue.pop()]


def test_a_tenant_that_was_idle_has_saved_up_nothing() -> None:
    queue = FairQueue[str]()
    for number in range(60):
        queue.push("steady", f"steady {number}", cost=1)
    for _ in range(40):
        queue.pop()
    for number in range(20):
        queue.push("late", f"late {number}", cost=1)
    first = [queue.pop().split()[0] for _ in range(10)]
    assert first.count("steady") == 5


def test_tenants_that_keep_coming_new_do_not_starve_one_that_was_served() -> None:
    queue = FairQueue[str]()
    for number in range(3):
        queue.push("known", f"known {number}", cost=1)
    went = []
    for number in range(12):
        queue.push(f"new {number}", "new", cost=1)
        went.append(queue.pop())
    assert "known 2" in went


def test_a_queue_of_many_tenants_forgets_those_that_are_gone() -> None:
    queue = FairQueue[str]()
    chance = random.Random(0)
    for number in range(5000):
        queue.push(f"tenant {number}", "x", cost=chance.random())
        if len(queue) > 10:
            queue.pop()
    assert len(queue._given) < 100


@pytest.mark.parametrize("tenant", ["a", "new"])
def test_how_many_go_first_is_told_exactly(tenant: str) -> None:
    queue = FairQueue[str]()
    for name, waiting in (("a", 3), ("b", 7), ("c", 1)):
        for number in range(waiting):
            queue.push(name, f"{name}{number}", cost=1)
    ahead = queue.ahead(tenant)
    queue.push(tenant, "mine", cost=1)
    # Ties between tenants go to whoever waits longer, so the last of equals waits as long as is told.
    assert drained(queue).index("mine") <= ahead
    assert ahead == {"a": 3 + 4 + 1, "new": 1 + 1 + 1}[tenant]


def test_people_go_before_bulk_and_bulk_before_the_background() -> None:
    line = Line[str]()
    for lane in reversed(Lane):
        line.push(lane, "t", lane.value)
    assert [line.pop(anyone) for _ in range(4)] == ["interactive", "bulk", "background", None]


def test_every_lane_moves_while_people_keep_coming() -> None:
    line = Line[str]()
    for number in range(100):
        line.push(Lane.BULK, "t", f"bulk {number}")
        line.push(Lane.BACKGROUND, "t", f"background {number}")
    went = []
    for number in range(400):
        line.push(Lane.INTERACTIVE, "t", f"interactive {number}")
        went.append(str(line.pop(anyone)).split()[0])
    assert went.count("bulk") in range(40, 48)
    assert went.count("background") in range(10, 14)
    assert went[:8] == ["interactive"] * 8


def test_a_lane_without_room_lets_others_by_and_goes_first_when_it_has() -> None:
    line = Line[str]()
    line.push(Lane.BULK, "t", "bulk")
    for number in range(12):
        line.push(Lane.INTERACTIVE, "t", f"interactive {number}")

    def people_only(lane: Lane) -> bool:
        return lane is Lane.INTERACTIVE

    for _ in range(9):
        assert str(line.pop(people_only)).startswith("interactive")
    line.push(Lane.BACKGROUND, "t", "background")
    assert line.pop(lambda lane: lane is Lane.BACKGROUND) == "background"


def test_a_full_line_refuses_and_one_full_of_bulk_does_not_refuse_people() -> None:
    line = Line[str]()
    admitted = 0
    while line.admits(Lane.BULK, "t", 100):
        line.push(Lane.BULK, "t", f"bulk {admitted}")
        admitted += 1
    assert admitted in range(85, 101)
    assert line.admits(Lane.INTERACTIVE, "t", 100)
    assert not line.admits(Lane.BACKGROUND, "t", 2)


def test_a_tenant_that_fills_the_line_leaves_places_to_others() -> None:
    line = Line[str]()
    for tenant in ("first", "second"):
        number = 0
        while line.admits(Lane.INTERACTIVE, tenant, 900):
            line.push(Lane.INTERACTIVE, tenant, f"{tenant} {number}")
            number += 1
    assert line.admits(Lane.INTERACTIVE, "third", 900)


def test_the_wait_follows_from_places_and_how_long_each_is_held() -> None:
    pace = Pace()
    assert pace.wait_s(ahead=3, places=2) is None
    pace.note(4.0)
    assert pace.wait_s(ahead=3, places=2) == pytest.approx(8.0)
    for _ in range(100):
        pace.note(1.0)
    assert pace.wait_s(ahead=0, places=1) == pytest.approx(1.0, rel=0.01)


def test_what_would_begin_after_its_time_is_told_before_it_waits() -> None:
    pace = Pace()
    assert pace.is_in_time(0.1, ahead=100, places=1)
    for _ in range(100):
        pace.note(2.0)
        pace.note_first(0.5)
    assert pace.is_in_time(3.0, ahead=1, places=2)
    assert not pace.is_in_time(2.5, ahead=1, places=2)


def test_a_tenth_of_the_requests_may_be_sent_again_and_a_few_more() -> None:
    budget = RetryBudget()
    sent_again = 0
    for _ in range(1000):
        budget.earn()
        sent_again += budget.spend()
    assert sent_again in range(95, 107)
