"""What a stored response says of documents is kept as places; their text is read anew for each reader.

So what was deleted, or is no longer this key's to see, is in no stored response either.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.responses.items import Json
from retrieval.access import readable_documents
from retrieval.passages import read_text
from retrieval.scope import Scope
from retrieval.tables import Document, DocumentStatus


def unquoted(value: Any) -> Any:
    """A copy without the text of documents."""
    if isinstance(value, list):
        return [unquoted(each) for each in value]
    if not isinstance(value, dict):
        return value
    copy = {name: unquoted(each) for name, each in value.items()}
    if copy.get("type") == "file_citation":
        copy.pop("quote", None)
    if copy.get("type") == "file_search_call" and copy.get("results"):
        copy["results"] = [
            {name: each for name, each in result.items() if name != "text"} for result in copy["results"]
        ]
    return copy


def requote(session: Session, scope: Scope, values: Sequence[Any]) -> None:
    """Puts the text back, in place. A result whose document is gone goes; a citation loses its quote."""
    places = [place for value in values for place in _places(value)]
    calls = [call for value in values for call in _calls(value)]
    wanted = [*places, *(result for call in calls for result in call["results"])]
    file_ids = {each["file_id"] for each in wanted if isinstance(each.get("file_id"), str)}
    documents: dict[str, int] = {}
    if file_ids:
        rows = session.execute(
            select(Document.file_id, Document.id).where(
                readable_documents(scope),
                Document.file_id.in_(file_ids),
                Document.status == DocumentStatus.COMPLETED,
            )
        )
        documents = {row.file_id: row.id for row in rows}

    def text_of(place: Json) -> str | None:
        start, end = place.get("start_char"), place.get("end_char")
        document_id = documents.get(str(place.get("file_id")))
        if (
            document_id is None
            or not isinstance(start, int)
            or not isinstance(end, int)
            or not 0 <= start <= end
        ):
            return None
        return read_text(session, scope, document_id, start, end)

    for place in places:
        if (quote := text_of(place)) is not None:
            place["quote"] = quote
    for call in calls:
        found = [{**result, "text": text_of(result)} for result in call["results"]]
        call["results"] = [result for result in found if result["text"] is not None]


def _places(value: Any) -> Iterator[Json]:
    for each in _dicts(value):
        if each.get("type") == "file_citation":
            yield each


def _calls(value: Any) -> Iterator[Json]:
    for each in _dicts(value):
        if each.get("type") == "file_search_call" and each.get("results"):
            yield each


def _dicts(value: Any) -> Iterator[Json]:
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from _dicts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _dicts(each)
