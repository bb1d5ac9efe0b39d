"""The api role: an ASGI application over the services."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from app.access.quotas import MeterReplies
from app.batches.running import running_batches
from app.console.opening import add_console, open_console
from app.context_protocol.server import serving_mcp
from app.edge.description import completed
from app.edge.hosts import KnownHosts
from app.edge.requests import LimitBodies, NameRequests
from app.errors import install_errors
from app.metrics import ApiMetrics, MeasureRequests
from app.responses.background import Background
from app.routes import (
    audit,
    batches,
    chat,
    citations,
    conversations,
    documents,
    embeddings,
    engines,
    file_batches,
    files,
    generations,
    health,
    keys,
    mcp,
    models,
    progress,
    responses,
    sources,
    stored_completions,
    uploads,
    vector_stores,
)
from app.routes.caller import Reader
from app.services import open_api
from app.settings import Settings
from serving.tracing import TraceRequests

NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
"""FastAPI's own would tell addresses, which may be signed links, and messages of errors, which may quote a text."""


class Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = completed(super().openapi())
        return self.openapi_schema


def create_app(settings: Settings) -> FastAPI:
    metrics = ApiMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_api(settings, metrics) as services, Background(services) as background:
            app.state.services, app.state.background = services, background
            async with (
                running_batches(app, services.storage.database, services.blobs),
                open_console(app, services),
                serving_mcp() as sessions,
            ):
                app.state.mcp = sessions
                yield

    # The description of the API is served to key holders only, so FastAPI's own routes are off.
    app = Api(
        title="Strongroom",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        telemetry=NO_TELEMETRY,
    )
    app.add_middleware(MeterReplies)
    app.add_middleware(LimitBodies)
    app.add_middleware(KnownHosts, settings=settings)
    app.add_middleware(MeasureRequests, metrics=metrics)
    app.add_middleware(NameRequests)
    if settings.traces.endpoint:
        app.add_middleware(TraceRequests)
    install_errors(app)
    # Routes are tried one by one in this order: those that must be quick stand first. They are put into the app's own
    # list because a router included as one takes five times as long to try.
    at_once = (chat, embeddings, vector_stores, files, documents)
    answers = (stored_completions, responses, conversations)
    of_files = (uploads, file_batches, batches, progress, generations)
    for module in (
        *at_once,
        *answers,
        *of_files,
        sources,
        models,
        engines,
        keys,
        audit,
        citations,
        health,
        mcp,
    ):
        app.router.routes.extend(module.router.routes)
    add_console(app)

    @app.get("/openapi.json", include_in_schema=False)
    async def description(scope: Reader) -> dict[str, Any]:  # noqa: ARG001 - a key is needed
        return app.openapi()

    return app
