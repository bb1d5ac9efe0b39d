"""The learned cost of a batch."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.batching.cost import CostModel


def test_one_batch_moves_the_estimate_as_computed_by_hand() -> None:
    """1 s + 1 s a token is believed and 2.5 s of one token are seen: a quarter more than expected.

    With x = (1/2, 1/2) and information I, the new information is I + (1/4 - .1 * 1/4 / 1/2) * ones =
    ((1.2, .2), (.2, 1.2)); its inverse times x is (.5, .5) / 1.4; times the error .25 that is .0893 each.
    """
    cost = CostModel(overhead_s=1.0, token_s=1.0)
    cost.learn(1, 2.5)
    assert cost.overhead_s == pytest.approx(1 + 0.25 * 0.5 / 1.4)
    assert cost.token_s == pytest.approx(1 + 0.25 * 0.5 / 1.4)


def test_two_batches_give_a_line() -> None:
    cost = CostModel.from_two((10, 0.02), (80, 0.09))
    assert cost.token_s == pytest.approx(0.001)
    assert cost.overhead_s == pytest.approx(0.01)
    assert cost.seconds(40) == pytest.approx(0.05)
    assert cost.seconds(400, batches=5) == pytest.approx(0.45)
    assert cost.tokens_within(0.0505) == 40
    assert cost.tokens_within(0.005) == 0


def test_two_batches_that_make_no_sense_give_a_cost_that_does() -> None:
    backwards = CostModel.from_two((10, 0.1), (80, 0.05))
    assert backwards.token_s == pytest.approx(0.1 * 0.05 / 80)
    assert backwards.seconds(80) == pytest.approx(0.05)
    steep = CostModel.from_two((10, 0.0), (80, 0.08))
    assert steep.overhead_s == 0
    assert steep.seconds(80) == pytest.approx(0.08)


def true_s(padded_tokens: int, overhead_s: float = 0.004, token_s: float = 0.00015) -> float:
    return overhead_s + token_s * padded_tokens


def taught(cost: CostModel, batches: int, *, random_source: random.Random, slower: float = 1.0) -> CostModel:
    for _ in range(batches):
        tokens = random_source.choice([10, 30, 100, 300, 640])
        cost.learn(tokens, slower * true_s(tokens) * random_source.uniform(0.9, 1.1))
    return cost


def test_noisy_batches_are_enough_to_foretell_others() -> None:
    cost = taught(CostModel(overhead_s=0.02, token_s=0.001), 50, random_source=random.Random(1))
    for tokens in (10, 158, 640):
        assert cost.seconds(tokens) == pytest.approx(true_s(tokens), rel=0.1)


def test_one_stall_does_not_change_the_estimate_by_much() -> None:
    cost = taught(CostModel(overhead_s=0.004, token_s=0.00015), 50, random_source=random.Random(2))
    before = cost.seconds(640)
    cost.learn(640, 10.0)
    assert cost.seconds(640) < 1.25 * before


def test_a_device_that_slows_down_for_good_is_followed_within_thirty_batches() -> None:
    random_source = random.Random(3)
    cost = taught(CostModel(overhead_s=0.004, token_s=0.00015), 100, random_source=random_source)
    taught(cost, 30, random_source=random_source, slower=3.0)
    assert cost.seconds(640) == pytest.approx(3 * true_s(640), rel=0.2)


def test_a_flood_of_short_queries_does_not_wipe_out_what_is_known_of_long_batches() -> None:
    random_source = random.Random(4)
    cost = taught(CostModel(overhead_s=0.004, token_s=0.00015), 100, random_source=random_source)
    for _ in range(2000):
        tokens = random_source.randint(8, 14)
        cost.learn(tokens, true_s(tokens) * random_source.uniform(0.8, 1.2))
    assert cost.seconds(12) == pytest.approx(true_s(12), rel=0.15)
    assert cost.seconds(640) == pytest.approx(true_s(640), rel=0.35)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 100_000), st.floats(0, 100)), max_size=60))
def test_whatever_it_learns_a_batch_takes_some_time_and_more_tokens_take_longer(
    batches: list[tuple[int, float]],
) -> None:
    cost = CostModel(overhead_s=0.01, token_s=1e-4)
    for tokens, seconds in batches:
        cost.learn(tokens, seconds)
    assert 0 < cost.seconds(1) < cost.seconds(1000) < float("inf")
    assert cost.tokens_within(1.0) >= 0
