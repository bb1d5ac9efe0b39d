"""Metrics against values computed by hand."""

import pytest

from app.evaluation.metrics import contains, exact_match, ranking_metrics, token_f1

GRADES = {"q": {"a": 3, "b": 1, "c": 1}}


def test_a_ranking_has_the_metrics_that_were_computed_by_hand() -> None:
    # x, b, a: DCG = 1 / log2(3) + 3 / log2(4) = 0.63093 + 1.5
    # ideal a, b, c: 3 / log2(2) + 1 / log2(3) + 1 / log2(4) = 4.13093
    # MAP: (1 / 2 + 2 / 3) / 3, since c was never found.
    (metrics,) = ranking_metrics({"q": ["x", "b", "a"]}, GRADES, k=10).values()
    assert metrics["nDCG@10"] == pytest.approx(2.13093 / 4.13093, abs=1e-5)
    assert metrics["recall@10"] == pytest.approx(2 / 3)
    assert metrics["MRR"] == pytest.approx(1 / 2)
    assert metrics["MAP"] == pytest.approx((1 / 2 + 2 / 3) / 3)


def test_ndcg_and_recall_read_no_deeper_than_k_and_the_others_read_all() -> None:
    (metrics,) = ranking_metrics({"q": ["x", "y", "a"]}, GRADES, k=2).values()
    assert (metrics["nDCG@2"], metrics["recall@2"]) == (0.0, 0.0)
    assert metrics["MRR"] == pytest.approx(1 / 3)


def test_the_order_of_a_ranking_counts_and_not_the_names_in_it() -> None:
    # trec_eval breaks ties by name, which must not happen to rankings that have none.
    forward = ranking_metrics({"q": ["b", "x"]}, GRADES, k=10)["q"]
    backward = ranking_metrics({"q": ["x", "b"]}, GRADES, k=10)["q"]
    assert (forward["MRR"], backward["MRR"]) == (1.0, 0.5)


def test_a_query_that_found_nothing_has_zeros_and_is_not_left_out() -> None:
    metrics = ranking_metrics({"q": [], "r": ["a"]}, {**GRADES, "r": {"a": 1}}, k=10)
    assert metrics["q"] == {"nDCG@10": 0.0, "recall@10": 0.0, "MRR": 0.0, "MAP": 0.0}
    assert metrics["r"]["nDCG@10"] == 1.0


@pytest.mark.parametrize(
    ("answer", "exact", "f1"),
    [
        ("Denver Broncos", 1.0, 1.0),
        ("the denver  broncos!", 1.0, 1.0),
        # 2 shared of 4 said and 2 wanted: 2 * .5 * 1 / 1.5.
        ("They were Denver Broncos", 0.0, 2 / 3),
        # Against "Broncos of Denver" all three words are shared of 4: 2 * .75 * 1 / 1.75.
        ("Broncos out of Denver", 0.0, 6 / 7),
        ("Carolina Panthers", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_answers_are_compared_by_squads_rules(answer: str, exact: float, f1: float) -> None:
    wanted = ["Denver Broncos", "Broncos of Denver"]
    assert exact_match(answer, wanted) == exact
    assert token_f1(answer, wanted) == pytest.approx(f1)


def test_a_word_that_comes_twice_is_shared_as_often_as_both_have_it() -> None:
    # "new new york" and "new york york": new and york once each, 2 of 3 and 2 of 3.
    assert token_f1("new new york", ["new york york"]) == pytest.approx(2 / 3)


def test_a_long_answer_contains_a_short_one_by_whole_words_only() -> None:
    assert contains("It was built in 1932 by Jonas Vey.", ["Jonas Vey"]) == 1.0
    assert contains("It has 19321 doors.", ["1932"]) == 0.0
    assert contains("Anything.", ["the"]) == 0.0
