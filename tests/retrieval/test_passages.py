"""Passages: exactly the document's text, neighbours joined, within a budget."""

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from retrieval import catalog
from retrieval.database import Database
from retrieval.passages import Passage, load_passages, read_text
from retrieval.places import places_from_rows
from retrieval.scope import Scope
from retrieval.search import FoundChunk
from retrieval.tables import Chunk, Document, DocumentStatus, File, ParsedPart
from tests.retrieval.library import new_collection, shelve

PARAGRAPHS = tuple(f"Paragraph {name} has just 🗝 ten tokens, naïve as it is." for name in "abcdefgh")
COST = len(PARAGRAPHS[0].split())
PLENTY = 100 * COST


@pytest.fixture
def document(database: Database, scope: Scope) -> Document:
    return shelve(database, scope, new_collection(database, scope), *PARAGRAPHS, headings=["Keys"])


def found(session: Session, document: Document, *positions: int) -> list[FoundChunk]:
    """The document's chunks at these positions, best first."""
    chunks = {
        chunk.position: chunk
        for chunk in session.scalars(select(Chunk).where(Chunk.document_id == document.id))
    }
    return [
        FoundChunk(
            chunk_id=chunks[position].id,
            document_id=document.id,
            collection_id=document.collection_id,
            file_id=document.file_id,
            filename="a.txt",
            attributes={},
            generation=0,
            position=position,
            text=chunks[position].text,
            start_char=chunks[position].start_char,
            end_char=chunks[position].end_char,
            headings=("Keys",),
            places=places_from_rows(chunks[position].places),
            token_count=chunks[position].token_count,
            score=1.0 / rank,
        )
        for rank, position in enumerate(positions, 1)
    ]


def load(
    database: Database,
    scope: Scope,
    document: Document,
    *positions: int,
    limit: int = 10,
    budget: int = PLENTY,
) -> list[Passage]:
    with database.read() as session:
        chunks = found(session, document, *positions)
        return load_passages(session, scope, chunks, limit=limit, token_budget=budget)


def joined(first: int, last: int) -> str:
    return "\n\n".join(PARAGRAPHS[first : last + 1])


def test_a_passage_is_exactly_a_slice_of_the_stored_text_with_its_places(
    database: Database, scope: Scope, document: Document
) -> None:
    (passage,) = load(database, scope, document, 3)
    with database.read() as session:
        whole = read_text(session, scope, document.id)
        assert whole == joined(0, 7)
        assert read_text(session, scope, document.id, 5) == whole[5:]
    assert passage.text == whole[passage.start_char : passage.end_char] == joined(2, 4)
    assert [place.page for place in passage.places] == [3, 4, 5]
    for place, paragraph in zip(passage.places, PARAGRAPHS[2:5], strict=True):
        assert whole[place.start_char : place.end_char] == paragraph
    assert (passage.headings, passage.score, passage.file_id) == (("Keys",), 1.0, document.file_id)


def test_neighbours_are_taken_in_only_while_the_budget_lasts(
    database: Database, scope: Scope, document: Document
) -> None:
    """The next paragraph before the previous one: an answer more often follows than leads."""
    assert [passage.text for passage in load(database, scope, document, 3, budget=COST)] == [joined(3, 3)]
    assert [passage.text for passage in load(database, scope, document, 3, budget=2 * COST)] == [joined(3, 4)]
    assert [passage.text for passage in load(database, scope, document, 3, budget=3 * COST)] == [joined(2, 4)]


def test_the_ends_of_a_document_have_one_neighbour(
    database: Database, scope: Scope, document: Document
) -> None:
    assert [passage.text for passage in load(database, scope, document, 0)] == [joined(0, 1)]
    assert [passage.text for passage in load(database, scope, document, 7)] == [joined(6, 7)]


def test_chunks_that_touch_become_one_passage_at_the_better_rank(
    database: Database, scope: Scope, document: Document
) -> None:
    first, second = load(database, scope, document, 6, 1, 2, budget=3 * COST)
    assert (first.text, second.text) == (joined(6, 6), joined(1, 2))
    assert second.score == 1 / 2


def test_a_chunk_between_two_passages_makes_them_one(
    database: Database, scope: Scope, document: Document
) -> None:
    """Otherwise the text between them would be read, and paid for, twice."""
    passages = load(database, scope, document, 1, 5, 3)
    assert [passage.text for passage in passages] == [joined(0, 6)]
    passages = load(database, scope, document, 1, 3, 2, budget=3 * COST)
    assert [passage.text for passage in passages] == [joined(1, 3)]


def test_the_budget_holds_and_a_shorter_chunk_may_still_fit(database: Database, scope: Scope) -> None:
    collection = new_collection(database, scope)
    document = shelve(database, scope, collection, "one two", "x " * 50, "gap", "gap", "six seven eight")
    texts = [passage.text for passage in load(database, scope, document, 0, 1, 4, budget=5)]
    assert texts == ["one two", "six seven eight"]


def test_the_best_chunk_is_read_even_when_it_alone_exceeds_the_budget(
    database: Database, scope: Scope, document: Document
) -> None:
    assert [passage.text for passage in load(database, scope, document, 3, 5, budget=1)] == [joined(3, 3)]


def test_no_more_chunks_than_the_limit_are_read(database: Database, scope: Scope, document: Document) -> None:
    passages = load(database, scope, document, 0, 3, 6, limit=2, budget=2 * COST)
    assert [passage.text for passage in passages] == [joined(0, 0), joined(3, 3)]


def test_nothing_found_gives_no_passage(database: Database, scope: Scope, document: Document) -> None:
    assert load(database, scope, document) == []


def test_another_tenant_reads_nothing(
    database: Database, scope: Scope, other_scope: Scope, document: Document
) -> None:
    assert load(database, other_scope, document, 3) == []
    with database.read() as session:
        assert read_text(session, other_scope, document.id) is None
        assert read_text(session, scope, 404) is None


def test_what_was_deleted_or_is_ingested_anew_since_the_search_is_not_read(
    database: Database, scope: Scope, document: Document
) -> None:
    with database.read() as session:
        chunks = found(session, document, 3)
    with database.write() as session:
        session.get_one(Document, document.id).status = DocumentStatus.IN_PROGRESS
    with database.read() as session:
        assert load_passages(session, scope, chunks, limit=5, token_budget=PLENTY) == []
    with database.write() as session:
        catalog.delete_file(session, scope, document.file_id)
    with database.read() as session:
        assert load_passages(session, scope, chunks, limit=5, token_budget=PLENTY) == []


def test_text_is_read_across_the_parts_of_a_long_document(database: Database, scope: Scope) -> None:
    collection = new_collection(database, scope)
    document = shelve(database, scope, collection, "The vault opens at nine.")
    with database.write() as session:
        file = session.get_one(File, document.file_id)
        parts = session.scalars(select(ParsedPart).where(ParsedPart.blob_id == file.blob_id)).all()
        start = len(parts[0].text)
        for number, text in enumerate(("\n\nThe key hangs ", "in the hall."), 1):
            session.add(
                ParsedPart(
                    blob_id=file.blob_id,
                    media_type=file.media_type,
                    number=number,
                    start_char=start,
                    text=text,
                    elements=b"",
                )
            )
            start += len(text)
    whole = "The vault opens at nine.\n\nThe key hangs in the hall."
    with database.read() as session:
        assert read_text(session, scope, document.id) == whole
        for first in range(0, len(whole), 5):
            assert read_text(session, scope, document.id, first) == whole[first:]
            for last in range(first + 1, len(whole) + 1, 7):
                assert read_text(session, scope, document.id, first, last) == whole[first:last]
