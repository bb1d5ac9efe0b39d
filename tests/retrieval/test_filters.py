"""Filters: every comparison, its edges and their nesting, in the SQL of both databases and in what a filter means."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from retrieval.database import Database
from retrieval.filters import (
    AllOf,
    AnyOf,
    AttributeValue,
    Comparator,
    Comparison,
    FileField,
    Filter,
    admitted,
    comparisons,
)
from retrieval.scope import Scope
from retrieval.tables import Document, File
from tests.oracles import matches
from tests.retrieval.library import new_collection, shelve

EQ, NE, IN, NIN = Comparator.EQ, Comparator.NE, Comparator.IN, Comparator.NIN
GT, GTE, LT, LTE = Comparator.GT, Comparator.GTE, Comparator.LT, Comparator.LTE


@dataclass(frozen=True)
class Filed:
    """A document as far as a filter sees it."""

    attributes: dict[str, AttributeValue] = field(default_factory=dict)
    filename: str = "letter.txt"
    created_at: float = 1_790_000_000.75
    path: str | None = None

    @property
    def of_file(self) -> dict[FileField, AttributeValue]:
        """As the API shows it: a time in whole seconds."""
        fields: dict[FileField, AttributeValue] = {
            FileField.FILENAME: self.filename,
            FileField.CREATED_AT: float(int(self.created_at)),
        }
        return fields if self.path is None else {**fields, FileField.PATH: self.path}


LETTER = Filed({"author": "ada", "year": 1843.0, "signed": True, "pages": 1}, path="letters/1843/a.txt")


class Cabinet:
    """A few documents in SQL whose attributes and files can be exchanged."""

    def __init__(self, database: Database, scope: Scope) -> None:
        self._database = database
        collection = new_collection(database, scope)
        documents = [shelve(database, scope, collection, f"text {number}") for number in range(4)]
        self._ids = [(document.id, document.file_id) for document in documents]

    def admits(self, wanted: Filter, filed: Sequence[Filed]) -> list[bool]:
        """Of each, whether the database admits it."""
        with self._database.write() as session:
            for (document_id, file_id), each in zip(self._ids, filed, strict=False):
                session.get_one(Document, document_id).attributes = each.attributes
                file = session.get_one(File, file_id)
                file.filename, file.created_at, file.path = each.filename, each.created_at, each.path
            session.flush()
            found = set(session.scalars(select(Document.id).where(admitted(wanted, session))))
        return [document_id in found for document_id, _ in self._ids[: len(filed)]]

    def agrees(self, wanted: Filter, filed: Sequence[Filed]) -> list[bool]:
        """The same, once it was seen that it is what the filter means."""
        admits = self.admits(wanted, filed)
        assert admits == [matches(wanted, each.attributes, each.of_file) for each in filed], wanted
        return admits

    def admits_letter(
        self,
        comparator: Comparator,
        key: str | FileField,
        value: AttributeValue | tuple[AttributeValue, ...],
    ) -> bool:
        (admits,) = self.agrees(Comparison(comparator, key, value), [LETTER])
        return admits


@pytest.fixture
def cabinet(database: Database, scope: Scope) -> Cabinet:
    return Cabinet(database, scope)


def test_a_comparison_compares(cabinet: Cabinet) -> None:
    for comparator, key, value, expected in (
        (EQ, "author", "ada", True),
        (EQ, "author", "Ada", False),
        (EQ, "year", 1843.0, True),
        (NE, "author", "ada", False),
        (NE, "author", "bob", True),
        (GT, "year", 1842.0, True),
        (GT, "year", 1843.0, False),
        (GTE, "year", 1843.0, True),
        (GTE, "year", 1844.0, False),
        (LT, "year", 1844.0, True),
        (LT, "year", 1843.0, False),
        (LTE, "year", 1843.0, True),
        (LTE, "year", 1842.0, False),
        (GT, "author", "aaa", True),
        (LT, "author", "aaa", False),
        (GT, "author", "Zoe", True),
        (GT, "signed", False, True),
        (IN, "author", ("bob", "ada"), True),
        (IN, "author", ("bob",), False),
        (NIN, "author", ("bob",), True),
        (NIN, "author", ("bob", "ada"), False),
    ):
        assert cabinet.admits_letter(comparator, key, value) is expected, (comparator, key, value)


def test_values_of_another_kind_and_missing_ones_never_match(cabinet: Cabinet) -> None:
    others: list[tuple[str, AttributeValue]] = [
        ("year", "1843"),
        ("author", 0.0),
        ("signed", "true"),
        ("absent", "ada"),
        ("absent", 0.0),
    ]
    for key, value in others:
        for comparator in (EQ, GT, GTE, LT, LTE):
            assert not cabinet.admits_letter(comparator, key, value), (comparator, key, value)


def test_a_missing_key_matches_only_ne_and_nin(cabinet: Cabinet) -> None:
    assert cabinet.admits_letter(NE, "absent", "ada")
    assert cabinet.admits_letter(NIN, "absent", ("ada", 3.0))
    assert not cabinet.admits_letter(IN, "absent", ("ada",))


def test_true_is_not_the_number_one(cabinet: Cabinet) -> None:
    assert cabinet.admits_letter(EQ, "signed", True)
    assert not cabinet.admits_letter(EQ, "signed", 1.0)
    assert not cabinet.admits_letter(EQ, "pages", True)
    assert cabinet.admits_letter(EQ, "pages", 1.0)
    assert not cabinet.admits_letter(IN, "pages", (True, "1"))
    assert not cabinet.admits_letter(GTE, "pages", False)


def test_filters_nest(cabinet: Cabinet) -> None:
    by_ada, by_bob = Comparison(EQ, "author", "ada"), Comparison(EQ, "author", "bob")
    early = Comparison(LT, "year", 1850.0)
    wanted = AllOf((early, AnyOf((by_bob, AllOf((by_ada, early))))))
    later = Filed({**LETTER.attributes, "year": 1851.0})
    assert cabinet.agrees(wanted, [LETTER, later]) == [True, False]
    assert cabinet.agrees(AllOf((by_ada, by_bob)), [LETTER]) == [False]
    assert cabinet.agrees(AnyOf((by_ada, by_bob)), [LETTER]) == [True]
    assert comparisons(wanted) == [early, by_bob, by_ada, early]


def test_all_of_nothing_matches_and_any_of_nothing_does_not(cabinet: Cabinet) -> None:
    assert cabinet.agrees(AllOf(()), [LETTER]) == [True]
    assert cabinet.agrees(AnyOf(()), [LETTER]) == [False]


def test_a_file_is_told_by_its_name_its_path_and_the_second_of_its_upload(cabinet: Cabinet) -> None:
    name, at, path = FileField.FILENAME, FileField.CREATED_AT, FileField.PATH
    second = 1_790_000_000.0
    for comparator, key, value, expected in (
        (EQ, name, "letter.txt", True),
        (EQ, name, "Letter.txt", False),
        (IN, name, ("a.txt", "letter.txt"), True),
        (EQ, path, "letters/1843/a.txt", True),
        (GTE, path, "letters/1843/", True),
        (LT, path, "letters/18430", True),
        (LT, path, "letters/1843/", False),
        (EQ, at, second, True),
        (EQ, at, second + 0.75, False),
        (GT, at, second, False),
        (GT, at, second - 0.5, True),
        (GTE, at, second, True),
        (GTE, at, second + 0.25, False),
        (LT, at, second + 0.25, True),
        (LT, at, second, False),
        (LTE, at, second, True),
        (NE, at, second, False),
        (NIN, at, (second, second + 1), False),
    ):
        assert cabinet.admits_letter(comparator, key, value) is expected, (comparator, key, value)
    upload = Filed()
    assert cabinet.agrees(Comparison(NE, path, "letters/1843/a.txt"), [upload, LETTER]) == [True, False]
    assert cabinet.agrees(Comparison(GTE, path, ""), [upload, LETTER]) == [False, True]


def test_an_attribute_may_have_the_name_of_a_file_field(cabinet: Cabinet) -> None:
    filed = Filed({"$filename": "other.txt", "filename": "third.txt"})
    assert cabinet.agrees(Comparison(EQ, "$filename", "other.txt"), [filed]) == [True]
    assert cabinet.agrees(Comparison(EQ, "filename", "third.txt"), [filed]) == [True]
    assert cabinet.agrees(Comparison(EQ, FileField.FILENAME, "letter.txt"), [filed]) == [True]
    assert Comparison(EQ, "$filename", "x").key_as_written == "$$filename"
    assert Comparison(EQ, FileField.FILENAME, "x").key_as_written == "$filename"


NASTY = [
    "x') or 1=1 --",
    "'; drop table documents; --",
    '"',
    "'",
    "\\",
    'a"b',
    "a\\u0041",
    "$.author",
    "$",
    "[0]",
    "#-1",
    ".",
    "%",
    "%(key)s",
    ":key",
    "?",
    "{}",
    " ",
    "é",
    "e\u0301",
    "😀",
    "\u200b",
    "\n",
    "true",
    "null",
]


@pytest.mark.parametrize("nasty", NASTY)
def test_a_key_and_a_text_are_never_sql_nor_a_path(cabinet: Cabinet, nasty: str) -> None:
    filed = [Filed({nasty: nasty}), Filed({"author": nasty}), Filed({nasty + "x": "ada", "A": "B"}), Filed()]
    assert cabinet.agrees(Comparison(EQ, nasty, nasty), filed) == [True, False, False, False]
    assert cabinet.agrees(Comparison(NE, nasty, nasty), filed) == [False, True, True, True]
    assert cabinet.agrees(Comparison(IN, "author", (nasty, "B")), filed) == [False, True, False, False]
    assert cabinet.agrees(Comparison(GTE, nasty, ""), filed) == [True, False, False, False]
    assert cabinet.agrees(Comparison(EQ, FileField.FILENAME, nasty), filed) == [False] * 4


def test_as_many_conditions_and_values_as_a_request_may_have(cabinet: Cabinet) -> None:
    each: list[Filter] = [Comparison(EQ, f"key {number}", float(number)) for number in range(99)]
    wanted: Filter = AnyOf(
        (*each, Comparison(IN, "author", tuple(f"name {number}" for number in range(1_000))))
    )
    for _ in range(9):
        wanted = AllOf((wanted,))
    filed = [Filed({"key 98": 98.0}), Filed({"author": "name 999"}), Filed({"key 98": 97.0})]
    assert cabinet.agrees(wanted, filed) == [True, True, False]


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
SOME_KEYS = ("author", "year", "$year", *NASTY)
SOME_VALUES = ("ada", "Ada", "é", "z", "😀", "", "1", "true", 1.0, 0.0, -0.0, 1843.0, 0.1, 1e300, True, False)
KEYS = st.sampled_from(SOME_KEYS)
VALUES: st.SearchStrategy[AttributeValue] = st.one_of(
    st.sampled_from(SOME_VALUES),
    TEXTS,
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False),
    st.integers(-(2**40), 2**40).map(float),
)
FILED = st.builds(
    Filed,
    attributes=st.dictionaries(KEYS | TEXTS, VALUES, max_size=4),
    filename=st.sampled_from(["a.txt", "A.txt", "é.pdf"]),
    created_at=st.sampled_from([0.0, 0.5, 1.0, 1.999, 1_790_000_000.25]),
    path=st.sampled_from([None, "a/b.txt", "a/B.txt", "é/b.txt"]),
)


def _comparing(keys: st.SearchStrategy[Any], values: st.SearchStrategy[Any]) -> st.SearchStrategy[Filter]:
    single = st.builds(Comparison, st.sampled_from([EQ, NE, GT, GTE, LT, LTE]), keys, values)
    several = st.builds(
        Comparison, st.sampled_from([IN, NIN]), keys, st.lists(values, min_size=1, max_size=4).map(tuple)
    )
    return single | several


FILTERS: st.SearchStrategy[Filter] = st.recursive(
    st.one_of(
        _comparing(KEYS | TEXTS, VALUES),
        _comparing(st.just(FileField.FILENAME), st.sampled_from(["a.txt", "a", "é.pdf", ""])),
        _comparing(st.just(FileField.PATH), st.sampled_from(["a/", "a/b.txt", "b", ""])),
        _comparing(
            st.just(FileField.CREATED_AT), st.sampled_from([0.0, 0.5, 1.0, -1.0, 1_790_000_000.0, 1e300])
        ),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        .map(tuple)
        .flatmap(lambda filters: st.sampled_from([AllOf(filters), AnyOf(filters)]))
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=FILTERS, filed=st.lists(FILED, min_size=4, max_size=4))
@example(wanted=Comparison(EQ, "n", -0.0), filed=[Filed({"n": 0.0}), Filed({"n": -0.0}), Filed(), Filed()])
def test_sql_says_what_a_filter_means(cabinet: Cabinet, wanted: Filter, filed: list[Filed]) -> None:
    cabinet.agrees(wanted, filed)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_sql_finds_each_value_that_was_stored(cabinet: Cabinet, data: st.DataObject) -> None:
    """Drawn from the documents themselves, or few comparisons would ever hold."""
    filed = data.draw(st.lists(FILED.filter(lambda each: bool(each.attributes)), min_size=4, max_size=4))
    key = data.draw(st.sampled_from(sorted(filed[0].attributes)))
    value = filed[0].attributes[key]
    assert cabinet.agrees(Comparison(EQ, key, value), filed)[0]
    for comparator in (GTE, LTE, GT, LT):
        cabinet.agrees(Comparison(comparator, key, value), filed)
    others = tuple(each for other in filed for each in other.attributes.values())
    assert cabinet.agrees(Comparison(IN, key, others), filed)[0]
    cabinet.agrees(Comparison(NIN, key, others[1:] or others), filed)
