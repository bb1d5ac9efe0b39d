"""Composition: what each role is made of, in one visible place."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from app.access.audit import AuditTrail, prune_when_due
from app.access.auth import KeyRing, server_secret
from app.access.issuer_sign_in import IssuerSignIn, client_secret
from app.access.people import People
from app.access.quotas import Limiter
from app.access.retention import ZeroRetention
from app.answers.calibration import read_calibration
from app.answers.chat import Chat
from app.answers.generation import GenerationModels
from app.answers.links import LinkSigner
from app.answers.questions import Questions
from app.metrics import ApiMetrics
from app.settings import Settings, model_path
from app.storage.backup import clear_remains
from app.storage.backup_runs import back_up_when_due
from app.storage.migrate import check_schema
from app.storage.opening import Storage, checkpoint_file, keys_dir, open_storage
from app.upkeep.activity import Activity
from app.upkeep.standby import standing_by
from app.upkeep.tending import tending
from ingest.parsed_files import ParsedFiles
from ingest.pipeline import Pipeline
from ingest.sandbox import ParserLimits, ParserPool
from ingest.schedules import Schedules
from ingest.sealing import Sealer
from ingest.worker import Worker
from retrieval.blobs import BlobStore, known_ids
from retrieval.database import Database
from retrieval.evidence import Calibration
from retrieval.search import Searcher
from retrieval.snapshots import Snapshots
from retrieval.views import IndexViews
from retrieval.wakes import listening
from serving.client import ModelsClient
from serving.generation.gateway import Gateway, GatewayLimits, Replica

DAY_S = 86_400
UPLOADS_AT_ONCE = 2
"""One is written to disk while the other is written to SQL, which takes one at a time."""


@dataclass(frozen=True)
class Services:
    """What the routes of the api role work with."""

    settings: Settings
    metrics: ApiMetrics
    storage: Storage
    database: Database
    """Of callers: on PostgreSQL it shows the rows of the tenant that a request is for, and no others. `storage` has
    the one that sees all."""
    blobs: BlobStore
    views: IndexViews
    keys: KeyRing
    people: People | None
    """None where no issuer is trusted."""
    issuer_sign_in: IssuerSignIn | None
    """None where people do not sign in at the issuer."""
    limiter: Limiter
    audit: AuditTrail
    retention: ZeroRetention
    links: LinkSigner
    models: ModelsClient
    gateway: Gateway
    searcher: Searcher
    chat: Chat
    generation: GenerationModels
    questions: Questions
    activity: Activity
    sealer: Sealer
    calibration: Calibration
    uploads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(UPLOADS_AT_ONCE))
    """Of those that have come, how many are written to SQL. The others wait without a thread: searches need those."""


def generation_folders(settings: Settings) -> dict[str, Path]:
    """Of the generation models that lie on this machine, by the names under which engines serve them."""
    paths = {
        each.alias: Path(model_path(each.source, settings.models.folder)) for each in settings.engine.models
    }
    return {alias: path for alias, path in paths.items() if path.is_dir()}


@asynccontextmanager
async def open_api(settings: Settings, metrics: ApiMetrics) -> AsyncIterator[Services]:
    """Raises SchemaMismatch when the database needs `strongroom migrate` first, CalibrationInvalid, and what
    `open_storage` raises.
    """
    async with AsyncExitStack() as stack:
        storage = stack.enter_context(open_storage(settings))
        database = storage.database
        for_callers = database.for_callers()
        check_schema(database)
        calibration = read_calibration(settings.storage.data_dir, reranker=settings.models.default_reranker)
        if settings.chat.min_evidence >= 0:
            calibration = calibration.with_threshold(settings.chat.min_evidence)
        secret = server_secret(keys_dir(settings))
        trail = AuditTrail(
            database,
            storage.audit_key,
            checkpoints=checkpoint_file(settings),
            checkpoint_every_s=settings.audit.checkpoint_every_s,
        )
        await stack.enter_async_context(trail.opened())
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
        snapshots = Snapshots(settings.storage.data_dir / "snapshots", storage.encryption)
        stack.callback(snapshots.close)
        views = IndexViews(snapshots)
        listener = await stack.enter_async_context(listening(database.engine))
        await stack.enter_async_context(standing_by(database, views, listener))
        await stack.enter_async_context(tending(database, views, metrics))
        keys = KeyRing(database, secret)
        stack.push_async_callback(keys.close)
        people = People(database, keys, settings.oidc, secret=secret) if settings.oidc.issuer else None
        activity = Activity(for_callers)
        stack.push_async_callback(activity.close)
        links = LinkSigner(secret, settings.public_url, valid_s=settings.chat.citation_days * DAY_S)
        reranker = models.reranker(settings.models.rerankers[0].alias) if settings.models.rerankers else None
        searcher = Searcher(
            for_callers,
            views,
            embedder_of=models.embedder,
            default_embedding=settings.models.default_embedding,
            reranker=reranker,
        )
        generation = GenerationModels(gateway, generation_folders(settings))
        yield Services(
            settings=settings,
            metrics=metrics,
            storage=storage,
            database=for_callers,
            blobs=storage.blobs,
            views=views,
            keys=keys,
            people=people,
            issuer_sign_in=_issuer_sign_in(settings, people),
            limiter=Limiter(),
            audit=trail,
            retention=ZeroRetention(settings, trail, gateway.urls),
            links=links,
            models=models,
            gateway=gateway,
            searcher=searcher,
            chat=Chat(
                for_callers,
                searcher,
                gateway,
                generation,
                links,
                activity,
                settings.chat,
                calibration=calibration,
                dense_weight=settings.search.dense_weight,
                reranker=reranker,
            ),
            generation=generation,
            questions=Questions(gateway, settings.chat),
            activity=activity,
            sealer=storage.sealer,
            calibration=calibration,
        )


def _issuer_sign_in(settings: Settings, people: People | None) -> IssuerSignIn | None:
    """Raises KeysUnusable."""
    if people is None or not settings.oidc.client_id:
        return None
    return IssuerSignIn(
        settings.oidc,
        people,
        secret=client_secret(settings.oidc),
        return_url=f"{settings.public_url}/console/sign-in/return",
        signed_out_url=f"{settings.public_url}/console/sign-in",
    )


@asynccontextmanager
async def open_worker(settings: Settings) -> AsyncIterator[tuple[Worker, Schedules]]:
    """Raises SchemaMismatch when the database needs `strongroom migrate` first."""
    async with AsyncExitStack() as stack:
        storage = stack.enter_context(open_storage(settings))
        database, blobs = storage.database, storage.blobs
        check_schema(database)
        models = await stack.enter_async_context(
            ModelsClient(settings.models.url, token=settings.models.token)
        )
        with database.read() as session:
            known = known_ids(session)
        blobs.sweep(known, older_than_s=DAY_S)
        clear_remains(settings, now=time.time())
        limits = ParserLimits(
            timeout_s=settings.ingest.parse_timeout_s,
            memory_bytes=settings.ingest.parse_memory_mib * 1024 * 1024,
        )
        storage.parsing.mkdir(parents=True, exist_ok=True, mode=0o700)
        parsers = await stack.enter_async_context(
            ParserPool(settings.ingest.parsers, limits, temporary_folder=storage.parsing)
        )
        pipeline = ingestion(settings, storage, models, parsers)
        chore = partial(_chores, settings, storage)
        schedules = Schedules(
            database,
            blobs,
            storage.sealer,
            cache=storage.sources,
            keep_answers_s=settings.chat.keep_days * DAY_S or None,
            chore=chore,
        )
        worker = Worker(
            database,
            pipeline,
            concurrency=settings.ingest.concurrency,
            lease_s=settings.ingest.lease_s,
            isolated=parsers.isolated,
            listener=await stack.enter_async_context(listening(database.engine)),
            clock=time.time,
        )
        yield worker, schedules


def _chores(settings: Settings, storage: Storage) -> None:
    """Of the worker that leads, every half minute."""
    now = time.time()
    if settings.backup.folder:
        back_up_when_due(settings, storage, now=now)
    if settings.audit.keep_days:
        prune_when_due(storage.database, before=now - settings.audit.keep_days * DAY_S)


def ingestion(settings: Settings, storage: Storage, models: ModelsClient, parsers: ParserPool) -> Pipeline:
    """What a worker does with each document."""
    parsed_files = ParsedFiles(
        storage.database,
        storage.blobs,
        parsers,
        storage.sealer,
        ocr_languages=settings.ingest.ocr_languages,
        clock=time.time,
    )
    return Pipeline(
        storage.database,
        storage.blobs,
        parsed_files,
        models.embedder,
        default_embedding=settings.models.default_embedding,
        parsers=settings.ingest.parsers,
    )
