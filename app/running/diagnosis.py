"""What could be wrong with an installation, looked at one by one: for `strongroom doctor`, which says what to do."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import aiohttp
import psutil
from sqlalchemy import func, select

from app.access.key_files import KeysUnusable, check_private
from app.commands.remote import Remote, RemoteRefused
from app.running.serve import StartRefused, check_model
from app.settings import Settings, model_path, weights_bytes
from app.storage.migrate import SchemaMismatch, check_schema
from app.storage.opening import Storage, StorageRefused, keys_dir, open_storage
from retrieval.beats import SILENT_AFTER_S
from retrieval.database import DatabaseUnavailable
from retrieval.tables import WorkerBeat
from retrieval.verify import differences
from retrieval.views import IndexViews
from serving.generation.engine import list_gpus

GIB = 1024**3
LEAST_DISK, SMALL_DISK = 1 * GIB, 10 * GIB
LEAST_MEMORY_FOLDER = 256 * 1024**2
OURS_BYTES = GIB
"""What api and worker take beside models and engine, about."""
MOST_SKEW_S = 2.0
"""Leases last 15 s: with clocks that differ more, one machine takes what another still has in hand."""
ASK_S = 5.0


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """It works, and not as well as it could."""
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """`advice` says what to do; empty when nothing is wrong."""

    name: str
    state: State
    found: str
    advice: str = ""

    def told(self) -> dict[str, str]:
        return asdict(self)


async def diagnose(settings: Settings, remote: Remote) -> list[Finding]:
    """All of it; no check keeps another from being made."""
    findings = [finding for check in LOCAL for finding in check(settings)]
    findings += await _engines(settings)
    running = await _server(remote)
    # A server that runs compares its own indexes.
    return [*findings, *running, *_stored(settings, verifies=len(running) == 1)]


def _data_folder(settings: Settings) -> Iterator[Finding]:
    folder = settings.storage.data_dir
    if not folder.is_dir():
        yield Finding(
            "data folder", State.WARNING, f"{folder} does not exist", "It is made by `strongroom serve`."
        )
        return
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(
            "data folder",
            State.FAILED,
            f"{folder} cannot be written by this user",
            f"Run as the user that owns it, or `chown -R` it to user {os.geteuid()}.",
        )
        return
    yield Finding("data folder", State.OK, f"{folder} can be written")
    for path in sorted(keys_dir(settings).glob("*")):
        try:
            check_private(path)
        except KeysUnusable as error:
            yield Finding("keys", State.FAILED, f"{path.name} is not private", str(error))


def _disk(settings: Settings) -> Iterator[Finding]:
    folder = settings.storage.data_dir
    free = shutil.disk_usage(folder if folder.is_dir() else Path()).free
    found = f"{free / GIB:.1f} GiB free"
    if free < LEAST_DISK:
        yield Finding("disk", State.FAILED, found, "Make room: uploads and the database will soon fail.")
    elif free < SMALL_DISK:
        yield Finding("disk", State.WARNING, found, "Make room before many documents come.")
    else:
        yield Finding("disk", State.OK, found)


def _memory(settings: Settings) -> Iterator[Finding]:
    total = psutil.virtual_memory().total
    needed = OURS_BYTES + settings.ingest.parsers * settings.ingest.parse_memory_mib * 1024**2
    if not settings.models.url:
        needed += 2 * sum(
            weights_bytes(model_path(each.source, settings.models.folder))
            for each in (*settings.models.embeddings, *settings.models.rerankers)
        )
    if not settings.engine.url and not list_gpus():
        needed += settings.engine.kv_cache_gib * GIB * len(settings.engine.models)
        needed += sum(
            weights_bytes(model_path(each.source, settings.models.folder)) for each in settings.engine.models
        )
    found = f"{total / GIB:.1f} GiB, of which what is set may take {needed / GIB:.1f}"
    if needed > total:
        yield Finding(
            "memory",
            State.WARNING,
            found,
            "Lower ingest.parsers or ingest.parse_memory_mib, engine.kv_cache_gib, or take smaller models.",
        )
    else:
        yield Finding("memory", State.OK, found)
    folder = settings.encryption.memory_folder
    if settings.encryption.enabled:
        free = shutil.disk_usage(folder).free if folder.is_dir() else 0
        advice = (
            "Give it more room (`mount -o remount,size=4g`, in a container shm_size), or set "
            "encryption.memory_folder."
        )
        state = State.OK if free >= LEAST_MEMORY_FOLDER else State.WARNING
        yield Finding(
            "memory folder",
            state,
            f"{folder} has {free / GIB:.1f} GiB",
            "" if state is State.OK else advice,
        )


def _models(settings: Settings) -> Iterator[Finding]:
    named: list[tuple[str, str]] = []
    if not settings.models.url:
        named += [("models.embedding", each.source) for each in settings.models.embeddings]
        named += [("models.reranker", each.source) for each in settings.models.rerankers]
    if not settings.engine.url:
        named += [("engine.model", each.source) for each in settings.engine.models]
    for setting, name in named:
        try:
            check_model(setting, name, settings)
        except StartRefused as error:
            yield Finding(setting, State.FAILED, f"{name} is not there", str(error))
            continue
        path = model_path(name, settings.models.folder)
        if Path(path).is_dir() and not weights_bytes(path):
            advice = "Copy the model again: `strongroom models pull NAME` fetches all of it."
            yield Finding(setting, State.WARNING, f"{path} holds no .safetensors", advice)
        else:
            yield Finding(setting, State.OK, f"{name} is there")


def _programs(_: Settings) -> Iterator[Finding]:
    for program, package, what in (
        ("tesseract", "tesseract-ocr", "scanned pages"),
        ("soffice", "libreoffice", "Word and PowerPoint files from before 2007"),
    ):
        if shutil.which(program):
            yield Finding(program, State.OK, "installed")
        else:
            advice = f"Install the package {package} where workers run, to read {what}."
            yield Finding(program, State.WARNING, "not installed here", advice)


LOCAL: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    _data_folder,
    _disk,
    _memory,
    _models,
    _programs,
)


async def _engines(settings: Settings) -> list[Finding]:
    """Those that the settings name; one that `serve` starts is told of by the running server."""
    if not settings.engine_urls:
        if settings.engine.python.exists():
            return [Finding("engine", State.OK, f"{settings.engine.python} is there")]
        advice = "Run `make setup`, or set engine.url to an OpenAI-compatible engine that runs already."
        return [Finding("engine", State.FAILED, f"{settings.engine.python} does not exist", advice)]
    findings = []
    timeout = aiohttp.ClientTimeout(total=ASK_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for url in settings.engine_urls:
            headers = {"Authorization": f"Bearer {settings.engine.token}"} if settings.engine.token else {}
            try:
                async with session.get(f"{url.rstrip('/')}/v1/models", headers=headers) as reply:
                    status = reply.status
            except (aiohttp.ClientError, TimeoutError, OSError):
                advice = "Start it, or change engine.url; what it logged last says why it ended."
                findings.append(Finding("engine", State.FAILED, f"{url} does not answer", advice))
                continue
            if status == 401:
                advice = "Set engine.token to the engine's API key."
                findings.append(Finding("engine", State.FAILED, f"{url} refuses our token", advice))
            else:
                findings.append(Finding("engine", State.OK, f"{url} answers"))
    return findings


async def _server(remote: Remote) -> list[Finding]:
    """Of a server that does not run there is one finding, that it does not."""
    ready = await remote.readiness()
    if ready is None:
        advice = "Start it with `strongroom serve`; if it should run already, see logs/ in the data folder."
        return [Finding("server", State.FAILED, f"nothing answers at {remote.url}", advice)]
    findings = []
    for name, role in ready["roles"].items():
        is_ready = role["state"] == "ready"
        advice = "" if is_ready else f'See the lines of this role in logs/: grep \'"role": *"{name}"\'.'
        findings.append(
            Finding(f"role {name}", State.OK if is_ready else State.FAILED, role["reason"], advice)
        )
    try:
        found = await remote.verify()
    except RemoteRefused as error:
        return [*findings, Finding("indexes", State.WARNING, str(error), "Ask with an admin's key.")]
    return [*findings, _indexes(found)]


def _stored(settings: Settings, *, verifies: bool) -> Iterator[Finding]:
    if not keys_dir(settings).is_dir():
        return
    try:
        with open_storage(settings) as storage:
            storage.database.check()
            check_schema(storage.database)
            yield Finding("database", State.OK, f"{storage.database.engine.dialect.name}, of this version")
            yield from _clocks(storage)
            if verifies:
                yield _indexes(list(differences(storage.database, storage.blobs, IndexViews())))
    except SchemaMismatch as error:
        yield Finding("database", State.FAILED, "is of another version", str(error))
    except (DatabaseUnavailable, KeysUnusable, StorageRefused) as error:
        advice = "Check storage.database_url and that the database server runs, or put the keys in place."
        yield Finding("database", State.FAILED, str(error), advice)


def _clocks(storage: Storage) -> Iterator[Finding]:
    with storage.database.read() as session:
        now = time.time()
        skew = 0.0
        if storage.database.engine.dialect.name == "postgresql":
            skew = abs(
                float(session.scalar(select(func.extract("epoch", func.clock_timestamp()))) or now) - now
            )
        beats = session.execute(select(WorkerBeat.seen_at, WorkerBeat.isolated)).all()
    ahead = max((seen_at - now for seen_at, _ in beats), default=0.0)
    worst = max(skew, ahead)
    if worst > MOST_SKEW_S:
        advice = "Keep the clocks of all machines in step, by chrony or systemd-timesyncd."
        yield Finding("clocks", State.FAILED, f"they differ by {worst:.0f} s", advice)
    else:
        yield Finding("clocks", State.OK, "of this machine, the database and the workers agree")
    living = [isolated for seen_at, isolated in beats if seen_at > now - SILENT_AFTER_S]
    if living and not all(living):
        advice = (
            "Let workers make network namespaces (`sysctl kernel.unprivileged_userns_clone=1`), or run them where "
            "there is no network."
        )
        yield Finding("parsers", State.WARNING, "run with network", advice)


def _indexes(found: list[str]) -> Finding:
    if not found:
        return Finding("indexes", State.OK, "they, the tables and the files agree")
    advice = "Run `strongroom verify --repair`, which heals from the tables what they can heal."
    return Finding("indexes", State.FAILED, f"{len(found)} differences, such as: {found[0]}", advice)
