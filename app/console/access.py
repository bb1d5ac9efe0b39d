"""Who may read and change a collection, and who may read a document, in the console: shown, and changed by groups."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.console.evidence import CollectionId
from app.console.session import SignedIn, SignedInAdmin, SignedInWriter
from app.console.views import ConsoleRoute, read_groups, views_of
from app.routes.body import read_model
from app.routes.caller import UseServices
from app.routes.documents import UpdateDocument, update_document
from app.routes.ids import FileId
from app.routes.vector_stores import ModifyStore, modify_store
from retrieval import catalog
from retrieval.access import may_change
from retrieval.scope import Scope
from retrieval.tables import Key

router = APIRouter(
    prefix="/console/collections/{collection_id}", include_in_schema=False, route_class=ConsoleRoute
)

Groups = Annotated[str, Form(max_length=5_000)]


@router.get("/access")
def access_page(
    collection_id: CollectionId, request: Request, services: UseServices, visitor: SignedIn
) -> Response:
    with services.database.read() as session:
        collection = catalog.get_collection(session, visitor.scope, collection_id)
        known = known_groups(session, visitor.scope)
    return views_of(request).page(
        "access.html",
        visitor,
        collection=collection,
        known=known,
        may_change=visitor.scope.may_write and may_change(visitor.scope, collection),
    )


@router.post("/access")
def change_access(
    collection_id: CollectionId,
    services: UseServices,
    visitor: SignedInAdmin,
    readers: Groups = "",
    writers: Groups = "",
) -> Response:
    told = {"readers": read_groups(readers), "writers": read_groups(writers)}
    modify_store(collection_id, read_model(ModifyStore, told), services, visitor.scope)
    return Response(headers={"HX-Refresh": "true"})


@router.post("/files/{file_id}/access")
def change_access_of_document(
    collection_id: CollectionId,
    file_id: FileId,
    services: UseServices,
    visitor: SignedInWriter,
    readers: Groups = "",
) -> Response:
    told = {"readers": read_groups(readers)}
    update_document(collection_id, file_id, read_model(UpdateDocument, told), services, visitor.scope)
    return Response(headers={"HX-Refresh": "true"})


def known_groups(session: Session, scope: Scope) -> list[str]:
    """Those that keys of the tenant are in, for an admin; for others their own."""
    if not scope.is_admin:
        return sorted(scope.groups)
    of_keys = session.scalars(
        select(Key.groups).where(Key.tenant_id == scope.tenant_id, Key.revoked_at.is_(None))
    )
    return sorted({group for groups in of_keys for group in groups})
