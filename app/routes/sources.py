"""/v1/sources: watched places, their schedules, and what the last sweeps found."""

import asyncio
import time
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Request
from pydantic import Field, StringConstraints

from app.access.auth import server_secret
from app.access.owner import OWNER_HEADER, is_owner
from app.errors import BadRequest
from app.routes.body import Body
from app.routes.caller import Admin, Reader, UseServices
from app.routes.documents import Attributes, Chunking, chunking_of
from app.services import Services
from app.storage.opening import keys_dir
from ingest.sources import registry
from ingest.sources.addresses import Address, Allowed, check_allowed, check_backend, read_address
from ingest.sources.entries import SourceRefused
from ingest.sources.patterns import MAX_PATTERN_CHARS, MAX_PATTERNS, USUAL_EXCLUDE, PathFilter
from ingest.sources.registry import NewSource
from ingest.sources.runs import reason_waiting
from ingest.sources.times import check_cron, parse_every, show_every
from retrieval import audit, catalog
from retrieval.scope import Scope
from retrieval.tables import AuditEvent, Source, Sweep

router = APIRouter(prefix="/v1/sources")

Pattern = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PATTERN_CHARS)]
OptionName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
OptionText = Annotated[str, StringConstraints(max_length=10_000)]


class AddSource(Body):
    url: str = Field(min_length=1, max_length=4_000)
    collection: str = Field(min_length=1, max_length=256)
    """Its id or name."""
    options: dict[OptionName, OptionText] = Field(default_factory=dict, max_length=16)
    """Credentials and the like. They are sealed, and never come back."""
    include: list[Pattern] = Field(default_factory=list, max_length=MAX_PATTERNS)
    exclude: list[Pattern] = Field(default=list(USUAL_EXCLUDE), max_length=MAX_PATTERNS)
    max_bytes: int | None = Field(None, ge=1)
    """The server's own limit of an upload, unless it is less."""
    every: str | None = Field(None, max_length=20)
    cron: str | None = Field(None, max_length=200)
    watch: bool = False
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None


class SetOptions(Body):
    url: str = Field(max_length=4_000)
    """The source's, as it is shown: no credentials go to another place than was meant."""
    options: dict[OptionName, OptionText] = Field(max_length=16)
    """In the place of all that it has."""


class AskSweep(Body):
    dry_run: bool = False
    allow_empty: bool = False


@router.post("")
async def add_source(
    body: AddSource, request: Request, services: UseServices, scope: Admin
) -> dict[str, Any]:
    """Adds a source and makes its first sweep due. Folders and hosts must be allowed, unless the owner sends it."""
    by_owner = await _is_by_owner(services, request)
    return await asyncio.to_thread(add, services, scope, body, by_owner=by_owner)


@router.get("")
def list_sources(services: UseServices, scope: Reader) -> dict[str, Any]:
    with services.database.read() as session:
        rows = registry.list_sources(session, scope)
        return {
            "object": "list",
            "data": [_shape(row, registry.last_sweeps(session, row.id, most=1)) for row in rows],
        }


@router.get("/{source_id}")
def get_source(source_id: str, services: UseServices, scope: Reader) -> dict[str, Any]:
    """With its last sweeps, and the files that were refused."""
    with services.database.read() as session:
        source = registry.get_source(session, scope, source_id)
        refused = registry.refusals(session, source.id)
        return {
            **_shape(source, registry.last_sweeps(session, source.id)),
            "refused": [{"path": path, "reason": reason} for path, reason in refused],
        }


@router.delete("/{source_id}")
def remove_source(
    source_id: str, services: UseServices, scope: Admin, *, keep_files: bool = False
) -> dict[str, Any]:
    """Its files and documents go with it, unless they are to be kept as if they had been uploaded."""
    while not keep_files:
        with services.database.write() as session:
            orphans = registry.remove_some_files(session, scope, source_id)
        if orphans is None:
            break
        for blob_id in orphans:
            services.blobs.remove(blob_id)
    with services.database.write() as session:
        registry.remove_source(session, scope, source_id)
        audit.record(session, AuditEvent.SOURCE_DELETED, source_id, scope=scope)
    return {"id": source_id, "object": "source.deleted", "deleted": True}


@router.post("/{source_id}/sweep")
def ask_sweep(source_id: str, body: AskSweep, services: UseServices, scope: Admin) -> dict[str, Any]:
    """Has the source looked at soon, whatever its schedule. What came of it stands in the source's report."""
    with services.database.write() as session:
        asked = registry.ask_sweep(
            session,
            scope,
            source_id,
            is_dry=body.dry_run,
            may_empty=body.allow_empty,
            now=time.time(),
        )
        audit.record(session, AuditEvent.SOURCE_CHANGED, source_id, scope=scope, act="sweep")
        return _shape_sweep(asked)


@router.post("/{source_id}/options")
async def set_options(
    source_id: str, body: SetOptions, request: Request, services: UseServices, scope: Admin
) -> dict[str, Any]:
    """Gives it other credentials, and makes a sweep due. What it brought so far stays."""
    by_owner = await _is_by_owner(services, request)
    return await asyncio.to_thread(_set_options, services, scope, source_id, body, by_owner=by_owner)


@router.post("/{source_id}/pause")
def pause_source(source_id: str, services: UseServices, scope: Admin) -> dict[str, Any]:
    with services.database.write() as session:
        audit.record(session, AuditEvent.SOURCE_CHANGED, source_id, scope=scope, act="pause")
        return _shape(registry.pause_source(session, scope, source_id), [])


@router.post("/{source_id}/resume")
def resume_source(source_id: str, services: UseServices, scope: Admin) -> dict[str, Any]:
    with services.database.write() as session:
        audit.record(session, AuditEvent.SOURCE_CHANGED, source_id, scope=scope, act="resume")
        return _shape(registry.resume_source(session, scope, source_id, now=time.time()), [])


async def _is_by_owner(services: Services, request: Request) -> bool:
    secret = server_secret(keys_dir(services.settings))
    return is_owner(secret, await request.body(), request.headers.get(OWNER_HEADER))


def add(
    services: Services, scope: Scope, body: AddSource, *, by_owner: bool, tries_first: bool = False
) -> dict[str, Any]:
    """With `tries_first` it begins paused, with a dry sweep. Blocks. Raises BadRequest, NotFound."""
    try:
        address, every_s = _checked(services, body, by_owner=by_owner)
    except SourceRefused as error:
        raise BadRequest(str(error), param=error.param) from error
    limit_bytes = services.settings.storage.max_upload_bytes
    source_id = registry.new_source_id()
    sealed = _sealed(services, address, owner=source_id)
    with services.database.write() as session:
        collection = catalog.find_collection(session, scope, body.collection)
        new = NewSource(
            collection_id=collection.id,
            url=address.url,
            options=sealed,
            include=body.include,
            exclude=body.exclude,
            max_bytes=min(body.max_bytes or limit_bytes, limit_bytes),
            every_s=every_s,
            cron=body.cron,
            is_watched=body.watch,
            attributes=dict(body.attributes or {}),
            chunking=chunking_of(body.chunking_strategy),
        )
        now = time.time()
        audit.record(session, AuditEvent.SOURCE_ADDED, source_id, collection.id, scope=scope)
        added = registry.add_source(session, scope, source_id, new, now=now)
        if tries_first:
            registry.pause_source(session, scope, source_id)
            registry.ask_sweep(session, scope, source_id, is_dry=True, may_empty=False, now=now)
        return _shape(added, [])


def _set_options(
    services: Services, scope: Scope, source_id: str, body: SetOptions, *, by_owner: bool
) -> dict[str, Any]:
    with services.database.read() as session:
        url = registry.get_source(session, scope, source_id).url
    if body.url != url:
        raise BadRequest(f"url must be the source's own, {url}; for another place add a source.", param="url")
    try:
        address = _checked_address(services, url, body.options, by_owner=by_owner)
    except SourceRefused as error:
        raise BadRequest(str(error), param=error.param) from error
    sealed = _sealed(services, address, owner=source_id)
    with services.database.write() as session:
        audit.record(session, AuditEvent.SOURCE_CHANGED, source_id, scope=scope, act="options")
        return _shape(registry.set_options(session, scope, source_id, sealed, now=time.time()), [])


def _checked(services: Services, body: AddSource, *, by_owner: bool) -> tuple[Address, float | None]:
    """The address, and `every` in seconds. Raises SourceRefused."""
    address = _checked_address(services, body.url, body.options, by_owner=by_owner)
    PathFilter(body.include, body.exclude)
    if body.every is not None and body.cron is not None:
        raise SourceRefused("Give every or cron, not both.", param="cron")
    if body.watch and address.scheme != "file":
        raise SourceRefused("Only local folders can be watched; give every or cron instead.", param="watch")
    if body.cron is not None:
        check_cron(body.cron)
    return address, parse_every(body.every) if body.every is not None else None


def _checked_address(services: Services, url: str, options: dict[str, str], *, by_owner: bool) -> Address:
    address = read_address(url, options)
    if not by_owner:
        sources = services.settings.sources
        check_allowed(address, Allowed(roots=sources.root_folders, hosts=sources.host_names))
    check_backend(address)
    return address


def _sealed(services: Services, address: Address, *, owner: str) -> bytes | None:
    if not address.options:
        return None
    return services.sealer.seal(orjson.dumps(address.options).decode(), owner=owner)


def _shape(source: Source, sweeps: list[Sweep]) -> dict[str, Any]:
    return {
        "id": source.id,
        "object": "source",
        "url": source.url,
        "collection_id": source.collection_id,
        "has_options": source.options is not None,
        "include": source.include,
        "exclude": source.exclude,
        "max_bytes": source.max_bytes,
        "every": show_every(source.every_s) if source.every_s is not None else None,
        "cron": source.cron,
        "watch": source.is_watched,
        "paused": source.is_paused,
        "failures": source.failures,
        "reason": reason_waiting(source),
        "next_sweep_at": None if source.is_paused or source.due_at is None else int(source.due_at),
        "attributes": source.attributes,
        "created_at": int(source.created_at),
        "sweeps": [_shape_sweep(sweep) for sweep in sweeps],
    }


def _shape_sweep(sweep: Sweep) -> dict[str, Any]:
    seconds = None
    if sweep.started_at is not None and sweep.ended_at is not None:
        seconds = round(max(0.0, sweep.ended_at - sweep.started_at), 3)
    status = "waiting" if sweep.started_at is None else "running" if sweep.ended_at is None else "ended"
    return {
        "id": sweep.id,
        "object": "source.sweep",
        "status": status,
        "dry_run": sweep.is_dry,
        "due_at": int(sweep.due_at),
        "started_at": int(sweep.started_at) if sweep.started_at is not None else None,
        "seconds": seconds,
        "counts": sweep.counts,
        "error": sweep.error,
    }
