"""Routes over models that are fakes: for what must be refused before a model is touched, and for several models."""

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from fastapi import FastAPI

from app.access.audit import AuditTrail
from app.errors import install_errors
from app.metrics import ApiMetrics
from app.routes import documents, embeddings, file_batches, generations, models, progress, vector_stores
from app.routes.caller import ADMINISTERING, READING, WRITING, recheck_of
from app.settings import Settings, read_settings
from app.upkeep.activity import Activity
from retrieval.audit import AuditKey
from retrieval.database import Database
from retrieval.evidence import SHIPPED, Calibration
from retrieval.scope import Scope
from retrieval.search import Searcher
from retrieval.views import IndexViews
from serving.protocols import ModelUnknown
from tests.fakes import FakeEmbedder, FakeReranker


@dataclass(frozen=True)
class FakeModels:
    """In place of a models server; the first embedder is the default."""

    embedders: Mapping[str, FakeEmbedder]
    rerankers: Mapping[str, FakeReranker]

    def embedder(self, alias: str) -> FakeEmbedder:
        if alias not in self.embedders:
            raise ModelUnknown(alias, list(self.embedders))
        return self.embedders[alias]

    def reranker(self, alias: str) -> FakeReranker:
        return self.rerankers[alias]

    def declared(self) -> Settings:
        """The settings that name these models."""
        return read_settings().with_options(
            models={"embedding": ",".join(self.embedders), "reranker": ",".join(self.rerankers)}
        )


class NoEngines:
    """A gateway without engines."""

    async def models(self) -> list[object]:
        return []


@dataclass(frozen=True)
class FakeServices:
    """What the routes for models and collections ask of the services."""

    settings: Settings
    models: FakeModels
    database: Database
    views: IndexViews
    searcher: Searcher
    activity: Activity
    audit: AuditTrail
    metrics: ApiMetrics = field(default_factory=ApiMetrics)
    gateway: NoEngines = field(default_factory=NoEngines)
    calibration: Calibration = SHIPPED


def services_with(database: Database, fakes: FakeModels) -> FakeServices:
    settings, views = fakes.declared(), IndexViews()
    searcher = Searcher(
        database,
        views,
        fakes.embedder,
        reranker=next(iter(fakes.rerankers.values()), None),
        default_embedding=settings.models.default_embedding,
    )
    trail = AuditTrail(
        database, AuditKey(b"s" * 32, b"w" * 32), checkpoints=Path("unused"), checkpoint_every_s=math.inf
    )
    return FakeServices(settings, fakes, database, views, searcher, Activity(database), trail)


def app_of(services: FakeServices, scope: Scope) -> FastAPI:
    """The routes over these services, for a key that has this scope."""
    app = FastAPI()
    install_errors(app)
    for module in (embeddings, models, vector_stores, documents, file_batches, generations, progress):
        app.include_router(module.router)

    async def still() -> Scope:
        return scope

    app.state.services = services
    for key in (READING, WRITING, ADMINISTERING):
        app.dependency_overrides[key] = lambda: scope
    app.dependency_overrides[recheck_of] = lambda: still
    return app


@asynccontextmanager
async def client_of(services: FakeServices, scope: Scope) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose key has this scope."""
    transport = httpx.ASGITransport(app_of(services, scope))
    async with httpx.AsyncClient(transport=transport, base_url="http://strongroom") as client:
        yield client
    await services.activity.close()
