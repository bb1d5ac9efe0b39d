"""Filters of a search over HTTP: what they find, and what is refused by its place in the filter."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from app.routes.filters import MAX_COMPARISONS, MAX_DEPTH, MAX_VALUES
from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.tables import Collection, Document, File
from tests.app.with_fakes import FakeModels, client_of, services_with
from tests.fakes import FakeEmbedder
from tests.retrieval.library import shelve

STORES = "/v1/vector_stores"
DAY_S = 86_400.0
NEW_YEAR_2026 = 1_767_225_600.0

Shape = dict[str, Any]


@pytest.fixture
async def http(database: Database, scope: Scope) -> AsyncIterator[httpx.AsyncClient]:
    services = services_with(database, FakeModels(embedders={"large": FakeEmbedder()}, rerankers={}))
    async with client_of(services, scope) as client:
        yield client


@pytest.fixture
async def store(http: httpx.AsyncClient, database: Database, scope: Scope) -> str:
    """A letter of 1843 that was uploaded, and a lease of 1851 that came from a source a day later."""
    store_id: str = (await http.post(STORES, json={})).json()["id"]
    with database.read() as session:
        collection = session.get_one(Collection, store_id)
    shelve(
        database,
        scope,
        collection,
        "The vault opens at nine.",
        filename="letter.txt",
        attributes={"author": "ada", "year": 1843.0, "signed": True, "$filename": "draft"},
        now=NEW_YEAR_2026 + 0.5,
    )
    lease = shelve(
        database,
        scope,
        collection,
        "The lease of the vault.",
        filename="lease.pdf",
        attributes={"author": "bob", "year": 1851.0},
        now=NEW_YEAR_2026 + DAY_S,
    )
    with database.write() as session:
        session.execute(update(File).where(File.id == lease.file_id).values(path="leases/2026/lease.pdf"))
    return store_id


async def post(http: httpx.AsyncClient, store_id: str, filters: Any, **more: Any) -> httpx.Response:
    # Written here, since httpx sends neither NaN nor half a surrogate pair.
    content = json.dumps({"query": "vault", "filters": filters, **more}).encode()
    headers = {"Content-Type": "application/json"}
    return await http.post(f"{STORES}/{store_id}/search", content=content, headers=headers)


def compared(kind: str, key: Any, value: Any) -> Shape:
    return {"type": kind, "key": key, "value": value}


def nested(levels: int) -> Shape:
    shape = compared("eq", "author", "ada")
    for _ in range(levels):
        shape = {"type": "and", "filters": [shape]}
    return shape


LETTER, LEASE = "letter.txt", "lease.pdf"


FOUND: list[tuple[Any, list[str]]] = [
    (compared("eq", "author", "ada"), [LETTER]),
    (compared("ne", "author", "ada"), [LEASE]),
    (compared("gte", "year", 1850), [LEASE]),
    (compared("eq", "signed", True), [LETTER]),
    (compared("eq", "signed", 1), []),
    (compared("nin", "author", ["ada", "bob"]), []),
    (compared("eq", "$filename", LETTER), [LETTER]),
    (compared("in", "$filename", [LEASE, "other.txt"]), [LEASE]),
    (compared("eq", "$$filename", "draft"), [LETTER]),
    (compared("eq", "$path", "leases/2026/lease.pdf"), [LEASE]),
    (compared("gte", "$path", "leases/2026/"), [LEASE]),
    (compared("ne", "$path", "leases/2026/lease.pdf"), [LETTER]),
    (compared("eq", "$created_at", int(NEW_YEAR_2026)), [LETTER]),
    (compared("lt", "$created_at", "2026-01-02"), [LETTER]),
    (compared("gte", "$created_at", "2026-01-02T01:00:00+01:00"), [LEASE]),
    (compared("gt", "$created_at", "2026-01-02T00:00:00Z"), []),
    (
        {
            "type": "or",
            "filters": [compared("lt", "year", 1800), compared("eq", "$filename", LEASE)],
        },
        [LEASE],
    ),
    (None, [LETTER, LEASE]),
    (nested(MAX_DEPTH), [LETTER]),
]


@pytest.mark.parametrize("mode", ["hybrid", "vector", "keyword"])
async def test_a_filter_finds_by_attributes_and_by_the_file(
    http: httpx.AsyncClient, store: str, mode: str
) -> None:
    for filters, found in FOUND:
        reply = await post(http, store, filters, search_mode=mode)
        assert reply.status_code == 200, reply.text
        assert sorted(each["filename"] for each in reply.json()["data"]) == sorted(found), filters


async def test_the_time_that_a_file_shows_is_the_one_that_it_is_found_by(
    http: httpx.AsyncClient, store: str, database: Database
) -> None:
    reply = await post(http, store, compared("eq", "author", "ada"))
    file_id = reply.json()["data"][0]["file_id"]
    with database.read() as session:
        shown = int(session.get_one(File, file_id).created_at)
    found = await post(http, store, compared("eq", "$created_at", shown))
    assert [each["file_id"] for each in found.json()["data"]] == [file_id]


EQ = compared("eq", "author", "ada")


REFUSED: list[tuple[Any, str, str]] = [
    ("author", "filters", "object"),
    ([], "filters", "object"),
    ({}, "filters.type", "required"),
    (compared("like", "author", "ada"), "filters.type", "eq, ne, gt, gte, lt, lte, in, nin"),
    (compared("EQ", "author", "ada"), "filters.type", "one of"),
    ({"type": ["eq"], "key": "a", "value": 1}, "filters.type", "one of"),
    ({"type": "eq", "value": "ada"}, "filters.key", "required"),
    ({"type": "eq", "key": "author"}, "filters.value", "required"),
    ({**EQ, "boost": 2}, "filters.boost", "unknown field"),
    ({**EQ, "filters": [EQ]}, "filters.filters", "unknown field"),
    ({"type": "and", "filters": [EQ], "key": "author"}, "filters.key", "unknown field"),
    ({"type": "and"}, "filters.filters", "required"),
    ({"type": "or", "filters": []}, "filters.filters", "one filter or more"),
    ({"type": "or", "filters": EQ}, "filters.filters", "list"),
    ({"type": "and", "filters": [EQ, compared("is", "a", 1)]}, "filters.filters.1.type", "one of"),
    (
        {"type": "and", "filters": [EQ, {"type": "or", "filters": [compared("eq", "a", None)]}]},
        "filters.filters.1.filters.0.value",
        "a text, a number, true or false",
    ),
    (compared("eq", "", "ada"), "filters.key", "1 to 64"),
    (compared("eq", "a" * 65, "ada"), "filters.key", "1 to 64"),
    (compared("eq", 5, "ada"), "filters.key", "text"),
    (compared("eq", "$author", "ada"), "filters.key", "$filename, $created_at, $path"),
    (compared("eq", "$", "ada"), "filters.key", "1 to 64"),
    (compared("eq", "a\0b", "ada"), "filters.key", "NUL"),
    (compared("eq", "author", "a\0b"), "filters.value", "NUL"),
    (compared("eq", "\ud800", "ada"), "filters.key", "surrogate"),
    (compared("in", "author", ["ada", "\ud800"]), "filters.value.1", "surrogate"),
    ({**EQ, "\ud800": 1}, "filters.?", "unknown field"),
    (compared("eq", "author", ["ada"]), "filters.value", "'eq' needs a single value"),
    (compared("in", "author", "ada"), "filters.value", "'in' needs a list"),
    (compared("in", "author", []), "filters.value", "one value or more"),
    (compared("nin", "author", ["ada", {"a": 1}]), "filters.value.1", "a text, a number, true or false"),
    (compared("gt", "year", {"a": 1}), "filters.value", "a text, a number, true or false"),
    (compared("gt", "year", float("nan")), "filters.value", "finite"),
    (compared("gt", "year", float("-inf")), "filters.value", "finite"),
    (compared("gt", "year", 10**400), "filters.value", "large"),
    (compared("eq", "$filename", 5), "filters.value", "text"),
    (compared("eq", "$path", True), "filters.value", "text"),
    (compared("gt", "$created_at", "yesterday"), "filters.value", "2026-01-31"),
    (compared("gt", "$created_at", True), "filters.value", "2026-01-31"),
    (compared("in", "author", ["x"] * (MAX_VALUES + 1)), "filters.value", str(MAX_VALUES)),
    (
        {"type": "or", "filters": [compared("in", "a", ["x"] * 600), compared("in", "b", ["x"] * 600)]},
        "filters",
        "1200 values",
    ),
    ({"type": "or", "filters": [EQ] * (MAX_COMPARISONS + 1)}, "filters.filters", "101 conditions"),
    (
        {"type": "or", "filters": [{"type": "and", "filters": [EQ] * 60}] * 2},
        "filters",
        "120 conditions",
    ),
    (nested(MAX_DEPTH + 1), "filters" + ".filters.0" * MAX_DEPTH, "deeper than 10"),
    (nested(200), "filters" + ".filters.0" * MAX_DEPTH, "deeper than 10"),
]


async def test_a_filter_that_cannot_be_right_is_refused_by_its_place(
    http: httpx.AsyncClient, store: str
) -> None:
    for filters, place, says in REFUSED:
        reply = await post(http, store, filters)
        assert reply.status_code == 400, (filters, reply.text)
        error = reply.json()["error"]
        assert error["param"] == place, filters
        assert place in error["message"]
        assert says in error["message"], filters


async def test_a_filter_that_is_as_large_as_it_may_be_is_answered(
    http: httpx.AsyncClient, store: str
) -> None:
    largest = {
        "type": "or",
        "filters": [compared("eq", f"key {number}", number) for number in range(MAX_COMPARISONS - 1)]
        + [compared("in", "author", [f"name {number}" for number in range(MAX_VALUES - 1)] + ["ada"])],
    }
    reply = await post(http, store, largest)
    assert [each["filename"] for each in reply.json()["data"]] == [LETTER]


async def test_a_filter_of_another_tenants_documents_finds_none_of_them(
    http: httpx.AsyncClient, store: str, database: Database, other_scope: Scope
) -> None:
    services = services_with(database, FakeModels(embedders={"large": FakeEmbedder()}, rerankers={}))
    async with client_of(services, other_scope) as theirs:
        assert (await post(theirs, store, compared("ne", "author", "x"))).status_code == 404
        own: str = (await theirs.post(STORES, json={})).json()["id"]
        assert (await post(theirs, own, compared("ne", "author", "x"))).json()["data"] == []


@pytest.mark.parametrize("attributes", [{"a\0": "x"}, {"a": "x\0"}, {"a": float("nan")}, {"a": float("inf")}])
async def test_an_attribute_that_a_database_cannot_hold_is_refused(
    http: httpx.AsyncClient, store: str, database: Database, attributes: Shape
) -> None:
    with database.read() as session:
        file_id = session.query(Document.file_id).limit(1).scalar()
    content = json.dumps({"attributes": attributes}).encode()
    reply = await http.post(
        f"{STORES}/{store}/files/{file_id}", content=content, headers={"Content-Type": "application/json"}
    )
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith("attributes")
