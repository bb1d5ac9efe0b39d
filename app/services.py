"""Composition: what each role is made of, in one visible place."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from app.activity import Activity
from app.auth import KeyRing, server_secret
from app.chat import Chat
from app.links import LinkSigner
from app.metrics import ApiMetrics
from app.migrate import check_schema
from app.settings import Settings
from app.standby import standing_by
from ingest.parsed_files import ParsedFiles
from ingest.pipeline import Pipeline
from ingest.sandbox import ParserLimits, ParserPool
from ingest.schedules import Schedules
from ingest.sealing import Sealer
from ingest.worker import Worker
from retrieval.blobs import BlobStore
from retrieval.database import Database, open_database
from retrieval.search import Searcher
from retrieval.tables import Blob
from retrieval.views import IndexViews
from serving.client import ModelsClient
from serving.generation.gateway import Gateway, GatewayLimits, Replica

DAY_S = 86_400


@dataclass(frozen=True)
class Services:
    """What the routes of the api role work with."""

    settings: Settings
    metrics: ApiMetrics
    database: Database
    blobs: BlobStore
    views: IndexViews
    keys: KeyRing
    links: LinkSigner
    models: ModelsClient
    gateway: Gateway
    searcher: Searcher
    chat: Chat
    activity: Activity
    sealer: Sealer


def keys_dir(settings: Settings) -> Path:
    return settings.storage.data_dir / "keys"


def blobs_dir(settings: Settings) -> Path:
    return settings.storage.data_dir / "blobs"


@asynccontextmanager
async def open_api(settings: Settings, metrics: ApiMetrics) -> AsyncIterator[Services]:
    """Raises SchemaMismatch when the database needs `strongroom migrate` first."""
    async with AsyncExitStack() as stack:
        database = open_database(settings.database_url)
        stack.callback(database.close)
        check_schema(database)
        secret = server_secret(keys_dir(settings))
        models = await stack.enter_async_context(
            ModelsClient(settings.models.url, token=settings.models.token)
        )
        gateway = await stack.enter_async_context(
            Gateway(
                [Replica(url=url, token=settings.engine.token) for url in settings.engine_urls],
                salt_secret=secret,
                limits=GatewayLimits(
                    max_in_flight=settings.engine.max_in_flight, max_queued=settings.engine.max_queued
                ),
                longest_silence_s=settings.engine.timeout_s,
                registry=metrics.registry,
            )
        )
        views = IndexViews()
        await stack.enter_async_context(standing_by(database, views))
        activity = Activity(database)
        stack.push_async_callback(activity.close)
        links = LinkSigner(secret, settings.public_url, valid_s=settings.chat.citation_days * DAY_S)
        reranker = models.reranker(settings.models.rerankers[0].alias) if settings.models.rerankers else None
        searcher = Searcher(
            database,
            views,
            embedder_of=models.embedder,
            default_embedding=settings.models.default_embedding,
            reranker=reranker,
        )
        yield Services(
            settings=settings,
            metrics=metrics,
            database=database,
            blobs=BlobStore(blobs_dir(settings)),
            views=views,
            keys=KeyRing(database, secret),
            links=links,
            models=models,
            gateway=gateway,
            searcher=searcher,
            chat=Chat(
                database,
                searcher,
                gateway,
                links,
                activity,
                settings.chat,
                dense_weight=settings.search.dense_weight,
            ),
            activity=activity,
            sealer=Sealer(secret),
        )


@asynccontextmanager
async def open_worker(settings: Settings) -> AsyncIterator[tuple[Worker, Schedules]]:
    """Raises SchemaMismatch when the database needs `strongroom migrate` first."""
    async with AsyncExitStack() as stack:
        database = open_database(settings.database_url)
        stack.callback(database.close)
        check_schema(database)
        models = await stack.enter_async_context(
            ModelsClient(settings.models.url, token=settings.models.token)
        )
        blobs = BlobStore(blobs_dir(settings))
        with database.read() as session:
            known = frozenset(session.scalars(select(Blob.id)))
        blobs.sweep(known, older_than_s=DAY_S)
        limits = ParserLimits(
            timeout_s=settings.ingest.parse_timeout_s,
            memory_bytes=settings.ingest.parse_memory_mib * 1024 * 1024,
        )
        # Beside the blobs, so that a parser gets a file as a link and not as a copy.
        parsing = settings.storage.data_dir / "parsing"
        parsing.mkdir(parents=True, exist_ok=True, mode=0o700)
        parsers = await stack.enter_async_context(
            ParserPool(settings.ingest.parsers, limits, temporary_folder=parsing)
        )
        pipeline = ingestion(settings, database, blobs, models, parsers)
        sealer = Sealer(server_secret(keys_dir(settings)))
        schedules = Schedules(database, blobs, sealer, cache=settings.storage.data_dir / "sources")
        worker = Worker(
            database,
            pipeline,
            concurrency=settings.ingest.concurrency,
            lease_s=settings.ingest.lease_s,
            isolated=parsers.isolated,
            clock=time.time,
        )
        yield worker, schedules


def ingestion(
    settings: Settings, database: Database, blobs: BlobStore, models: ModelsClient, parsers: ParserPool
) -> Pipeline:
    """What a worker does with each document."""
    parsed_files = ParsedFiles(
        database,
        blobs,
        parsers,
        Sealer(server_secret(keys_dir(settings))),
        ocr_languages=settings.ingest.ocr_languages,
        clock=time.time,
    )
    return Pipeline(
        database,
        blobs,
        parsed_files,
        models.embedder,
        default_embedding=settings.models.default_embedding,
        parsers=settings.ingest.parsers,
    )
