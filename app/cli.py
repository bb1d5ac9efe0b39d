"""`strongroom …`: one command a role, and the commands that people use."""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.table import Column, Table
from sqlalchemy import select

from app.adding import Outcome, PathMissing, add_files, files_under
from app.api import create_app
from app.auth import DEFAULT_TENANT, KeyMissing, KeyRing, server_secret
from app.collections_cli import collections_cli
from app.eval_cli import eval_cli
from app.http_server import run_http
from app.logs import start_logs
from app.migrate import SchemaMismatch, check_schema
from app.remote import Json, Remote, RemoteRefused, RemoteUnreachable
from app.serve import StartRefused, prepare_data, serve
from app.services import blobs_dir, keys_dir, open_worker
from app.settings import Settings, SettingsInvalid, read_settings
from app.sources_cli import sources_cli
from app.terminal import DataDir, KeyFile, Result, Url, console, refuse, with_data_dir, with_remote
from retrieval.blobs import BlobStore
from retrieval.database import Database, DatabaseUnavailable, open_database
from retrieval.tables import Key, Role, Tenant
from retrieval.verify import differences
from retrieval.views import IndexViews

cli = typer.Typer(
    help="Private retrieval-augmented generation on your own machines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
keys_cli = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
cli.add_typer(keys_cli, name="keys")
cli.add_typer(sources_cli, name="sources")
cli.add_typer(eval_cli, name="eval")
cli.add_typer(collections_cli, name="collections")
WORKER_NICENESS = 10
SAMPLES_COLLECTION = "samples"
QUESTIONS_FILE = "questions.json"
"""Stands beside the samples, and is not one of them: questions with the passages that answer them."""
WELCOME = """
Strongroom is ready.
  Base URL   {url}/v1
  Key file   {key_file}

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
        StartRefused,
        SchemaMismatch,
        DatabaseUnavailable,
        KeyMissing,
        PathMissing,
        RemoteRefused,
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
    _check_database(settings)
    run_http(create_app(settings), settings.server.host, settings.server.port)


@cli.command()
def models() -> None:
    """Run the models role: embedding and reranking."""
    read_settings()
    # A program of its own, since importing torch costs every other command seconds and 300 MB.
    os.execv(sys.executable, [sys.executable, "-m", "app.models_role"])  # noqa: S606


@cli.command()
def worker() -> None:
    """Run the worker role: ingestion."""
    settings = read_settings()
    start_logs("worker", settings.server.log_level)
    _check_database(settings)
    asyncio.run(_work(settings))


@cli.command("migrate")
def migrate_command(data_dir: DataDir = None) -> None:
    """Bring the database to this version's tables, and make secrets and the first key if they are missing."""
    key_file = prepare_data(with_data_dir(data_dir))
    console.print(f"The database is up to date. The first key is in {key_file}.", soft_wrap=True)


@cli.command()
def add(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.")],
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
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Upload files and folders, and wait until they can be searched."""
    found = files_under(paths)
    if found.left_out:
        console.print(f"{found.left_out} files of other kinds are left out.")
    if not found.files:
        refuse(f"No supported file in {', '.join(map(str, paths))}.")

    async def run(remote: Remote) -> Outcome:
        return await add_files(remote, found.files, collection, console=console, password=password, wait=wait)

    try:
        outcome = with_remote(url, key_file, data_dir, run)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    raise typer.Exit(1 if outcome.failures else 0)


@cli.command()
def ask(
    question: Annotated[str, typer.Argument()],
    collection: Annotated[str | None, typer.Option(help="Search this collection only.")] = None,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Ask the documents; the answer streams, then its citations follow."""
    model = f"rag/{collection}" if collection else "rag"
    with_remote(url, key_file, data_dir, lambda remote: _print_answer(remote, question, model))


@cli.command()
def verify(url: Url = "", key_file: KeyFile = None, data_dir: DataDir = None) -> None:
    """Prove that indexes, tables and blobs agree: those of the running server, or of the data folder at rest."""
    settings = with_data_dir(data_dir)
    try:
        where = url or settings.public_url
        found = with_remote(url, key_file, data_dir, lambda remote: remote.verify())
    except RemoteUnreachable:
        where = str(settings.storage.data_dir)
        blobs = BlobStore(blobs_dir(settings))
        found = _with_database(settings, lambda database: list(differences(database, blobs, IndexViews())))
    for difference in found:
        console.print(difference, style="red")
    console.print(f"{where}: {len(found)} differences.")
    raise typer.Exit(1 if found else 0)


@keys_cli.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.READER,
    tenant: Annotated[
        str, typer.Option(help="Whose documents it sees; made if it is missing.")
    ] = DEFAULT_TENANT,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it: it is shown this once."""
    settings = with_data_dir(data_dir)

    def make(database: Database) -> str:
        with database.write() as session:
            ring = KeyRing(database, server_secret(keys_dir(settings)))
            return ring.add(session, tenant_name=tenant, name=name, role=role, now=time.time())[1]

    typer.echo(_with_database(settings, make))


@keys_cli.command("list")
def list_keys(data_dir: DataDir = None) -> None:
    """List keys, without their text, which is stored nowhere."""

    def rows(database: Database) -> list[tuple[str, ...]]:
        with database.read() as session:
            found = session.execute(select(Key, Tenant.name).join(Tenant, Tenant.id == Key.tenant_id))
            return [
                (key.id, tenant, key.name, key.role.value, "revoked" if key.revoked_at else "active")
                for key, tenant in found
            ]

    # An id that is cut at a narrow terminal's edge could not be revoked.
    table = Table(Column("id", no_wrap=True, min_width=28), "tenant", "name", "role", "state")
    for row in _with_database(with_data_dir(data_dir), rows):
        table.add_row(*row)
    console.print(table)


@keys_cli.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument()], data_dir: DataDir = None) -> None:
    """Make a key worthless, within a second, in every process."""
    settings = with_data_dir(data_dir)

    def revoke(database: Database) -> None:
        with database.write() as session:
            KeyRing(database, server_secret(keys_dir(settings))).revoke(session, key_id, now=time.time())

    _with_database(settings, revoke)
    console.print(f"{key_id} is revoked.")


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
    typer.echo(WELCOME.format(url=settings.public_url, key_file=key_file, question=question))


async def _print_answer(remote: Remote, question: str, model: str) -> None:
    annotations: list[Json] = []
    async for chunk in remote.ask(question, model):
        for choice in chunk["choices"]:
            typer.echo(choice["delta"].get("content") or "", nl=False)
            annotations += choice["delta"].get("annotations") or []
    typer.echo()
    for each in annotations:
        page = f", page {each['page']}" if each["page"] else ""
        console.print(f"\n[{each['index']}] {each['filename']}{page}", style="bold", markup=False)
        console.print(f"“{each['quote']}”", markup=False)
        console.print(each["url_citation"]["url"], style="dim", markup=False, soft_wrap=True)


async def _work(settings: Settings) -> None:
    # Where cores are scarce, people who wait go first; its parsers inherit this.
    os.nice(WORKER_NICENESS)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_worker(settings) as (worker, schedules):
        working = asyncio.gather(worker.run(), schedules.run())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        working.cancel()
        await asyncio.gather(working, stopped, return_exceptions=True)
        if not stop.is_set():
            logging.getLogger("strongroom.worker").error("worker_ended")
            sys.exit(1)


def _check_database(settings: Settings) -> None:
    _with_database(settings, check_schema)


def _with_database(settings: Settings, use: Callable[[Database], Result]) -> Result:
    database = open_database(settings.database_url)
    try:
        database.check()
        return use(database)
    finally:
        database.close()


if __name__ == "__main__":
    main()
