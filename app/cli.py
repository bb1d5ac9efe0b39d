"""`strongroom …`: one command a role, and the commands that people use."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from app.access.audit import audited
from app.access.auth import KeyHasNoText, KeyMissing
from app.access.key_files import KeysUnusable
from app.answers.calibration import CalibrationInvalid, read_calibration
from app.commands.adding import Outcome, PathMissing, add_files, files_under
from app.commands.asking import ask, chat, search
from app.commands.audit import audit_cli
from app.commands.bench import bench
from app.commands.collections import collections_cli
from app.commands.doctor import doctor
from app.commands.evaluation import eval_cli
from app.commands.jobs import jobs_cli
from app.commands.keys import keys_cli
from app.commands.plan import plan
from app.commands.remote import Remote, RemoteRefused, RemoteUnreachable
from app.commands.retention import retention_cli
from app.commands.sources import sources_cli
from app.commands.status import status
from app.commands.terminal import (
    AsJson,
    DataDir,
    KeyFile,
    Result,
    Url,
    console,
    key_path,
    print_json,
    read_key,
    refuse,
    with_data_dir,
    with_remote,
)
from app.logs import start_logs
from app.measuring.figures import FiguresUnreadable
from app.running.core_dumps import forbid_core_dumps
from app.running.serve import WORKER_NICENESS, StartRefused, prepare_data, serve
from app.settings import Settings, SettingsInvalid, read_settings
from app.storage.backup import BackupUnusable, back_up, restore
from app.storage.migrate import SchemaMismatch, check_schema
from app.storage.opening import Storage, StorageRefused, keys_dir, open_storage
from retrieval.audit import AuditUnavailable
from retrieval.database import Database, DatabaseUnavailable
from retrieval.tables import AuditEvent
from retrieval.verify import differences, repair
from retrieval.views import IndexViews

cli = typer.Typer(
    help="Private retrieval-augmented generation on your own machines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
models_cli = typer.Typer(invoke_without_command=True)
cli.add_typer(keys_cli, name="keys")
cli.add_typer(models_cli, name="models")
cli.add_typer(sources_cli, name="sources")
cli.add_typer(eval_cli, name="eval")
cli.add_typer(collections_cli, name="collections")
cli.add_typer(audit_cli, name="audit")
cli.add_typer(retention_cli, name="retention")
cli.add_typer(jobs_cli, name="jobs")
cli.command("ask")(ask)
cli.command("chat")(chat)
cli.command("search")(search)
cli.command("status")(status)
cli.command("doctor")(doctor)
cli.command("bench")(bench)
cli.command("plan")(plan)
SAMPLES_COLLECTION = "samples"
QUESTIONS_FILE = "questions.json"
"""Stands beside the samples, and is not one of them: questions with the passages that answer them."""
WELCOME = """
Strongroom is ready.
  Base URL   {url}/v1
  Key file   {key_file}
  Console    {console}

Ask with curl:
  curl -N {url}/v1/chat/completions -H "Authorization: Bearer $(cat {key_file})" \\
    -H "Content-Type: application/json" \\
    -d '{{"model": "rag", "stream": true, "messages": [{{"role": "user", "content": "{question}"}}]}}'

Ask with Python:
  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key=open("{key_file}").read().strip())
  reply = client.chat.completions.create(
      model="rag", messages=[{{"role": "user", "content": "{question}"}}])
  print(reply.choices[0].message.content, reply.choices[0].message.annotations)
"""


def main() -> None:
    """The console script. An error that a person can act on is one line and exit status 2."""
    try:
        cli()
    except (
        SettingsInvalid,
        CalibrationInvalid,
        StartRefused,
        SchemaMismatch,
        DatabaseUnavailable,
        AuditUnavailable,
        KeyMissing,
        KeyHasNoText,
        KeysUnusable,
        StorageRefused,
        BackupUnusable,
        PathMissing,
        RemoteRefused,
        FiguresUnreadable,
    ) as error:
        refuse(str(error))


@cli.command("serve")
def serve_command(
    host: Annotated[str | None, typer.Option(help="Address to listen on: server.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on: server.port.")] = None,
    data_dir: DataDir = None,
    samples: Annotated[
        Path | None, typer.Option(help="Folder of documents to add once all is ready.")
    ] = None,
) -> None:
    """Run everything on this machine, until Ctrl-C."""
    settings = read_settings().with_options(
        server={"host": host, "port": port}, storage={"data_dir": str(data_dir) if data_dir else None}
    )
    asyncio.run(serve(settings, partial(_welcome, samples=samples)))


@cli.command()
def api() -> None:
    """Run the api role: HTTP, search, chat."""
    settings = read_settings()
    start_logs("api", settings.server.log_level)
    forbid_core_dumps()
    _check_database(settings)
    read_calibration(settings.storage.data_dir, reranker=settings.models.default_reranker)
    # A program of its own, since its imports would cost every other command most of its start.
    os.execv(sys.executable, [sys.executable, "-m", "app.running.api_role"])  # noqa: S606


@models_cli.callback()
def models(context: typer.Context) -> None:
    """Run the models role: embedding and reranking. `pull` fetches a model, once."""
    if context.invoked_subcommand is not None:
        return
    read_settings()
    forbid_core_dumps()
    # A program of its own, since importing torch costs every other command seconds and 300 MB.
    os.execv(sys.executable, [sys.executable, "-m", "app.running.models_role"])  # noqa: S606


@models_cli.command("pull")
def pull_model(name: Annotated[str, typer.Argument(help="OWNER/MODEL, as the hub has it.")]) -> None:
    """Fetch a model into the models folder: the only command that goes to a hub."""
    read_settings()
    # A program of its own as well: the hub's library takes long to import.
    os.execv(sys.executable, [sys.executable, "-m", "app.running.pulling", name])  # noqa: S606


@cli.command()
def worker() -> None:
    """Run the worker role: ingestion."""
    settings = read_settings()
    start_logs("worker", settings.server.log_level)
    _check_database(settings)
    os.nice(WORKER_NICENESS)
    os.execv(sys.executable, [sys.executable, "-m", "app.running.worker_role"])  # noqa: S606


@cli.command("migrate")
def migrate_command(data_dir: DataDir = None) -> None:
    """Bring the data folder to this version: tables, encryption, and secrets and the first key if they are missing."""
    key_file = prepare_data(with_data_dir(data_dir), encrypts=console.print)
    console.print(f"The database is up to date. The first key is in {key_file}.", soft_wrap=True)


@cli.command()
def add(
    paths: Annotated[
        list[Path], typer.Argument(help="Files, folders, and patterns such as 'letters/**/*.pdf'.")
    ],
    collection: Annotated[
        str, typer.Option(help="Name or id of the collection; made if it is missing.")
    ] = "documents",
    wait: Annotated[
        bool, typer.Option(help="Wait until all can be searched, or only until all is sent.")
    ] = True,
    password: Annotated[
        str | None,
        typer.Option(
            help="What opens files that are encrypted. Without a value you are asked for it.",
            prompt=True,
            prompt_required=False,
            hide_input=True,
        ),
    ] = None,
    as_json: AsJson = False,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Upload files and folders, and wait until they can be searched."""
    found = files_under(paths)
    shown = Console(stderr=True) if as_json else console
    if found.left_out:
        shown.print(f"{found.left_out} files of other kinds are left out.")
    if not found.files:
        refuse(f"No supported file in {', '.join(map(str, paths))}.")

    async def run(remote: Remote) -> Outcome:
        return await add_files(remote, found.files, collection, console=shown, password=password, wait=wait)

    try:
        outcome = with_remote(url, key_file, data_dir, run)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if as_json:
        failed = [{"path": str(path), "reason": reason} for path, reason in outcome.failures]
        print_json({"files": len(found.files), "completed": outcome.completed, "failed": failed})
    raise typer.Exit(1 if outcome.failures else 0)


@cli.command("mcp")
def mcp_command(url: Url = "", key_file: KeyFile = None, data_dir: DataDir = None) -> None:
    """Serve MCP on stdin and stdout, for an application that starts this command: the running server's tools."""
    settings = with_data_dir(data_dir)
    read_key(settings, key_file)
    program = [sys.executable, "-m", "app.context_protocol.relay", url or settings.public_url]
    os.execv(sys.executable, [*program, str(key_path(settings, key_file))])  # noqa: S606


@cli.command()
def verify(
    repairs: Annotated[
        bool, typer.Option("--repair", help="Heal first what the tables can heal, and show what is left.")
    ] = False,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Prove that indexes, tables and blobs agree: those of the running server, or of the data folder at rest."""
    settings = with_data_dir(data_dir)
    try:
        where = url or settings.public_url
        found = with_remote(url, key_file, data_dir, lambda remote: remote.verify(repairs=repairs))
    except RemoteUnreachable:
        where = str(settings.storage.data_dir)
        with _storage(settings) as storage:
            if repairs:
                with audited(storage.database, AuditEvent.REPAIRED):
                    repair(storage.database, storage.blobs, IndexViews())
            found = list(differences(storage.database, storage.blobs, IndexViews()))
    for difference in found:
        console.print(difference, style="red")
    console.print(f"{where}: {len(found)} differences.")
    raise typer.Exit(1 if found else 0)


@cli.command()
def backup(
    path: Annotated[Path, typer.Argument(help="The archive to make.")],
    with_master_key: Annotated[
        bool,
        typer.Option(help="Put the master key into the archive: whoever has it can then read everything."),
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Save database, files and settings as one encrypted archive, also while all runs."""
    settings = with_data_dir(data_dir)
    with _storage(settings) as storage, audited(storage.database, AuditEvent.BACKED_UP):
        back_up(settings, storage, path, with_master_key=with_master_key)
    console.print(f"{path} holds all of {settings.storage.data_dir}.", soft_wrap=True)
    if not with_master_key:
        console.print("It opens with the master key alone: keep that elsewhere.")


@cli.command("restore")
def restore_command(
    path: Annotated[Path, typer.Argument(help="The archive.")],
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="A later deletions.ledger: what was deleted after the backup is deleted again by it."
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Put a backup into an empty data folder, and prove that it is whole."""
    settings = with_data_dir(data_dir)
    restored = restore(settings, path, newer_ledger=ledger)
    for difference in restored.differences:
        console.print(difference, style="red")
    console.print(
        f"{settings.storage.data_dir}: restored, {restored.deleted_again} deleted again, "
        f"{len(restored.differences)} differences.",
        soft_wrap=True,
    )
    raise typer.Exit(1 if restored.differences else 0)


async def _welcome(settings: Settings, remote: Remote, *, samples: Path | None) -> None:
    """Adds the samples that are not in yet, then shows how to ask."""
    question = "What do the documents say?"
    if samples is not None:
        collection_id = await remote.collection(SAMPLES_COLLECTION)
        present = await remote.filenames(collection_id)
        found = files_under([samples], except_name=QUESTIONS_FILE)
        new = [file for file in found.files if file.name not in present]
        if new:
            await add_files(remote, new, SAMPLES_COLLECTION, console=console)
        question = orjson.loads((samples / QUESTIONS_FILE).read_bytes())[0]["question"]
    key_file = keys_dir(settings) / "admin.key"
    # A link is a key for a while: shown only where nobody but this machine can follow it.
    on_loopback = settings.server.host in ("127.0.0.1", "::1", "localhost")
    link = await remote.sign_in_link() if on_loopback else settings.public_url
    typer.echo(WELCOME.format(url=settings.public_url, key_file=key_file, question=question, console=link))


def _check_database(settings: Settings) -> None:
    _with_database(settings, check_schema)


def _with_database(settings: Settings, use: Callable[[Database], Result]) -> Result:
    with _storage(settings) as storage:
        return use(storage.database)


@contextmanager
def _storage(settings: Settings) -> Iterator[Storage]:
    with open_storage(settings) as storage:
        storage.database.check()
        yield storage


if __name__ == "__main__":
    main()
