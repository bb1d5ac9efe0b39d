"""The api role: an ASGI application over the services."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from app.errors import install_errors
from app.metrics import ApiMetrics, MeasureRequests
from app.routes import (
    chat,
    citations,
    documents,
    embeddings,
    engines,
    file_batches,
    files,
    generations,
    health,
    models,
    progress,
    sources,
    vector_stores,
)
from app.routes.caller import Reader
from app.services import open_api
from app.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    metrics = ApiMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_api(settings, metrics) as services:
            app.state.services = services
            yield

    # The description of the API is served to key holders only, so FastAPI's own routes are off.
    app = FastAPI(title="Strongroom", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(MeasureRequests, metrics=metrics)
    install_errors(app)
    # Routes are tried in this order: those that must be quick stand first.
    of_files = (files, documents, file_batches, progress, generations)
    for module in (chat, embeddings, vector_stores, *of_files, sources, models, engines, citations, health):
        app.include_router(module.router)

    @app.get("/openapi.json", include_in_schema=False)
    async def description(scope: Reader) -> dict[str, Any]:  # noqa: ARG001 - a key is needed
        return app.openapi()

    return app
