"""A quote as it is stored: its text and its places, for those who may see the document, while it is there."""

from sqlalchemy import delete, update

from retrieval import catalog
from retrieval.database import Database
from retrieval.quotes import StoredQuote, read_quote
from retrieval.scope import Scope
from retrieval.tables import Chunk, Collection, Document, DocumentStatus
from tests.retrieval.library import new_collection, shelve

FIRST, SECOND = "The strongroom is fireproof.", "The 🗝 hangs in the hall."


def quote(database: Database, scope: Scope, document: Document, start: int, end: int) -> StoredQuote | None:
    with database.read() as session:
        return read_quote(session, scope, document.id, start, end)


def test_it_is_the_stored_text_with_the_places_that_it_touches(database: Database, scope: Scope) -> None:
    document = shelve(database, scope, new_collection(database, scope), FIRST, SECOND)
    start = len(FIRST) + 2
    whole = quote(database, scope, document, start, start + len(SECOND))
    assert whole is not None
    assert whole.text == SECOND
    assert [(place.page, place.start_char) for place in whole.places] == [(2, start)]
    across = quote(database, scope, document, 4, start + 5)
    assert across is not None
    assert across.text == f"{FIRST[4:]}\n\n{SECOND[:5]}"
    assert [place.page for place in across.places] == [1, 2]
    at_the_border = quote(database, scope, document, 0, len(FIRST))
    assert at_the_border is not None
    assert [place.page for place in at_the_border.places] == [1]


def test_nobody_else_sees_it_and_nobody_after_its_deletion(
    database: Database, scope: Scope, other_scope: Scope
) -> None:
    document = shelve(database, scope, new_collection(database, scope), FIRST)
    assert quote(database, other_scope, document, 0, 10) is None
    with database.write() as session:
        catalog.delete_file(session, scope, document.file_id)
    assert quote(database, scope, document, 0, 10) is None


def test_what_is_being_ingested_anew_or_answers_with_no_chunk_has_none(
    database: Database, scope: Scope
) -> None:
    document = shelve(database, scope, new_collection(database, scope), FIRST, SECOND)
    with database.write() as session:
        session.execute(update(Collection).values(generation=Collection.generation + 1))
    assert quote(database, scope, document, 0, 10) is None
    with database.write() as session:
        session.execute(update(Collection).values(generation=Collection.generation - 1))
        session.execute(delete(Chunk).where(Chunk.position == 0))
    assert quote(database, scope, document, 0, 10) is None
    assert quote(database, scope, document, 40, 50) is not None
    with database.write() as session:
        session.execute(update(Document).values(status=DocumentStatus.IN_PROGRESS))
    assert quote(database, scope, document, 40, 50) is None
