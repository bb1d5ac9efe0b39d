"""Intervals and tests of difference, where the truth is known."""

import math

import numpy as np
import pytest

from app.evaluation.intervals import differences, estimates, matrix


def test_an_interval_of_a_mean_is_that_of_theory() -> None:
    chance = np.random.default_rng(1)
    values = chance.normal(0.6, 0.2, size=(1_000, 1))
    (found,) = estimates(values)
    assert found is not None
    half = 1.96 * float(values.std()) / math.sqrt(1_000)
    assert found.mean == pytest.approx(float(values.mean()))
    assert found.low == pytest.approx(found.mean - half, abs=0.002)
    assert found.high == pytest.approx(found.mean + half, abs=0.002)


def test_a_metric_is_a_mean_over_the_questions_to_which_it_applies() -> None:
    values = matrix([[1.0, None], [0.0, None], [None, None], [1.0, None]])
    applied, never = estimates(values)
    assert applied is not None
    assert applied.mean == pytest.approx(2 / 3)
    assert applied.count == 3
    assert never is None


def test_intervals_hold_the_true_mean_about_95_times_of_100() -> None:
    chance = np.random.default_rng(2)
    # 200 metrics of 80 questions each are 200 experiments.
    found = [each for each in estimates(chance.random((80, 200)), resamples=1_000) if each is not None]
    held = sum(each.low <= 0.5 <= each.high for each in found)
    assert 180 <= held <= 199


def test_a_difference_that_is_there_is_found_by_pairs_where_the_means_alone_would_hide_it() -> None:
    chance = np.random.default_rng(3)
    a = chance.random((200, 1))
    b = a + 0.02 + chance.normal(0, 0.02, size=(200, 1))
    (found,) = differences(a, b)
    assert found is not None
    assert found.difference == pytest.approx(float((b - a).mean()))
    assert 0 < found.low < 0.02 < found.high
    assert found.p < 0.001
    # The same questions in another order are no pairs.
    (shuffled,) = differences(a, chance.permutation(b))
    assert shuffled is not None
    assert shuffled.p > 0.05


def test_p_is_that_of_a_sign_test_where_every_difference_is_alike() -> None:
    # 6 questions, each better by .1: of the 64 ways to swap, only 2 are as extreme.
    (found,) = differences(np.full((6, 1), 0.5), np.full((6, 1), 0.6), resamples=20_000)
    assert found is not None
    assert found.p == pytest.approx(2 / 64, abs=0.004)
    assert (found.better, found.worse) == (6, 0)


def test_runs_that_are_alike_differ_by_nothing() -> None:
    values = np.random.default_rng(4).random((50, 1))
    (found,) = differences(values, values)
    assert found is not None
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_chance_alone_is_called_significant_about_5_times_of_100() -> None:
    chance = np.random.default_rng(5)
    a, b = chance.random((60, 200)), chance.random((60, 200))
    called = sum(each is not None and each.p < 0.05 for each in differences(a, b, resamples=1_000))
    assert 2 <= called <= 22


def test_a_ratio_over_different_questions_is_compared_as_a_ratio() -> None:
    # A refused the first two, rightly once; B refused the last three, rightly each time.
    a = matrix([[1.0], [0.0], [None], [None], [None]])
    b = matrix([[None], [None], [1.0], [1.0], [1.0]])
    (found,) = differences(a, b)
    assert found is not None
    assert (found.a, found.b, found.difference, found.count) == (0.5, 1.0, 0.5, 5)
    assert (found.better, found.worse) == (0, 0)
