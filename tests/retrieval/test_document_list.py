"""Documents as a table shows them: each page follows the one before, whatever they are sorted by."""

import pytest

from retrieval.catalog import CollectionMissing
from retrieval.database import Database
from retrieval.document_list import Sort, Wanted, list_named, list_sorted, place_of
from retrieval.scope import Scope
from retrieval.tables import DocumentStatus
from tests.retrieval.library import add_text_file, attach, new_collection, shelve

NAMES = ("Beta.txt", "alpha.txt", "beta 100%.txt", "gamma.txt", "Alpha 2.txt")


@pytest.fixture
def shelf(database: Database, scope: Scope) -> str:
    """A collection with a document of each name, added one after the other; the last one is not completed."""
    collection = new_collection(database, scope)
    for number, name in enumerate(NAMES[:-1]):
        shelve(database, scope, collection, "word " * (number + 1), filename=name, now=float(number))
    with database.write() as session:
        file = add_text_file(session, scope, "word " * 9, filename=NAMES[-1], now=9.0)
        attach(session, scope, collection.id, file.id, now=9.0)
    return collection.id


def names(database: Database, scope: Scope, shelf: str, wanted: Wanted, *, limit: int = 10) -> list[str]:
    with database.read() as session:
        return [each.filename for each in list_sorted(session, scope, shelf, wanted, limit=limit)]


@pytest.mark.parametrize(
    ("sort", "sorted_names"),
    [
        (Sort.NEWEST, NAMES[::-1]),
        (Sort.OLDEST, NAMES),
        (Sort.NAME, ("Alpha 2.txt", "alpha.txt", "beta 100%.txt", "Beta.txt", "gamma.txt")),
        (Sort.LARGEST, ("Alpha 2.txt", "gamma.txt", "beta 100%.txt", "alpha.txt", "Beta.txt")),
    ],
)
def test_pages_of_any_size_give_each_document_once_and_in_order(
    database: Database, scope: Scope, shelf: str, sort: Sort, sorted_names: tuple[str, ...]
) -> None:
    for limit in (1, 2, 3, 10):
        found: list[str] = []
        after = None
        while True:
            with database.read() as session:
                page = list_sorted(session, scope, shelf, Wanted(sort=sort, after=after), limit=limit)
            found += [each.filename for each in page]
            if len(page) < limit:
                break
            after = place_of(page[-1], sort)
        assert tuple(found) == sorted_names


def test_a_name_is_found_by_any_part_of_it_and_signs_mean_themselves(
    database: Database, scope: Scope, shelf: str
) -> None:
    assert names(database, scope, shelf, Wanted(named="BETA", sort=Sort.NAME)) == [
        "beta 100%.txt",
        "Beta.txt",
    ]
    assert names(database, scope, shelf, Wanted(named="0%")) == ["beta 100%.txt"]
    assert names(database, scope, shelf, Wanted(named="_")) == []


def test_a_status_narrows_the_list(database: Database, scope: Scope, shelf: str) -> None:
    assert names(database, scope, shelf, Wanted(status=DocumentStatus.IN_PROGRESS)) == ["Alpha 2.txt"]
    assert len(names(database, scope, shelf, Wanted(status=DocumentStatus.COMPLETED))) == 4


def test_another_tenant_sees_nothing(
    database: Database, scope: Scope, other_scope: Scope, shelf: str
) -> None:
    with database.read() as session:
        found = list_sorted(session, scope, shelf, Wanted(), limit=10)
        assert list_named(session, other_scope, shelf, [each.document.file_id for each in found]) == []
        with pytest.raises(CollectionMissing):
            list_sorted(session, other_scope, shelf, Wanted(), limit=10)
