"""The benchmark's own metrics, against values computed by hand."""

import pytest

from tests.bench.metrics import ndcg, recall

GRADES = {"a": 3, "b": 1, "c": 1}


def test_ndcg_of_a_ranking_computed_by_hand() -> None:
    # x, b, a: 1 / log2(3) + 3 / log2(4) = 0.63093 + 1.5 = 2.13093
    # ideal a, b, c: 3 / log2(2) + 1 / log2(3) + 1 / log2(4) = 3 + 0.63093 + 0.5 = 4.13093
    assert ndcg(["x", "b", "a"], GRADES, 10) == pytest.approx(2.13093 / 4.13093, abs=1e-5)


def test_ndcg_reads_no_deeper_than_k() -> None:
    # Of x, b only b counts; the ideal is cut at 2 as well: 3 + 0.63093.
    assert ndcg(["x", "b", "a"], GRADES, 2) == pytest.approx(0.63093 / 3.63093, abs=1e-5)


def test_the_ideal_ranking_has_an_ndcg_of_one_and_an_empty_one_of_zero() -> None:
    assert ndcg(["a", "c", "b"], GRADES, 10) == pytest.approx(1.0)
    assert ndcg([], GRADES, 10) == 0.0


def test_recall_is_the_share_of_relevant_texts_within_k() -> None:
    assert recall(["x", "b", "a", "c"], GRADES, 3) == pytest.approx(2 / 3)
    assert recall(["d"], {"d": 0, "e": 1}, 10) == 0.0
