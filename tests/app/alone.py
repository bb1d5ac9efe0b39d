"""The api role in this process, with a worker that needs neither parser processes nor models."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import httpx2
from fastapi import FastAPI
from openai import AsyncOpenAI

from app.api import create_app
from app.running.serve import prepare_data
from app.services import Services
from app.settings import read_settings
from ingest.parsed_files import ParsedFiles
from ingest.pipeline import Pipeline
from ingest.worker import Worker
from tests.fakes import FakeEmbedder
from tests.ingest.stack import ParagraphParser


@dataclass(frozen=True)
class Alone:
    """What a test works with. `http` and `client` hold the first key."""

    app: FastAPI
    key: str
    services: Services
    http: httpx.AsyncClient
    client: AsyncOpenAI
    worker: Worker
    parser: ParagraphParser

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.worker.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def api_alone(
    folder: Path,
    *,
    reserve_bytes: int = 0,
    engine: Mapping[str, Any] = {},
    sections: Mapping[str, Mapping[str, Any]] = {},
    **encryption: Any,
) -> AsyncIterator[Alone]:
    """With its data in `folder`; `engine` and `encryption` are settings of those sections, `sections` of others."""
    storage = {"data_dir": str(folder), "reserve_bytes": reserve_bytes}
    settings = read_settings().with_options(storage=storage, engine=engine, encryption=encryption, **sections)
    key = prepare_data(settings).read_text().strip()
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://strongroom",
            headers={"Authorization": f"Bearer {key}"},
        ) as http,
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as through,
    ):
        services: Services = app.state.services
        parser, embedder = ParagraphParser(), FakeEmbedder(max_tokens=64)
        parsed_files = ParsedFiles(
            services.database,
            services.blobs,
            parser,
            services.sealer,
            ocr_languages="eng",
            clock=time.time,
        )
        pipeline = Pipeline(
            services.database,
            services.blobs,
            parsed_files,
            lambda _: embedder,
            default_embedding="fake",
            clock=time.time,
        )
        yield Alone(
            app=app,
            key=key,
            services=services,
            http=http,
            client=AsyncOpenAI(
                base_url="http://strongroom/v1", api_key=key, http_client=through, max_retries=0
            ),
            worker=Worker(services.database, pipeline, concurrency=4, lease_s=15, isolated=True),
            parser=parser,
        )
