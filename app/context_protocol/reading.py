"""Reads a place of a document for `fetch` and for resources: so much text at once as a model can take in."""

import time
from dataclasses import dataclass, replace

from sqlalchemy.orm import Session

from app.answers.links import CitedPlace, LinkSigner
from app.context_protocol.places import DocumentPlace
from retrieval import catalog
from retrieval.catalog import DocumentMissing
from retrieval.passages import page_range, read_text
from retrieval.scope import Scope
from retrieval.tables import File

MOST_CHARS = 20_000
"""About 5,000 tokens: what follows is fetched by the id in `following`."""


@dataclass(frozen=True)
class ReadPlace:
    """A stretch of a document's text. `following` is where it goes on, if it does."""

    file: File
    place: DocumentPlace
    text: str
    start_char: int
    following: DocumentPlace | None

    @property
    def end_char(self) -> int:
        return self.start_char + len(self.text)


def read_place(session: Session, scope: Scope, place: DocumentPlace) -> ReadPlace:
    """Raises DocumentMissing, also for a page that it does not have and while it is being ingested."""
    document = catalog.get_document(session, scope, place.collection_id, place.file_id)
    first, last = 0, None
    if place.page is not None:
        found = page_range(session, scope, document.id, place.page)
        if found is None:
            raise DocumentMissing(place.id)
        first, last = found
    start = max(first, place.start_char or 0)
    end = start + MOST_CHARS + 1 if last is None else min(last, start + MOST_CHARS + 1)
    text = read_text(session, scope, document.id, start, max(start, end))
    if text is None:
        raise DocumentMissing(place.id)
    goes_on = len(text) > MOST_CHARS
    return ReadPlace(
        file=catalog.get_file(session, scope, place.file_id),
        place=place,
        text=text[:MOST_CHARS],
        start_char=start,
        following=replace(place, start_char=start + MOST_CHARS) if goes_on else None,
    )


def link_to(links: LinkSigner, scope: Scope, place: DocumentPlace, start_char: int, end_char: int) -> str:
    """What opens these characters in a browser, as long as the key may read them."""
    cited = CitedPlace(scope.key_id, place.collection_id, place.file_id, start_char, end_char, place.page)
    return links.sign(cited, now=time.time())
