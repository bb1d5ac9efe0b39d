"""Puts the console on the API's application: its pages, and what they hold while the application runs."""

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from fastapi import FastAPI

from app.console import (
    access,
    asking,
    audit_log,
    collections,
    documents,
    entry,
    evidence,
    keys,
    lost,
    overview,
    quality,
    retention,
    search_lab,
    sources,
    uploads,
)
from app.console import backups as making_backups
from app.console.assets import read_assets
from app.console.backups import Backups
from app.console.invitations import Invitations
from app.console.page_images import PageImages
from app.console.rates import Rates, taking_samples
from app.console.scripts import ScriptsMissing
from app.console.views import Views
from app.services import Services

OF_ADMINS = (keys, audit_log, retention, quality, making_backups)
MODULES = (
    entry,
    asking,
    evidence,
    documents,
    collections,
    access,
    uploads,
    search_lab,
    sources,
    overview,
    *OF_ADMINS,
)

log = logging.getLogger("strongroom.console")


def add_console(app: FastAPI) -> None:
    """Without its third-party scripts each page says what to do; the API is as ever."""
    try:
        app.state.console_views = Views(read_assets())
    except ScriptsMissing as error:
        app.state.console_views = error
        log.warning("console_unavailable", extra={"reason": "its scripts are missing: run make setup"})
    app.state.console_invitations = Invitations()
    # Last is what takes every address.
    for module in (*MODULES, lost):
        app.router.routes.extend(module.router.routes)


@asynccontextmanager
async def open_console(app: FastAPI, services: Services) -> AsyncIterator[None]:
    rates = Rates(services)
    async with (
        PageImages(services.storage.parsing) as images,
        taking_samples(rates),
        aclosing(Backups(services)) as backups,
    ):
        app.state.page_images, app.state.console_rates = images, rates
        app.state.console_backups = backups
        yield
