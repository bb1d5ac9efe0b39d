"""The source beside an answer: the page of a PDF with the quote's boxes lit, or the text with the quote in it."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from sqlalchemy.orm import Session

from app.console.page_images import PDF, PageImage, PageImages
from app.console.session import SignedIn
from app.console.views import ConsoleRoute, views_of
from app.errors import BadRequest
from app.routes.caller import UseServices
from app.routes.files import content_reply
from app.routes.ids import FileId
from app.services import Services
from ingest.elements import ParseFailed
from retrieval import catalog
from retrieval.blobs import BlobContent
from retrieval.catalog import DocumentMissing
from retrieval.passages import read_text
from retrieval.places import Box, Place
from retrieval.quotes import read_quote
from retrieval.scope import Scope
from retrieval.tables import Blob, Document, File
from retrieval.together import in_thread

CollectionId = Annotated[str, Path(pattern=r"^vs_[A-Za-z0-9_-]{1,64}$")]
Offset = Annotated[int, Query(ge=0, le=2**53)]
PageNumber = Annotated[int, Path(ge=1, le=1_000_000)]

router = APIRouter(
    prefix="/console/collections/{collection_id}/files/{file_id}",
    include_in_schema=False,
    route_class=ConsoleRoute,
)

BEFORE, AFTER = 1_200, 2_500
"""Characters of the text around a quote."""


@dataclass(frozen=True)
class Opened:
    """A document, and its file's bytes."""

    document: Document
    file: File
    content: BlobContent

    @property
    def is_pdf(self) -> bool:
        return self.file.media_type == PDF


@router.get("/quote")
async def quote(
    collection_id: CollectionId,
    file_id: FileId,
    request: Request,
    services: UseServices,
    visitor: SignedIn,
    start: Offset,
    end: Offset,
) -> Response:
    def read() -> dict[str, Any]:
        with services.database.read() as session:
            opened = open_file(services, session, visitor.scope, collection_id, file_id)
            stored = read_quote(session, visitor.scope, opened.document.id, start, end)
            if stored is None:
                raise DocumentMissing(file_id)
            begin = max(start - BEFORE, 0)
            around = read_text(session, visitor.scope, opened.document.id, begin, end + AFTER) or ""
        return {
            "opened": opened,
            "before": around[: start - begin],
            "quote": stored.text,
            "after": around[end - begin :],
            "places": stored.places,
        }

    told = await in_thread(read)
    page, boxes = first_page(told.pop("places"))
    drawn, failure = None, None
    if told["opened"].is_pdf and page is not None:
        try:
            drawn = await drawn_page(request, services, told["opened"], page)
        except ParseFailed as failed:
            failure = failed.message
    shown = views_of(request).render(
        "quote.html",
        collection_id=collection_id,
        page=page,
        boxes=boxes,
        drawn=drawn,
        failure=failure,
        **told,
    )
    return Response(shown, media_type="text/html; charset=utf-8")


@router.get("/pages/{number}.png")
async def page_image(
    collection_id: CollectionId,
    file_id: FileId,
    number: PageNumber,
    request: Request,
    services: UseServices,
    visitor: SignedIn,
) -> Response:
    opened = await in_thread(find_file, services, visitor.scope, collection_id, file_id)
    try:
        drawn = await drawn_page(request, services, opened, number)
    except ParseFailed as failed:
        raise BadRequest(failed.message, param="page") from failed
    return Response(drawn.png, media_type="image/png")


@router.get("/original")
async def original(
    collection_id: CollectionId, file_id: FileId, services: UseServices, visitor: SignedIn
) -> Response:
    """The bytes as they were uploaded, to be saved: a browser never shows them here."""
    opened = await in_thread(find_file, services, visitor.scope, collection_id, file_id)
    return content_reply(opened.content, opened.file, inline=False)


async def drawn_page(request: Request, services: Services, opened: Opened, number: int) -> PageImage:
    """Raises ParseFailed."""
    images: PageImages = request.app.state.page_images
    password = None
    if opened.file.password is not None:
        password = services.sealer.open(opened.file.password, owner=opened.file.id)
    content = opened.content.path if opened.content.key is None else opened.content
    return await images.draw(opened.file.blob_id, content, number, password=password)


def find_file(services: Services, scope: Scope, collection_id: str, file_id: str) -> Opened:
    """Blocks. Raises NotFound."""
    with services.database.read() as session:
        return open_file(services, session, scope, collection_id, file_id)


def open_file(services: Services, session: Session, scope: Scope, collection_id: str, file_id: str) -> Opened:
    """Raises NotFound."""
    document = catalog.get_document(session, scope, collection_id, file_id)
    file = catalog.get_file(session, scope, file_id)
    content = services.blobs.content(session, session.get_one(Blob, file.blob_id))
    return Opened(document, file, content)


def first_page(places: tuple[Place, ...]) -> tuple[int | None, list[Box]]:
    """The page on which a quote begins, and its boxes there."""
    page = next((place.page for place in places if place.page is not None), None)
    boxes = [place.box for place in places if place.page == page and place.box is not None]
    return page, boxes
