"""`strongroom serve`: everything on one box. Checks what a start needs, starts the roles, tells when they are ready."""

import asyncio
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from app.access.auth import KeyRing, ensure_admin_key, server_secret
from app.answers.calibration import read_calibration
from app.commands.remote import Json, Remote, RemoteRefused
from app.running.core_dumps import forbid_core_dumps
from app.running.serve_log import ServeLog
from app.running.supervise import RoleProcess, Supervisor
from app.settings import EncryptionSettings, Settings, inherited_environment, model_path, weights_bytes
from app.storage.encrypting import encrypt_existing, reseal
from app.storage.migrate import migrate
from app.storage.opening import keys_dir, make_keys, open_storage
from ingest.sealing import Sealer
from retrieval.audit import record
from retrieval.replay import catch_up
from retrieval.tables import AuditEvent
from serving.generation.engine import (
    Accelerator,
    EngineConfig,
    Gpu,
    engine_command,
    engine_environment,
    gpu_memory_share,
    list_gpus,
    place_engines,
)

LOOPBACK = "127.0.0.1"
WORKER_NICENESS = 10
"""Where cores are scarce, people who wait go first. From its first import on, and for its parsers as well."""
LOOK_S = 0.5
REMIND_S = 10.0

OnReady = Callable[[Settings, Remote], Awaitable[None]]


class StartRefused(Exception):
    """Something that a start needs is not there; the message names the setting to change."""


async def serve(settings: Settings, on_ready: OnReady) -> None:
    """Until SIGTERM or SIGINT. Raises StartRefused, CalibrationInvalid or SchemaMismatch before it starts anything."""
    check_start(settings)
    forbid_core_dumps()
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
    """Raises StartRefused or CalibrationInvalid for what would otherwise only show as a role that restarts for ever."""
    _check_port(settings.server.host, settings.server.port)
    read_calibration(settings.storage.data_dir, reranker=settings.models.default_reranker)
    if not settings.models.url:
        for source in settings.models.embeddings:
            check_model("models.embedding", source.source, settings)
        for source in settings.models.rerankers:
            check_model("models.reranker", source.source, settings)
    if not settings.engine.url:
        if not settings.engine.python.exists():
            raise StartRefused(
                f"engine.python: {settings.engine.python} does not exist. Run `make setup`, or set engine.url "
                "to an OpenAI-compatible engine that runs already."
            )
        for source in settings.engine.models:
            check_model("engine.model", source.source, settings)


def prepare_data(settings: Settings, *, encrypts: Callable[[str], None] | None = None) -> Path:
    """Makes folders, secrets, tables and the first key, as far as they are missing. Returns that key's file.

    With `encrypts`, which is told what was done, a data folder that should be encrypted and is not is made so.
    """
    try:
        keys_dir(settings).mkdir(parents=True, exist_ok=True, mode=0o700)
        secret = server_secret(keys_dir(settings))
        root = make_keys(settings)
    except OSError as error:
        raise StartRefused(
            f"storage.data_dir: {settings.storage.data_dir} is not writable ({error.strerror})."
        ) from error
    if encrypts is not None and settings.encryption.enabled:
        encrypt_existing(settings, root, encrypts)
    with open_storage(settings) as storage:
        storage.database.check()
        is_older = migrate(storage.database)
        with storage.database.write() as session:
            reseal(session, old=Sealer(secret), new=storage.sealer)
            if is_older:
                record(session, AuditEvent.MIGRATED, scope=None)
        if again := catch_up(storage.database, storage.blobs, storage.ledger):
            with storage.database.write() as session:
                record(session, AuditEvent.RESTORED, scope=None, deleted_again=again)
        return ensure_admin_key(storage.database, KeyRing(storage.database, secret), keys_dir(settings))


def with_own_addresses(settings: Settings) -> Settings:
    """Free loopback ports and fresh secrets for the roles that the settings give no address for."""
    models: Json = {}
    engine: Json = {}
    if not settings.models.url:
        (port,) = _free_ports(1)
        url = f"http://{LOOPBACK}:{port}"
        models = {"host": LOOPBACK, "port": port, "url": url, "token": secrets.token_hex(32)}
    if not settings.engine.url:
        engines = len(settings.engine.models) * settings.engine.replicas
        urls = [f"http://{LOOPBACK}:{port}" for port in _free_ports(engines)]
        # Ours are started without logs of requests.
        engine = {"url": ",".join(urls), "token": secrets.token_hex(32), "keeps_nothing": True}
    return settings.with_options(models=models, engine=engine)


def role_processes(settings: Settings, *, models: bool, engine: bool) -> list[RoleProcess]:
    """The roles to start: api and worker, and those of models and engine that are ours."""
    names = [*(["models"] if models else []), "api", "worker"]
    inherited = inherited_environment()
    environment = inherited | settings.to_environment()
    # The models role reads nothing from disk that has a key.
    keyless = inherited | settings.with_options(encryption=EncryptionSettings().model_dump()).to_environment()
    roles = [
        RoleProcess(name, _role_command(name), keyless if name == "models" else environment) for name in names
    ]
    if engine:
        gpus = list_gpus(inherited.get("CUDA_VISIBLE_DEVICES"))
        for number, config in enumerate(engine_configs(settings, gpus), 1):
            command = [*engine_command(config), *shlex.split(settings.engine.extra_args)]
            name = "engine" if number == 1 else f"engine-{number}"
            roles.append(RoleProcess(name, command, inherited | engine_environment(config)))
    return roles


def _role_command(name: str) -> list[str]:
    """Of the role's own program: the command line, and what it checks, are behind us."""
    first = ["nice", "-n", str(WORKER_NICENESS)] if name == "worker" else []
    return [*first, sys.executable, "-m", f"app.running.{name}_role"]


def engine_configs(settings: Settings, gpus: Sequence[Gpu]) -> list[EngineConfig]:
    """One for each replica of each generation model, in the order of `settings.engine_urls`.

    Raises StartRefused when `gpus` do not suffice.
    """
    engine = settings.engine
    sources = [source for source in settings.engine.models for _ in range(engine.replicas)]
    on_gpu = engine.device == "cuda" or (engine.device == "auto" and bool(gpus))
    placed: list[tuple[int, ...]] = [()] * len(sources)
    shares = [0.0] * len(sources)
    if on_gpu:
        try:
            placed = place_engines(len(sources), gpus=len(gpus), tensor_parallel=engine.tensor_parallel)
        except ValueError as error:
            raise StartRefused(f"engine.tensor_parallel: {error}.") from error
        shares = [engine_share(settings, gpus, group, engines=placed.count(group)) for group in placed]
    return [
        EngineConfig(
            python=engine.python.absolute(),
            model=model_path(source.source, settings.models.folder),
            served_name=source.alias,
            accelerator=Accelerator.CUDA if on_gpu else Accelerator.CPU,
            port=int(url.rpartition(":")[2]),
            api_key=engine.token,
            max_model_len=engine.max_model_len,
            max_queued=engine.max_in_flight,
            tool_parser=engine.tool_parser or None,
            speculative=engine.speculative or None,
            tensor_parallel=engine.tensor_parallel,
            gpus=tuple(gpus[place].number for place in group),
            gpu_memory_share=share,
            cpu_cache_gib=engine.kv_cache_gib,
        )
        for source, url, group, share in zip(sources, settings.engine_urls, placed, shares, strict=True)
    ]


def engine_share(settings: Settings, gpus: Sequence[Gpu], group: tuple[int, ...], *, engines: int) -> float:
    """What one engine takes of each GPU of its group. The models role uses the GPUs too, unless it is elsewhere."""
    if settings.engine.gpu_memory_utilization:
        return settings.engine.gpu_memory_utilization
    sources = [*settings.models.embeddings, *settings.models.rerankers]
    return gpu_memory_share(
        min(gpus[place].memory_bytes for place in group),
        engines_on_it=engines,
        model_weights=[weights_bytes(model_path(each.source, settings.models.folder)) for each in sources],
        gpu_holds_models=settings.models.device != "cpu",
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


def check_model(setting: str, name: str, settings: Settings) -> None:
    """Raises StartRefused when it is not in the models folder and may not be fetched."""
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


def _free_ports(count: int) -> list[int]:
    """Held all at once, so that they differ."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [probe.getsockname()[1] for probe in probes]
