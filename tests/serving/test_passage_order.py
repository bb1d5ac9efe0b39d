"""Passages are shown in an order that an engine's prefix cache knows."""

from hypothesis import given
from hypothesis import strategies as st

from serving.generation.passage_order import PassageOrder


def shown(order: PassageOrder, passages: str, *, salt: str = "tenant") -> str:
    positions = order.choose(list(passages), sizes=[1] * len(passages), cache_salt=salt)
    return "".join(passages[position] for position in positions)


def test_the_best_of_unknown_passages_stands_last() -> None:
    assert shown(PassageOrder(), "abc") == "cba"


def test_a_known_beginning_comes_first_however_its_passages_rank_now() -> None:
    order = PassageOrder()
    assert shown(order, "abc") == "cba"
    assert shown(order, "axcb") == "cbax"
    assert shown(order, "zc") == "cz"


def test_the_longest_of_several_beginnings_wins_by_size() -> None:
    order = PassageOrder()
    order.choose(["small", "tiny"], sizes=[2, 1], cache_salt="t")
    order.choose(["large"], sizes=[50], cache_salt="t")
    assert order.choose(["small", "large", "tiny"], sizes=[2, 50, 1], cache_salt="t")[0] == 1


def test_a_passage_that_several_prompts_shared_becomes_a_beginning() -> None:
    order = PassageOrder()
    shown(order, "sa")
    shown(order, "sb")
    shown(order, "cs")
    assert shown(order, "sd")[0] == "s"


def test_another_tenant_sees_nothing_of_it() -> None:
    order = PassageOrder()
    shown(order, "abc")
    assert shown(order, "cab", salt="other") == "bac"


def test_what_was_not_used_for_long_is_forgotten_with_all_its_traces() -> None:
    order = PassageOrder(remembered=4)
    shown(order, "ab")
    shown(order, "cd")
    shown(order, "ef")
    assert len(order._known) == 4
    assert shown(order, "ab") == "ba"
    for passages in ("gh", "ij"):
        shown(order, passages)
    assert set(order._uses) == set("ghij")
    assert sum(map(len, order._next.values())) == 4


@given(st.lists(st.lists(st.sampled_from("abcdef"), unique=True, min_size=1), max_size=30))
def test_every_passage_is_shown_once_and_the_memory_stays_bounded(prompts: list[list[str]]) -> None:
    order = PassageOrder(remembered=10)
    for prompt in prompts:
        positions = order.choose(prompt, sizes=[1] * len(prompt), cache_salt="")
        assert sorted(positions) == list(range(len(prompt)))
        assert len(order._known) <= 10
        assert sum(map(len, order._next.values())) == len(order._known)
