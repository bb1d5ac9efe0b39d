"""Filters on attributes: every comparison, its edges, and their nesting."""

import pytest

from retrieval.filters import AllOf, AnyOf, AttributeValue, Comparator, Comparison, Filter, matches

LETTER: dict[str, AttributeValue] = {"author": "ada", "year": 1843.0, "signed": True, "pages": 1}


@pytest.mark.parametrize(
    ("comparator", "key", "value", "expected"),
    [
        ("eq", "author", "ada", True),
        ("eq", "author", "Ada", False),
        ("eq", "year", 1843, True),
        ("ne", "author", "ada", False),
        ("ne", "author", "bob", True),
        ("gt", "year", 1842, True),
        ("gt", "year", 1843, False),
        ("gte", "year", 1843, True),
        ("gte", "year", 1844, False),
        ("lt", "year", 1844, True),
        ("lt", "year", 1843, False),
        ("lte", "year", 1843, True),
        ("lte", "year", 1842, False),
        ("gt", "author", "aaa", True),
        ("lt", "author", "aaa", False),
        ("in", "author", ("bob", "ada"), True),
        ("in", "author", ("bob",), False),
        ("nin", "author", ("bob",), True),
        ("nin", "author", ("bob", "ada"), False),
    ],
)
def test_a_comparison_compares(
    comparator: str, key: str, value: AttributeValue | tuple[AttributeValue, ...], expected: bool
) -> None:
    assert matches(Comparison(Comparator(comparator), key, value), LETTER) is expected


@pytest.mark.parametrize("comparator", ["eq", "gt", "gte", "lt", "lte"])
@pytest.mark.parametrize(
    ("key", "value"), [("year", "1843"), ("author", 0), ("signed", "true"), ("absent", "ada"), ("absent", 0)]
)
def test_values_of_another_kind_and_missing_ones_never_match(
    comparator: str, key: str, value: AttributeValue
) -> None:
    assert not matches(Comparison(Comparator(comparator), key, value), LETTER)


def test_a_missing_key_matches_only_ne_and_nin() -> None:
    assert matches(Comparison(Comparator.NE, "absent", "ada"), LETTER)
    assert matches(Comparison(Comparator.NIN, "absent", ("ada", 3)), LETTER)
    assert not matches(Comparison(Comparator.IN, "absent", ("ada",)), LETTER)


def test_true_is_not_the_number_one() -> None:
    assert matches(Comparison(Comparator.EQ, "signed", True), LETTER)
    assert not matches(Comparison(Comparator.EQ, "signed", 1), LETTER)
    assert not matches(Comparison(Comparator.EQ, "pages", True), LETTER)
    assert not matches(Comparison(Comparator.IN, "pages", (True, "1")), LETTER)
    assert not matches(Comparison(Comparator.GTE, "pages", False), LETTER)


def test_filters_nest() -> None:
    by_ada = Comparison(Comparator.EQ, "author", "ada")
    by_bob = Comparison(Comparator.EQ, "author", "bob")
    early = Comparison(Comparator.LT, "year", 1850)
    wanted: Filter = AllOf((early, AnyOf((by_bob, AllOf((by_ada, early))))))
    assert matches(wanted, LETTER)
    assert not matches(wanted, {**LETTER, "year": 1851})
    assert not matches(AllOf((by_ada, by_bob)), LETTER)
    assert matches(AnyOf((by_ada, by_bob)), LETTER)


def test_all_of_nothing_matches_and_any_of_nothing_does_not() -> None:
    assert matches(AllOf(()), LETTER)
    assert not matches(AnyOf(()), LETTER)
