"""Passages: exactly the document's text, with what belongs to each chunk around it, within a budget."""

import dataclasses
from collections.abc import Sequence

import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from retrieval import catalog
from retrieval.database import Database
from retrieval.duplicates import similarity_hash
from retrieval.passages import Passage, cut_to, load_passages, read_text
from retrieval.places import places_from_rows
from retrieval.scope import Scope
from retrieval.search import FoundChunk
from retrieval.tables import Chunk, Document, DocumentStatus, File, ParsedPart
from tests.retrieval.library import attach, complete, new_collection, shelve

PARAGRAPHS = tuple(f"Paragraph {name} has just 🗝 ten tokens, naïve as it is." for name in "abcdefgh")
COST = len(PARAGRAPHS[0].split())
PLENTY = 100 * COST


def words(text: str) -> int:
    return len(text.split())


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
            headings=tuple(chunks[position].headings),
            places=places_from_rows(chunks[position].places),
            token_count=chunks[position].token_count,
            score=1.0 / rank,
            similarity_hash=similarity_hash(chunks[position].text),
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
        return load_passages(session, scope, chunks, limit=limit, token_budget=budget, count_tokens=words)


def texts(passages: Sequence[Passage]) -> list[str]:
    return [passage.text for passage in passages]


def set_headings(database: Database, document: Document, *headings: Sequence[str], tables: str = "") -> None:
    """The heading path of each chunk; in `tables` a letter t for each that is rows of a table."""
    with database.write() as session:
        chunks = session.scalars(
            select(Chunk).where(Chunk.document_id == document.id).order_by(Chunk.position)
        )
        for position, (chunk, path) in enumerate(zip(chunks, headings, strict=True)):
            chunk.headings = list(path)
            chunk.is_table = tables[position : position + 1] == "t"


def joined(first: int, last: int) -> str:
    return "\n\n".join(PARAGRAPHS[first : last + 1])


def test_a_passage_is_exactly_a_slice_of_the_stored_text_with_its_places(
    database: Database, scope: Scope, document: Document
) -> None:
    (passage,) = load(database, scope, document, 3, budget=3 * COST)
    with database.read() as session:
        whole = read_text(session, scope, document.id)
        assert whole == joined(0, 7)
        assert read_text(session, scope, document.id, 5) == whole[5:]
    assert passage.text == whole[passage.start_char : passage.end_char] == joined(2, 4)
    assert [place.page for place in passage.places] == [3, 4, 5]
    for place, paragraph in zip(passage.places, PARAGRAPHS[2:5], strict=True):
        assert whole[place.start_char : place.end_char] == paragraph
    assert (passage.headings, passage.score, passage.file_id) == (("Keys",), 1.0, document.file_id)


def test_a_section_is_taken_in_from_its_middle_while_the_budget_lasts(
    database: Database, scope: Scope, document: Document
) -> None:
    """The next paragraph before the previous one: an answer more often follows than leads."""
    for budget, first, last in ((1, 3, 3), (2, 3, 4), (3, 2, 4), (4, 2, 5), (8, 0, 7)):
        assert texts(load(database, scope, document, 3, budget=budget * COST)) == [joined(first, last)]


def test_the_ends_of_a_document_have_one_side(database: Database, scope: Scope, document: Document) -> None:
    assert texts(load(database, scope, document, 0, budget=2 * COST)) == [joined(0, 1)]
    assert texts(load(database, scope, document, 7, budget=2 * COST)) == [joined(6, 7)]


def test_a_whole_section_comes_before_the_paragraph_beside_it_and_nothing_comes_after_that(
    database: Database, scope: Scope, document: Document
) -> None:
    a, b, c = ["A"], ["A", "B"], ["C"]
    set_headings(database, document, a, a, b, b, b, c, c, c)
    for budget, first, last in ((2, 3, 4), (3, 2, 4), (4, 2, 4), (100, 2, 4)):
        assert texts(load(database, scope, document, 3, budget=budget * COST)) == [joined(first, last)]
    for budget, first, last in ((3, 2, 4), (4, 2, 5), (100, 2, 5)):
        assert texts(load(database, scope, document, 4, budget=budget * COST)) == [joined(first, last)]


def test_a_table_is_kept_whole_at_the_cost_of_the_others_and_shows_its_header_once(
    database: Database, scope: Scope
) -> None:
    header = "Key | Hook"
    rows = (f"{header}\nA | 1", "B | 2", "C | 3", "D | 4")
    document = shelve(
        database, scope, new_collection(database, scope), "Before it.", *rows, "After it, far off.", "More."
    )
    under, below = ["Keys"], ["Keys", header]
    set_headings(database, document, under, under, below, below, below, under, under, tables=" tttt")
    whole = sum(words(row) for row in rows)
    table, after = load(database, scope, document, 3, 6, budget=whole + 1)
    assert (table.text, after.text) == ("\n\n".join(rows), "More.")
    assert table.headings == ("Keys",)
    (part,) = load(database, scope, document, 3, budget=6)
    assert (part.text, part.headings) == ("C | 3\n\nD | 4", ("Keys", header))


def test_what_is_left_of_the_budget_is_shared_by_score(database: Database, scope: Scope) -> None:
    collection = new_collection(database, scope)
    one = shelve(database, scope, collection, *PARAGRAPHS, headings=["Keys"])
    two = shelve(database, scope, collection, *(text.upper() for text in PARAGRAPHS), headings=["Locks"])
    with database.read() as session:
        chunks = [*found(session, one, 3), *found(session, two, 1, 3)[1:]]
        assert [chunk.score for chunk in chunks] == [1.0, 0.5]
        first, second = load_passages(
            session, scope, chunks, limit=3, token_budget=8 * COST, count_tokens=words
        )
    assert first.text == joined(1, 5)
    assert second.text == joined(2, 4).upper()


def test_near_identical_chunks_are_read_once_whatever_collection_they_stand_in(
    database: Database, scope: Scope
) -> None:
    long = (
        "The tenant shall keep the premises in good repair and shall return all keys at the end of the term "
        * 2
    )
    both = [
        shelve(database, scope, new_collection(database, scope, name), text, PARAGRAPHS[0], filename=name)
        for name, text in (("leases", long), ("copies", long.replace("good", "fair")))
    ]
    with database.read() as session:
        chunks = [*found(session, both[0], 0), *found(session, both[1], 0, 1)]
        passages = load_passages(
            session, scope, chunks, limit=2, token_budget=words(long) + COST, count_tokens=words
        )
    assert texts(passages) == [long, PARAGRAPHS[0]]


def test_a_file_that_two_collections_cut_in_their_own_ways_is_read_once(
    database: Database, scope: Scope
) -> None:
    one = shelve(database, scope, new_collection(database, scope, "one"), *PARAGRAPHS)
    with database.write() as session:
        other = attach(session, scope, new_collection(database, scope, "other").id, one.file_id)
        complete(session, other, (joined(0, 3), joined(4, 7)))
    with database.read() as session:
        chunks = [*found(session, other, 0), *found(session, one, 2, 6)]
        passages = load_passages(session, scope, chunks, limit=9, token_budget=5 * COST, count_tokens=words)
    assert texts(passages) == [joined(0, 3), joined(6, 6)]


def test_one_document_fills_everything_only_if_the_others_say_nothing_new(
    database: Database, scope: Scope
) -> None:
    collection = new_collection(database, scope)
    hall = ("The key hangs in the hall.", "In the hall hangs the key.", "The hall: the key hangs in it.")
    hooks = shelve(database, scope, collection, *hall, filename="hooks.txt")
    vault = shelve(database, scope, collection, "Vault door is of iron.", filename="vault.txt")
    with database.read() as session:
        same = found(session, hooks, 0, 1, 2)
        (other,) = found(session, vault, 0)
        ranked = [same[0], *(replaced(chunk, 0.9) for chunk in same[1:]), replaced(other, 0.6)]
        varied = load_passages(session, scope, ranked, limit=2, token_budget=PLENTY, count_tokens=words)
        assert [passage.document_id for passage in varied] == [hooks.id, vault.id]
        far = [*ranked[:3], replaced(other, 0.1)]
        (kept,) = load_passages(session, scope, far, limit=2, token_budget=PLENTY, count_tokens=words)
        assert kept.document_id == hooks.id


def replaced(chunk: FoundChunk, score: float) -> FoundChunk:
    return dataclasses.replace(chunk, score=score)


def test_passages_take_two_statements_however_many_they_are(
    database: Database, scope: Scope, document: Document
) -> None:
    other = shelve(database, scope, new_collection(database, scope, "more"), *PARAGRAPHS[::-1])
    said: list[str] = []

    def note(*arguments: object) -> None:
        said.append(str(arguments[2]))

    with database.read() as session:
        chunks = [*found(session, document, 0, 3, 6), *found(session, other, 0, 3)]
        engine = session.get_bind()
        event.listen(engine, "before_cursor_execute", note)
        try:
            passages = load_passages(
                session, scope, chunks, limit=9, token_budget=6 * COST, count_tokens=words
            )
        finally:
            event.remove(engine, "before_cursor_execute", note)
    assert len(passages) == 5
    assert len(said) == 2, said


def test_a_passage_that_is_too_long_for_the_engine_keeps_its_beginning_and_stays_a_slice(
    database: Database, scope: Scope, document: Document
) -> None:
    (whole,) = load(database, scope, document, 0)
    for room in range(1, words(whole.text) + 2):
        passage = cut_to(whole, room, words)
        assert whole.text.startswith(passage.text)
        assert 0 < words(passage.text) <= room
        assert passage.end_char == passage.start_char + len(passage.text)
        assert all(place.end_char <= passage.end_char for place in passage.places)
    assert cut_to(whole, 2 * COST + 3, words).text == joined(0, 1)
    assert cut_to(whole, PLENTY, words) == whole


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
    passages = load(database, scope, document, 1, 5, 3, budget=5 * COST)
    assert texts(passages) == [joined(0, 3), joined(5, 5)]
    passages = load(database, scope, document, 1, 3, 2, budget=3 * COST)
    assert [passage.text for passage in passages] == [joined(1, 3)]


def test_the_budget_holds_and_a_shorter_chunk_may_still_fit(database: Database, scope: Scope) -> None:
    collection = new_collection(database, scope)
    document = shelve(database, scope, collection, "one two", "x " * 50, "gap", "gap", "six seven eight")
    read = texts(load(database, scope, document, 0, 1, 4, budget=5))
    assert read == ["one two", "six seven eight"]


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
        assert load_passages(session, scope, chunks, limit=5, token_budget=PLENTY, count_tokens=words) == []
    with database.write() as session:
        catalog.delete_file(session, scope, document.file_id)
    with database.read() as session:
        assert load_passages(session, scope, chunks, limit=5, token_budget=PLENTY, count_tokens=words) == []


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
