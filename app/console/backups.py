"""Backups in the console: those that there are, one made now, and how far it is."""

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy.exc import SQLAlchemyError

from app.console.session import SignedInAdmin
from app.console.views import ConsoleRoute, fragment, views_of
from app.errors import BadRequest
from app.routes.caller import UseServices
from app.services import Services
from app.storage.backup import SUFFIX, BackupUnusable
from app.storage.backup_runs import begin_run, is_going, last_run, make_run, name_at
from retrieval.scope import Scope
from retrieval.together import in_thread

router = APIRouter(prefix="/console/admin/backups", include_in_schema=False, route_class=ConsoleRoute)


class Backups:
    """Those that this process makes, one at a time. How far one is stands in SQL, for every process to tell."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._working: asyncio.Task[None] | None = None

    async def aclose(self) -> None:
        """Ends once the one that is being made is whole: it cannot be stopped halfway."""
        if self._working is not None:
            await self._working

    async def begin(self, scope: Scope) -> None:
        """Raises BadRequest."""
        services = self._services
        if not services.settings.backup.folder:
            raise BadRequest("Set backup.folder: nobody said where backups go.")
        now = time.time()
        name = name_at(now)
        try:
            maker = await in_thread(begin_run, services.storage.database, name, now=now)
        except BackupUnusable as refused:
            raise BadRequest(str(refused)) from refused
        self._working = asyncio.create_task(self._make(scope, name, maker))

    async def _make(self, scope: Scope, name: str, maker: str) -> None:
        # What it failed of is in SQL, and on the page.
        with suppress(BackupUnusable, SQLAlchemyError, OSError):
            await in_thread(make_run, self._services.settings, self._services.storage, name, maker, scope)


@router.get("")
def backups_page(request: Request, services: UseServices, visitor: SignedInAdmin) -> Response:
    settings = services.settings.backup
    return views_of(request).page("backups.html", visitor, settings=settings, **_told(services))


@router.get("/now")
def backup_now(request: Request, services: UseServices, visitor: SignedInAdmin) -> Response:  # noqa: ARG001
    """How far it is, and what there is: asked again and again while one is made."""
    return fragment(request, "backups_now.html", **_told(services))


@router.post("")
async def back_up_now(request: Request, services: UseServices, visitor: SignedInAdmin) -> Response:
    backups: Backups = request.app.state.console_backups
    await backups.begin(visitor.scope)
    return fragment(request, "backups_now.html", **await in_thread(_told, services))


def _told(services: Services) -> dict[str, Any]:
    run = last_run(services.storage.database)
    return {
        "run": run,
        "is_going": run is not None and is_going(run, now=time.time()),
        "made": _made(services.settings.backup.folder),
    }


def _made(folder: str) -> list[tuple[str, int, float]]:
    """Name, size and time of each, the newest first."""
    if not folder:
        return []
    found = [(path.name, path.stat()) for path in Path(folder).glob(f"*{SUFFIX}")]
    return sorted(((name, told.st_size, told.st_mtime) for name, told in found), key=lambda each: -each[2])
