"""/citations/…: the page that a citation's link opens, with the quote marked in its surroundings."""

import secrets
import time
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse
from jinja2 import Environment, FileSystemLoader, select_autoescape

from app.access.auth import KeyInvalid
from app.answers.links import CitedPlace, LinkInvalid
from app.routes.caller import UseServices
from app.routes.files import content_reply
from app.services import Services
from retrieval import catalog
from retrieval.catalog import NotFound
from retrieval.passages import read_text
from retrieval.row_security import act_for
from retrieval.tables import AuditEvent, Blob, File

router = APIRouter(prefix="/citations", include_in_schema=False)

BEFORE = 400
"""Characters that are shown before a quote: few enough for the quote to be in view when the page opens."""
AFTER = 1_500

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parents[1] / "pages"), autoescape=select_autoescape()
)


@router.get("/{token}")
def show(token: str, services: UseServices) -> HTMLResponse:
    place, file, text = _open(services, token)
    start = max(place.start_char - BEFORE, 0)
    before = text[: place.start_char - start]
    nonce = secrets.token_urlsafe(16)
    page = _templates.get_template("citation.html").render(
        nonce=nonce,
        filename=file.filename,
        is_pdf=file.media_type == "application/pdf",
        page=place.page,
        start_char=place.start_char,
        end_char=place.end_char,
        source=f"{token}/source" + (f"#page={place.page}" if place.page else ""),
        before="…" + before.partition(" ")[2] if start else before,
        quote=text[place.start_char - start : place.end_char - start],
        after=text[place.end_char - start :],
    )
    headers = {
        "Content-Security-Policy": f"default-src 'none'; style-src 'nonce-{nonce}'; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return HTMLResponse(page, headers=headers)


@router.get("/{token}/source")
def source(token: str, services: UseServices) -> FileResponse:
    _, file, _ = _open(services, token)
    with services.database.read() as session:
        blob = session.get(Blob, file.blob_id)
        if blob is None:
            raise LinkInvalid
        content = services.blobs.content(session, blob)
    return content_reply(content, file, inline=True)


def _open(services: Services, token: str) -> tuple[CitedPlace, File, str]:
    """The place, its file, and the text around it, as the key that asked may see them now. Raises LinkInvalid."""
    place = services.links.read(token, now=time.time())
    try:
        scope = services.keys.scope_of_id(place.key_id)
        act_for(scope.tenant_id)
        with services.database.read() as session:
            document = catalog.get_document(session, scope, place.collection_id, place.file_id)
            file = catalog.get_file(session, scope, place.file_id)
            text = read_text(
                session,
                scope,
                document.id,
                max(place.start_char - BEFORE, 0),
                place.end_char + AFTER,
            )
    except (KeyInvalid, NotFound) as error:
        raise LinkInvalid from error
    if text is None:
        raise LinkInvalid
    services.audit.note(scope, AuditEvent.CITATION_OPENED, (place.collection_id, place.file_id))
    return place, file, text
