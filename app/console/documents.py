"""One document in the console: its text, its chunks, its pages, its attributes, its readers."""

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Form, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.console.access import known_groups
from app.console.evidence import CollectionId, Opened, open_file
from app.console.session import SignedIn, SignedInWriter
from app.console.views import ConsoleRoute, views_of
from app.errors import BadRequest
from app.routes.body import read_model
from app.routes.caller import UseServices
from app.routes.documents import UpdateDocument, update_document
from app.routes.ids import FileId
from retrieval import catalog
from retrieval.access import may_change, readers_of
from retrieval.passages import read_text
from retrieval.scope import Scope
from retrieval.tables import Chunk, Collection, ParsedFile

router = APIRouter(
    prefix="/console/collections/{collection_id}/files/{file_id}",
    include_in_schema=False,
    route_class=ConsoleRoute,
)

View = Literal["text", "chunks", "pages", "attributes", "access"]
STEPS: dict[View, int] = {"text": 20_000, "chunks": 20, "pages": 1, "attributes": 1, "access": 1}
"""What is shown at once: characters, chunks, pages."""


@router.get("")
def document_page(
    collection_id: CollectionId,
    file_id: FileId,
    request: Request,
    services: UseServices,
    visitor: SignedIn,
    view: View = "text",
    at: Annotated[int, Query(ge=0, le=2**53)] = 0,
) -> Response:
    with services.database.read() as session:
        collection = catalog.get_collection(session, visitor.scope, collection_id)
        opened = open_file(services, session, visitor.scope, collection_id, file_id)
        shown = _shown(session, visitor.scope, collection, opened, view, at)
    told: dict[str, Any] = {
        "view": view,
        "at": at,
        "step": STEPS[view],
        "collection": collection,
        "opened": opened,
    }
    return views_of(request).page("document.html", visitor, **told, **shown)


@router.post("/attributes")
def change_attributes(
    collection_id: CollectionId,
    file_id: FileId,
    services: UseServices,
    visitor: SignedInWriter,
    attributes: Annotated[str, Form(max_length=20_000)] = "",
) -> Response:
    read = dict(_attribute(line) for line in attributes.splitlines() if line.strip())
    update_document(
        collection_id, file_id, read_model(UpdateDocument, {"attributes": read}), services, visitor.scope
    )
    return Response(headers={"HX-Refresh": "true"})


def _shown(
    session: Session, scope: Scope, collection: Collection, opened: Opened, view: View, at: int
) -> dict[str, Any]:
    step = STEPS[view]
    match view:
        case "text":
            text = read_text(session, scope, opened.document.id, at, at + step + 1) or ""
            return {"text": text[:step], "has_more": len(text) > step}
        case "chunks":
            chunks = session.scalars(
                select(Chunk)
                .where(
                    Chunk.tenant_id == scope.tenant_id,
                    Chunk.document_id == opened.document.id,
                    Chunk.generation == collection.generation,
                    Chunk.position >= at,
                )
                .order_by(Chunk.position)
                .limit(step + 1)
            ).all()
            return {"chunks": chunks[:step], "has_more": len(chunks) > step}
        case "pages":
            parsed = session.get(ParsedFile, (opened.file.blob_id, opened.file.media_type))
            count = (parsed.page_count if parsed is not None else None) or 1
            return {"page_count": count, "has_more": at + 1 < count}
        case "attributes":
            lines = [f"{name} = {_written(value)}" for name, value in opened.document.attributes.items()]
            return {"attributes": "\n".join(lines), "has_more": False}
        case "access":
            return {
                "known": known_groups(session, scope),
                "read_by": readers_of(collection, opened.document),
                "may_change": scope.may_write and may_change(scope, collection),
                "has_more": False,
            }


def _attribute(line: str) -> tuple[str, Any]:
    """Raises BadRequest."""
    name, equals, value = (part.strip() for part in line.partition("="))
    if not name or not equals:
        raise BadRequest(
            f"Write each attribute as `name = value`; {line[:80]!r} is not so.", param="attributes"
        )
    try:
        read = orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value
    return name, read if isinstance(read, bool | int | float | str) else value


def _written(value: Any) -> str:
    """Text that would be read as something else stands in quotes."""
    if not isinstance(value, str):
        return orjson.dumps(value).decode()
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError:
        return value
    return orjson.dumps(value).decode()
