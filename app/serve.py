"""`strongroom serve`: everything on one box. Checks what a start needs, starts the roles, tells when they are ready."""

import asyncio
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from app.auth import KeyRing, ensure_admin_key, server_secret
from app.migrate import migrate
from app.remote import Json, Remote, RemoteRefused
from app.serve_log import ServeLog
from app.services import blobs_dir, keys_dir
from app.settings import Settings, inherited_environment, model_path
from app.supervise import RoleProcess, Supervisor
from retrieval.database import open_database
from serving.generation.engine import (
    Accelerator,
    EngineConfig,
    detect_accelerator,
    engine_command,
    engine_environment,
)

LOOPBACK = "127.0.0.1"
LOOK_S = 0.5
REMIND_S = 10.0

OnReady = Callable[[Settings, Remote], Awaitable[None]]


class StartRefused(Exception):
    """Something that a start needs is not there; the message names the setting to change."""


async def serve(settings: Settings, on_ready: OnReady) -> None:
    """Runs until SIGTERM or SIGINT. Raises StartRefused or SchemaMismatch before anything is started."""
    check_start(settings)
    key_file = prepare_data(settings)
    log = ServeLog(settings.storage.data_dir / "logs")
    own = with_own_addresses(settings)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    announcing = asyncio.create_task(_announce(own, key_file, log, on_ready))
    try:
        # Told by which addresses are ours: those that the settings left open.
        await Supervisor(
            role_processes(own, models=not settings.models.url, engine=not settings.engine.url), log
        ).run(until=stop)
    finally:
        announcing.cancel()
        await asyncio.gather(announcing, return_exceptions=True)
        log.close()


def check_start(settings: Settings) -> None:
    """Raises StartRefused for what would otherwise only show as a role that restarts for ever."""
    _check_port(settings.server.host, settings.server.port)
    if not settings.models.url:
        _check_model("models.embedding", settings.models.embedding, settings)
        if settings.models.reranker:
            _check_model("models.reranker", settings.models.reranker, settings)
    if not settings.engine.url:
        if not settings.engine.python.exists():
            raise StartRefused(
                f"engine.python: {settings.engine.python} does not exist. Run `make setup`, or set engine.url "
                "to an OpenAI-compatible engine that runs already."
            )
        _check_model("engine.model", settings.engine.model, settings)


def prepare_data(settings: Settings) -> Path:
    """Makes folders, secrets, tables and the first key, as far as they are missing. Returns that key's file."""
    try:
        keys_dir(settings).mkdir(parents=True, exist_ok=True, mode=0o700)
        blobs_dir(settings).mkdir(exist_ok=True, mode=0o700)
        secret = server_secret(keys_dir(settings))
    except OSError as error:
        raise StartRefused(
            f"storage.data_dir: {settings.storage.data_dir} is not writable ({error.strerror})."
        ) from error
    database = open_database(settings.database_url)
    try:
        database.check()
        migrate(database)
        return ensure_admin_key(database, KeyRing(database, secret), keys_dir(settings))
    finally:
        database.close()


def with_own_addresses(settings: Settings) -> Settings:
    """Free loopback ports and fresh secrets for the roles that the settings give no address for."""
    models: Json = {}
    engine: Json = {}
    if not settings.models.url:
        port = _free_port()
        url = f"http://{LOOPBACK}:{port}"
        models = {"host": LOOPBACK, "port": port, "url": url, "token": secrets.token_hex(32)}
    if not settings.engine.url:
        engine = {"url": f"http://{LOOPBACK}:{_free_port()}", "token": secrets.token_hex(32)}
    return settings.with_options(models=models, engine=engine)


def role_processes(settings: Settings, *, models: bool, engine: bool) -> list[RoleProcess]:
    """The roles to start: api and worker, and those of models and engine that are ours."""
    names = [*(["models"] if models else []), "api", "worker"]
    environment = inherited_environment() | settings.to_environment()
    roles = [RoleProcess(name, (sys.executable, "-m", "app.cli", name), environment) for name in names]
    if engine:
        config = engine_config(settings)
        command = [*engine_command(config), *shlex.split(settings.engine.extra_args)]
        roles.append(RoleProcess("engine", command, inherited_environment() | engine_environment(config)))
    return roles


def engine_config(settings: Settings) -> EngineConfig:
    engine = settings.engine
    chosen = detect_accelerator() if engine.device == "auto" else Accelerator(engine.device)
    return EngineConfig(
        python=engine.python.absolute(),
        model=model_path(engine.model, settings.models.folder),
        served_name=Path(engine.model).name,
        accelerator=chosen,
        port=int(settings.engine_urls[0].rpartition(":")[2]),
        api_key=engine.token,
        max_model_len=engine.max_model_len,
        tool_parser=engine.tool_parser or None,
        gpu_memory_share=engine.gpu_memory_utilization,
        cpu_cache_gib=engine.kv_cache_gib,
    )


async def _announce(settings: Settings, key_file: Path, log: ServeLog, on_ready: OnReady) -> None:
    """Says what is still awaited until all roles are ready, and then that they are."""
    started = time.monotonic()
    said, said_at = "", 0.0
    async with Remote(settings.public_url, key_file.read_text().strip()) as remote:
        while True:
            readiness = await remote.readiness()
            if readiness is not None and readiness["ready"]:
                break
            waiting = _waiting(readiness)
            if waiting != said or time.monotonic() - said_at > REMIND_S:
                log.say("starting", waiting_for=waiting, seconds=round(time.monotonic() - started))
                said, said_at = waiting, time.monotonic()
            await asyncio.sleep(LOOK_S)
        log.say("ready", url=settings.public_url, seconds=round(time.monotonic() - started))
        try:
            await on_ready(settings, remote)
        except RemoteRefused as error:
            log.say("samples_refused", level="error", reason=str(error))


def _waiting(readiness: Json | None) -> str:
    if readiness is None:
        return "api"
    return ", ".join(name for name, role in readiness["roles"].items() if role["state"] != "ready")


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartRefused(
                f"server.port: {host}:{port} cannot be listened on ({error.strerror}). "
                "Choose another with --port."
            ) from error


def _check_model(setting: str, name: str, settings: Settings) -> None:
    folder = settings.models.folder
    found = Path(model_path(name, folder))
    if found.is_dir() or settings.models.allow_download:
        return
    if not folder.is_dir():
        raise StartRefused(
            f"models.folder: {folder} does not exist. Run `make setup`, or set it to your models."
        )
    raise StartRefused(
        f"{setting}: there is no model '{name}' in {folder}. Set it to a folder's name or path."
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
