"""What the batcher runs next, and when a request would be done: hand-computed values of pure functions."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.batching.choice import Limits, Turn, choose_batch, choose_lane, share_left
from serving.batching.cost import CostModel
from serving.batching.forecast import Forecast
from serving.batching.model import Tokens
from serving.batching.replica import Batch
from serving.batching.waiting import LaneQueue, Text
from serving.protocols import Lane

NEVER = float("inf")
PATIENCE = {Lane.INTERACTIVE: NEVER, Lane.BULK: 1.0, Lane.BACKGROUND: 5.0}


def test_the_first_text_runs_with_those_nearest_in_length() -> None:
    assert choose_batch([50, 200, 52, 7, 49], token_budget=160, max_texts=9) == [0, 2, 4]


def test_padding_counts_in_the_token_budget() -> None:
    assert choose_batch([10, 11], token_budget=21, max_texts=9) == [0]
    assert choose_batch([10, 11], token_budget=22, max_texts=9) == [0, 1]


def test_a_text_longer_than_the_budget_runs_alone() -> None:
    assert choose_batch([500, 500], token_budget=100, max_texts=9) == [0]


@settings(deadline=None)
@given(st.lists(st.integers(1, 600), min_size=1, max_size=60), st.integers(1, 5000), st.integers(1, 30))
def test_the_first_text_always_runs_and_only_a_lone_text_exceeds_the_budget(
    lengths: list[int], budget: int, most: int
) -> None:
    chosen = choose_batch(lengths, token_budget=budget, max_texts=most)
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= most
    assert len(chosen) == 1 or len(chosen) * max(lengths[position] for position in chosen) <= budget


def test_people_go_first_and_an_empty_box_has_no_lane() -> None:
    waiting = {Lane.INTERACTIVE: 9.9, Lane.BULK: 9.5, Lane.BACKGROUND: 6.0}
    assert choose_lane(waiting, now=10.0, patience_s=PATIENCE) == Turn(Lane.INTERACTIVE, due=False)
    assert choose_lane(dict.fromkeys(Lane, NEVER), now=10.0, patience_s=PATIENCE) is None


def test_a_lane_that_was_passed_over_for_long_gets_one_batch() -> None:
    waiting = {Lane.INTERACTIVE: 9.9, Lane.BULK: 9.0, Lane.BACKGROUND: 6.0}
    assert choose_lane(waiting, now=10.0, patience_s=PATIENCE) == Turn(Lane.BULK, due=True)
    assert choose_lane(waiting, now=11.0, patience_s=PATIENCE) == Turn(Lane.BACKGROUND, due=True)


@settings(deadline=None)
@given(st.lists(st.sampled_from([*Lane]), min_size=1, max_size=3, unique=True), st.floats(0.01, 0.5))
def test_no_lane_that_always_has_work_waits_longer_than_patience_and_a_batch_of_each_other(
    busy: list[Lane], batch_s: float
) -> None:
    now, last = 0.0, dict.fromkeys(busy, 0.0)
    longest = dict.fromkeys(busy, 0.0)
    while now < 12:
        since = {lane: last.get(lane, NEVER) for lane in Lane}
        turn = choose_lane(since, now=now, patience_s=PATIENCE)
        assert turn is not None
        longest[turn.lane] = max(longest[turn.lane], now - last[turn.lane])
        last[turn.lane] = now
        now += batch_s
    for lane in busy:
        longest[lane] = max(longest[lane], now - last[lane])
    for lane in {Lane.BULK, Lane.BACKGROUND} & set(busy):
        assert longest[lane] <= PATIENCE[lane] + 3 * batch_s


def test_what_lower_lanes_leave() -> None:
    # A bulk batch of .25 s after each second of patience takes a fifth; one of background takes .25 / 5.25.
    assert share_left([], patience_s=PATIENCE, batch_s=0.25) == 1
    assert share_left([Lane.BULK], patience_s=PATIENCE, batch_s=0.25) == pytest.approx(0.8)
    assert share_left([Lane.BULK, Lane.BACKGROUND], patience_s=PATIENCE, batch_s=0.25) == pytest.approx(
        0.8 - 0.25 / 5.25
    )


def text_of(length: int, lane: Lane) -> Text:
    ids = np.zeros(length, np.int64)
    return Text(("", str(length)), None, Tokens(ids, ids, length), lane, 0.0)


def batch_of(lane: Lane, *lengths: int, started: float = 0.0, due: bool = False) -> Batch:
    return Batch(lane, [text_of(length, lane) for length in lengths], due, 0.0, started=started)


@pytest.fixture
def forecast() -> Forecast:
    """A batch takes 10 ms and 1 ms a padded token: 90 tokens fill the tenth of a second."""
    forecast = Forecast(replace(Limits(), max_batch_s=0.1))
    forecast.cost = CostModel(overhead_s=0.01, token_s=0.001)
    return forecast


def lanes_with(**waiting: int) -> dict[Lane, LaneQueue]:
    """So many tokens in each lane, in one text."""
    lanes = {lane: LaneQueue() for lane in Lane}
    for name, length in waiting.items():
        lanes[Lane(name)].add(text_of(length, Lane(name)), 0.0)
    return lanes


def test_an_idle_replica_takes_as_long_as_the_request_itself(forecast: Forecast) -> None:
    idle = forecast.finish_s(
        Lane.BULK,
        texts=1,
        tokens=50,
        lanes=lanes_with(),
        running=[None],
        prefetched=[None],
        at_once=1,
        now=0.0,
    )
    assert idle == pytest.approx(0.06)


def test_what_runs_and_what_waits_above_is_done_first_and_what_waits_below_is_not(forecast: Forecast) -> None:
    lanes = lanes_with(interactive=20, bulk=40, background=9000)
    running = [batch_of(Lane.BACKGROUND, 90, started=0.0)]
    finish_s = forecast.finish_s(
        Lane.BULK, texts=1, tokens=50, lanes=lanes, running=running, prefetched=[None], at_once=1, now=0.04
    )
    # 60 ms of the running batch, 30 ms, 50 ms, its own 60 ms; background takes .1 s in 5.1 s.
    assert finish_s == pytest.approx((0.06 + 0.03 + 0.05 + 0.06) / (1 - 0.1 / 5.1))


def test_a_prefetched_batch_of_a_lower_lane_counts_only_when_it_is_due(forecast: Forecast) -> None:
    def finish_s(*, due: bool) -> float:
        return forecast.finish_s(
            Lane.INTERACTIVE,
            texts=1,
            tokens=10,
            lanes=lanes_with(),
            running=[None],
            prefetched=[batch_of(Lane.BULK, 90, due=due)],
            at_once=1,
            now=0.0,
        )

    assert finish_s(due=False) == pytest.approx(0.02)
    assert finish_s(due=True) == pytest.approx(0.12)


def test_replicas_share_the_work_but_not_the_last_batch(forecast: Forecast) -> None:
    def finish_s(texts: int, tokens: int) -> float:
        return forecast.finish_s(
            Lane.BULK,
            texts=texts,
            tokens=tokens,
            lanes=lanes_with(),
            running=[None, batch_of(Lane.BULK, 90)],
            prefetched=[None, None],
            at_once=2,
            now=0.0,
        )

    assert finish_s(1, 50) == pytest.approx((0.1 + 0.06) / 2)
    assert finish_s(1, 80) == pytest.approx((0.1 + 0.09) / 2)
    # 900 tokens are ten batches of .1 s, on two replicas, after what one of them runs.
    assert finish_s(10, 900) == pytest.approx((0.1 + 1.0) / 2)


def test_a_batch_that_is_overdue_is_expected_to_be_so_for_as_long_again(forecast: Forecast) -> None:
    finish_s = forecast.finish_s(
        Lane.BULK,
        lanes=lanes_with(),
        running=[batch_of(Lane.BULK, 90)],
        prefetched=[None],
        at_once=1,
        now=0.7,
    )
    assert finish_s == pytest.approx(0.6)


def test_the_token_budget_is_what_fits_the_time_and_the_memory(forecast: Forecast) -> None:
    assert forecast.token_budget() == 90
    forecast.cost = CostModel(overhead_s=0.01, token_s=1e-9)
    assert forecast.token_budget() == Limits().max_batch_tokens
    # Overhead beyond the limit: a batch may take twice as long as it, or each would hold one text.
    forecast.cost = CostModel(overhead_s=0.2, token_s=0.001)
    assert forecast.batch_s() == pytest.approx(0.4)
    assert forecast.token_budget() == pytest.approx(200, abs=1)


def test_tokens_are_foretold_from_characters() -> None:
    queue = LaneQueue()
    assert queue.expected_tokens_of("x" * 40, max_tokens=100) == pytest.approx(12)
    assert queue.expected_tokens_of("x" * 4000, max_tokens=100) == 100
    for _ in range(200):
        queue.learn_tokens(("x" * 10, "y" * 10), 12)
    assert queue.expected_tokens_of("x" * 40, max_tokens=100) == pytest.approx(22, rel=0.01)


def test_caution_rises_with_each_miss_until_one_in_twenty_misses(forecast: Forecast) -> None:
    assert forecast.caution == 1.05
    for _ in range(10):
        forecast.learn_promise(kept=False)
    assert forecast.caution == pytest.approx(1.05 + 10 * 0.0095)
    for _ in range(19):
        forecast.learn_promise(kept=True)
    assert forecast.caution == pytest.approx(1.05 + 9 * 0.0095)
    for _ in range(1000):
        forecast.learn_promise(kept=True)
    assert forecast.caution == 1.05
