"""Documents and their pages as MCP resources: listed by name, read by URI."""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.context_protocol.places import SCHEME, DocumentPlace
from app.context_protocol.reading import ReadPlace, read_place
from app.errors import BadRequest
from app.services import Services
from retrieval import catalog
from retrieval.catalog import CollectionMissing, CursorInvalid, Order, PageRequest
from retrieval.scope import Scope
from retrieval.tables import Collection, DocumentStatus, File

PAGE_DOCUMENTS = 100
TEMPLATES = {
    "document": SCHEME + "{collection_id}/{file_id}",
    "page": SCHEME + "{collection_id}/{file_id}/page/{page}",
}


@dataclass(frozen=True)
class ListedDocument:
    place: DocumentPlace
    collection: str
    file: File


def list_documents(
    services: Services, scope: Scope, cursor: str | None
) -> tuple[list[ListedDocument], str | None]:
    """Those that can be read, collection by collection, and the cursor of what follows. Raises CursorInvalid."""
    listed: list[ListedDocument] = []
    after = DocumentPlace.read(cursor, param="cursor") if cursor is not None else None
    with services.database.read() as session:
        for collection in _collections_from(session, scope, after):
            follows = after is not None and after.collection_id == collection.id
            page = PageRequest(
                limit=PAGE_DOCUMENTS + 1 - len(listed),
                order=Order.ASC,
                after=after.file_id if after is not None and follows else None,
            )
            rows = catalog.list_documents(
                session, scope, collection.id, page, status=DocumentStatus.COMPLETED
            )
            listed += [
                ListedDocument(
                    DocumentPlace(collection.id, row.file_id),
                    collection.name or collection.id,
                    catalog.get_file(session, scope, row.file_id),
                )
                for row in rows
            ]
            if len(listed) > PAGE_DOCUMENTS:
                return listed[:PAGE_DOCUMENTS], listed[PAGE_DOCUMENTS - 1].place.id
    return listed, None


def read_resource(services: Services, scope: Scope, uri: str) -> ReadPlace:
    """Raises BadRequest, DocumentMissing."""
    if not uri.startswith(SCHEME):
        raise BadRequest(f"uri must begin with {SCHEME}.", param="uri")
    place = DocumentPlace.read(uri.removeprefix(SCHEME), param="uri")
    with services.database.read() as session:
        return read_place(session, scope, place)


def _collections_from(session: Session, scope: Scope, after: DocumentPlace | None) -> list[Collection]:
    """All of them, from that of the cursor on, oldest first."""
    first: list[Collection] = []
    page = PageRequest(limit=10_000, order=Order.ASC)
    if after is not None:
        try:
            first = [catalog.get_collection(session, scope, after.collection_id)]
        except CollectionMissing as error:
            raise CursorInvalid(after.id, param="cursor") from error
        page = PageRequest(limit=10_000, order=Order.ASC, after=after.collection_id)
    return first + catalog.list_collections(session, scope, page)
