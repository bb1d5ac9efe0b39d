"""Quotes as they are stored: the text between two offsets of a document, and where on its pages it stands."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Integer, Select, bindparam, select
from sqlalchemy.orm import Session

from retrieval.access import readable_documents
from retrieval.passages import stretch_of
from retrieval.places import Place, places_from_rows
from retrieval.scope import Scope
from retrieval.tables import Chunk, Collection, Document, DocumentStatus, File


@dataclass(frozen=True)
class StoredQuote:
    """`places`: those that the characters touch, in their order; none where the format has neither page nor box."""

    text: str
    places: tuple[Place, ...]


@dataclass(frozen=True)
class StoredStretch:
    """A document's text from `start_char` on as it was stored at one moment, to take quotes from."""

    text: str
    start_char: int
    chunks: tuple[tuple[int, int, list[Any]], ...]
    """Of those that lie in it: their first and last character, and their places as SQL keeps them."""

    def quote(self, start_char: int, end_char: int) -> StoredQuote | None:
        """What stands between two offsets of the document's text; None when no chunk is from there."""
        rows = [places for start, end, places in self.chunks if start < end_char and end > start_char]
        if not rows:
            return None
        # Overlapping chunks share places.
        touched = {
            place
            for row in rows
            for place in places_from_rows(row)
            if place.start_char < end_char and place.end_char > start_char
        }
        return StoredQuote(
            self.text[start_char - self.start_char : end_char - self.start_char],
            tuple(sorted(touched, key=lambda place: (place.start_char, place.end_char))),
        )


def read_quote(
    session: Session, scope: Scope, document_id: int, start_char: int, end_char: int
) -> StoredQuote | None:
    """What stands between two offsets of a document's text now; None when the scope sees no such document, or when
    its collection answers with no chunk from there.
    """
    stretch = read_stretch(session, scope, document_id, start_char, end_char)
    return None if stretch is None else stretch.quote(start_char, end_char)


def read_stretch(
    session: Session, scope: Scope, document_id: int, start_char: int, end_char: int
) -> StoredStretch | None:
    """The same, for several quotes from between these offsets."""
    text_query, chunks_query = _queries(scope)
    told = {"document_id": document_id, "start_char": start_char, "end_char": end_char}
    connection = session.connection()  # Rows are all that is wanted, and come faster than by the session.
    parts = connection.execute(text_query, told).all()
    if not parts:
        return None
    text = "".join(piece for _, _, piece in sorted((number, part, piece) for number, part, piece in parts))
    chunks = connection.execute(chunks_query, told)
    return StoredStretch(text, start_char, tuple((start, end, places) for start, end, places in chunks))


@lru_cache(maxsize=1024)
def _queries(scope: Scope) -> tuple[Select[int, int, str], Select[int, int, Any]]:
    """The text's parts and its chunks. Putting them together takes longer than asking them."""
    document_id = bindparam("document_id", type_=Integer)
    start_char, end_char = bindparam("start_char", type_=Integer), bindparam("end_char", type_=Integer)
    text = stretch_of(File.blob_id, File.media_type, start_char, end_char).where(
        File.id == Document.file_id,
        Document.id == document_id,
        readable_documents(scope),
        Document.status == DocumentStatus.COMPLETED,
    )
    chunks = (
        select(Chunk.start_char, Chunk.end_char, Chunk.places)
        .join(Collection, Collection.id == Chunk.collection_id)
        .where(
            Chunk.tenant_id == scope.tenant_id,
            Chunk.document_id == document_id,
            Chunk.generation == Collection.generation,
            Chunk.start_char < end_char,
            Chunk.end_char > start_char,
        )
    )
    return text, chunks
