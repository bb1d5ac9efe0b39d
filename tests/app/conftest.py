"""The api role in this process, over a real models server, a real worker and an engine that follows a script."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.api import create_app
from app.running.models_role import create_models_app
from app.running.serve import prepare_data
from app.services import Services, ingestion
from app.settings import Settings, read_settings
from ingest.sandbox import ParserPool
from ingest.worker import Worker
from serving.client import ModelsClient
from tests.fakes import ScriptedEngine
from tests.serving.hosting import MINILM, NO_MINILM, served, until_ready


@dataclass
class Api:
    """What a test works with."""

    http: httpx.AsyncClient
    settings: Settings
    services: Services
    engine: ScriptedEngine
    worker: Worker
    app: FastAPI

    async def upload(self, name: str, content: bytes, **form: str) -> httpx.Response:
        return await self.http.post("/v1/files", files={"file": (name, content)}, data=form)

    async def add_document(self, store_id: str, name: str, content: str | bytes) -> str:
        """Uploads, attaches and ingests. Returns the file's id."""
        raw = content.encode() if isinstance(content, str) else content
        file_id: str = (await self.upload(name, raw)).json()["id"]
        reply = await self.http.post(f"/v1/vector_stores/{store_id}/files", json={"file_id": file_id})
        assert reply.status_code == 200, reply.text
        await self.worker.drain()
        return file_id

    async def store(self, name: str = "notes") -> str:
        store_id: str = (await self.http.post("/v1/vector_stores", json={"name": name})).json()["id"]
        return store_id

    async def chat(self, question: str, model: str = "rag", **more: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": question}], **more}
        return await self.http.post("/v1/chat/completions", json=body)


@asynccontextmanager
async def served_models(embedding: str) -> AsyncIterator[str]:
    """A models server with these embedding models, as the setting names them."""
    settings = read_settings().with_options(models={"embedding": embedding})
    async with served(create_models_app(settings.models)) as url, ModelsClient(url) as client:
        await until_ready(client)
        yield url


@pytest.fixture(scope="session")
async def models_url() -> AsyncIterator[str]:
    """A models server with the demo embedding model, for the whole session."""
    if not MINILM.is_dir():
        pytest.skip(NO_MINILM)
    async with served_models(str(MINILM)) as url:
        yield url


@pytest.fixture(scope="session")
async def parsers() -> AsyncIterator[ParserPool]:
    """Parser processes take seconds to start, and keep nothing of a file."""
    async with ParserPool(1) as pool:
        yield pool


@asynccontextmanager
async def opened_api(
    models_url: str,
    parsers: ParserPool,
    folder: Path,
    *,
    embedding: str,
    database_url: str = "",
    mcp_servers: str = "",
    prompts_folder: str = "",
    **of_engine: Any,
) -> AsyncIterator[Api]:
    """The api role over that models server, with a database of its own in `folder`; more settings of its engine."""
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(ScriptedEngine())
        settings = read_settings().with_options(
            storage={
                "data_dir": str(folder / "data"),
                "database_url": database_url,
                "max_upload_bytes": 200_000,
                "reserve_bytes": 0,
            },
            models={"url": models_url, "embedding": embedding},
            engine={"url": engine.url, **of_engine},
            tools={"mcp_servers": mcp_servers or None},
            chat={"prompts_folder": prompts_folder or None},
        )
        key = prepare_data(settings).read_text().strip()
        app = create_app(settings)
        await stack.enter_async_context(app.router.lifespan_context(app))
        http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://strongroom",
            headers={"Authorization": f"Bearer {key}"},
        )
        await stack.enter_async_context(http)
        services: Services = app.state.services
        pipeline = ingestion(settings, services.storage, services.models, parsers)
        worker = Worker(
            services.storage.database, pipeline, concurrency=2, lease_s=15, isolated=parsers.isolated
        )
        yield Api(http=http, settings=settings, services=services, engine=engine, worker=worker, app=app)


@pytest.fixture
async def api(models_url: str, parsers: ParserPool, tmp_path: Path) -> AsyncIterator[Api]:
    async with opened_api(models_url, parsers, tmp_path, embedding=str(MINILM)) as opened:
        yield opened
