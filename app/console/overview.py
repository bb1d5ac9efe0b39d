"""The overview: what each role does now and why, and for who runs the server how busy it was in the last hours."""

import shutil
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import func, select

from app.access.auth import runs_server
from app.console.rates import HOURS, Rates
from app.console.session import SignedIn
from app.console.views import ConsoleRoute, views_of
from app.routes.caller import UseServices
from app.routes.health import states_of_roles
from app.services import Services
from retrieval.access import readable_documents
from retrieval.scope import Scope
from retrieval.tables import Document
from retrieval.together import in_thread

router = APIRouter(prefix="/console/overview", include_in_schema=False, route_class=ConsoleRoute)


@router.get("")
async def overview_page(request: Request, services: UseServices, visitor: SignedIn) -> Response:
    return views_of(request).page("overview.html", visitor, **await _told(request, services, visitor.scope))


@router.get("/now")
async def overview_now(request: Request, services: UseServices, visitor: SignedIn) -> Response:
    shown = views_of(request).render("overview_now.html", **await _told(request, services, visitor.scope))
    return Response(shown, media_type="text/html; charset=utf-8")


async def _told(request: Request, services: Services, scope: Scope) -> dict[str, Any]:
    rates: Rates = request.app.state.console_rates
    counts, watches = await in_thread(_counts, services, scope)
    return {
        "roles": await states_of_roles(services),
        # Their addresses are the owner's business.
        "engines": await services.gateway.health() if scope.is_admin else [],
        "counts": counts,
        # These tell what all tenants do together.
        "disk": shutil.disk_usage(services.settings.storage.data_dir) if watches else None,
        "charts": rates.charts() if watches else [],
        "hours": f"{HOURS:g}",
    }


def _counts(services: Services, scope: Scope) -> tuple[dict[str, int], bool]:
    """The documents by status, and whether the scope may see how busy the whole server is."""
    with services.database.read() as session:
        rows = session.execute(
            select(Document.status, func.count()).where(readable_documents(scope)).group_by(Document.status)
        )
        counts = {status.value: count for status, count in rows}
        return counts, scope.is_admin and runs_server(session, scope)
