"""Where the console has no page: who asks in a browser is told so on one, with the way to those that there are."""

from fastapi import APIRouter, Response

from app.console.session import SignedIn
from app.console.views import ConsoleRoute
from app.errors import PageMissing

router = APIRouter(include_in_schema=False, route_class=ConsoleRoute)


@router.get("/console/{path:path}")
async def nowhere(visitor: SignedIn) -> Response:  # noqa: ARG001 - who is not signed in is sent to do so
    raise PageMissing
