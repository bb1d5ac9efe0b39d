"""`strongroom sources …`: watched folders, buckets, shares, sites and repositories."""

import asyncio
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.table import Column, Table

from app.access.auth import server_secret
from app.access.owner import owner_proof
from app.commands.remote import Json, Remote
from app.commands.terminal import (
    AsJson,
    DataDir,
    KeyFile,
    Url,
    console,
    print_json,
    refuse,
    with_data_dir,
    with_remote,
)
from app.settings import Settings
from app.storage.opening import keys_dir

sources_cli = typer.Typer(
    help="Keep folders, buckets, shares and sites as collections.", no_args_is_help=True
)

LOOK_S = 0.5
SourceId = Annotated[str, typer.Argument(help="The source's id, as `sources list` shows it.")]


@sources_cli.command("add")
def add(
    address: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="A folder, or an address such as s3://bucket/letters, sftp://host/folder, https://host/files/.",
        ),
    ],
    collection: Annotated[
        str, typer.Option(help="Name or id of the collection; made if it is missing.")
    ] = "documents",
    every: Annotated[str | None, typer.Option(help="Sweep it every so long: 30s, 5m, 2h, 1d.")] = None,
    cron: Annotated[str | None, typer.Option(help="Sweep it by these five fields, in UTC.")] = None,
    watch: Annotated[bool, typer.Option(help="Sweep a local folder whenever something changes.")] = False,
    include: Annotated[list[str] | None, typer.Option(help="Take only what fits, such as *.pdf.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Leave out what fits; hidden files by default.")
    ] = None,
    max_size: Annotated[int | None, typer.Option(help="Leave out files of more bytes.")] = None,
    options: Annotated[
        Path | None,
        typer.Option(help="JSON file of credentials and the like, such as key and secret; - to type it."),
    ] = None,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Add a source, and sweep it for the first time."""
    body = {
        "url": address if "://" in address else Path(address).absolute().as_uri(),
        "options": _read_options(options),
        "include": include or [],
        "every": every,
        "cron": cron,
        "watch": watch,
        "max_bytes": max_size,
    }
    if exclude is not None:
        body["exclude"] = exclude
    settings = with_data_dir(data_dir)

    async def run(remote: Remote) -> Json:
        content = orjson.dumps({**body, "collection": await remote.collection(collection)})
        return await remote.add_source(content, owner_proof=_proof(settings, content))

    added = with_remote(url, key_file, data_dir, run)
    console.print(f"{added['id']} is added. Its first sweep begins at once:", highlight=False)
    console.print(f"  strongroom sources show {added['id']}", highlight=False)


@sources_cli.command("list")
def list_sources(
    as_json: AsJson = False, url: Url = "", key_file: KeyFile = None, data_dir: DataDir = None
) -> None:
    """List sources, and how their last sweeps went."""
    found = with_remote(url, key_file, data_dir, lambda remote: remote.sources())
    if as_json:
        print_json(found)
        return
    table = Table(Column("id", no_wrap=True, min_width=28), "address", "schedule", "last sweep")
    for source in found:
        last = _sweep_line(source["sweeps"][0]) if source["sweeps"] else "none yet"
        table.add_row(source["id"], source["url"], _schedule(source), source["reason"] or last)
    console.print(table, markup=False)


@sources_cli.command("show")
def show(
    source_id: SourceId,
    as_json: AsJson = False,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Show a source, its last sweeps, and the files that could not be taken."""
    source = with_remote(url, key_file, data_dir, lambda remote: remote.source(source_id))
    if as_json:
        print_json(source)
        return
    console.print(f"{source['url']} -> {source['collection_id']}, {_schedule(source)}", markup=False)
    if source["reason"]:
        console.print(source["reason"], style="yellow", markup=False)
    for sweep in source["sweeps"]:
        console.print(f"  {sweep['id']}  {_sweep_line(sweep)}", markup=False, highlight=False)
    for each in source["refused"]:
        console.print(f"  {each['path']}: {each['reason']}", style="red", markup=False, highlight=False)


@sources_cli.command("sweep")
def sweep(
    source_id: SourceId,
    dry_run: Annotated[bool, typer.Option(help="Only tell what a sweep would do.")] = False,
    allow_empty: Annotated[
        bool, typer.Option(help="Believe it if the source has no file any more, and remove them all.")
    ] = False,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Look at a source now, and wait until that is done."""

    async def run(remote: Remote) -> Json:
        asked = await remote.ask_sweep(source_id, dry_run=dry_run, allow_empty=allow_empty)
        while True:
            swept = (await remote.source(source_id))["sweeps"]
            found: Json | None = next((each for each in swept if each["id"] == asked["id"]), None)
            if found is None or found["status"] == "ended":
                return found or asked
            await asyncio.sleep(LOOK_S)

    done = with_remote(url, key_file, data_dir, run)
    console.print(_sweep_line(done), markup=False, highlight=False)
    raise typer.Exit(1 if done["error"] and not done["counts"] else 0)


@sources_cli.command("pause")
def pause(source_id: SourceId, url: Url = "", key_file: KeyFile = None, data_dir: DataDir = None) -> None:
    """Stop sweeping a source until it is resumed."""
    with_remote(url, key_file, data_dir, lambda remote: remote.pause_source(source_id))
    console.print(f"{source_id} is paused.")


@sources_cli.command("resume")
def resume(source_id: SourceId, url: Url = "", key_file: KeyFile = None, data_dir: DataDir = None) -> None:
    """Sweep a source again, now and on schedule."""
    with_remote(url, key_file, data_dir, lambda remote: remote.resume_source(source_id))
    console.print(f"{source_id} is swept again.")


@sources_cli.command("options")
def set_options(
    source_id: SourceId,
    options: Annotated[
        Path,
        typer.Option(help="JSON file of credentials and the like, in the place of all before; - to type it."),
    ],
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Give a source other credentials, and sweep it. What it brought so far stays."""
    told = _read_options(options)
    settings = with_data_dir(data_dir)

    async def run(remote: Remote) -> Json:
        content = orjson.dumps({"url": (await remote.source(source_id))["url"], "options": told})
        return await remote.set_source_options(source_id, content, owner_proof=_proof(settings, content))

    with_remote(url, key_file, data_dir, run)
    console.print(f"{source_id} has its new options. Its next sweep begins at once:", highlight=False)
    console.print(f"  strongroom sources show {source_id}", highlight=False)


@sources_cli.command("remove")
def remove(
    source_id: SourceId,
    keep_files: Annotated[
        bool, typer.Option(help="Keep what it brought, as if it had been uploaded.")
    ] = False,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Forget a source, and delete what it brought from the collection."""
    with_remote(
        url, key_file, data_dir, lambda remote: remote.remove_source(source_id, keep_files=keep_files)
    )
    console.print(f"{source_id} is removed.")


def _read_options(path: Path | None) -> Json:
    if path is None:
        return {}
    text = typer.prompt("Options, as JSON", hide_input=True) if str(path) == "-" else path.read_text()
    try:
        told = orjson.loads(text)
    except orjson.JSONDecodeError:
        told = None
    if not isinstance(told, dict):
        refuse('Options are a JSON object, such as {"key": "...", "secret": "..."}.')
    return told


def _proof(settings: Settings, content: bytes) -> str | None:
    """On the server's own machine; elsewhere the server's settings decide what may be added."""
    folder = keys_dir(settings)
    return owner_proof(server_secret(folder), content) if (folder / "server.secret").exists() else None


def _schedule(source: Json) -> str:
    told = [
        f"every {source['every']}" if source["every"] else "",
        f"cron {source['cron']}" if source["cron"] else "",
    ]
    return ", ".join(filter(None, [*told, "watched" if source["watch"] else ""])) or "when asked"


def _sweep_line(sweep: Json) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in sweep["counts"].items() if count)
    if sweep["status"] != "ended":
        return str(sweep["status"]) + (" (dry run)" if sweep["dry_run"] else "")
    nothing = "nothing there" if not sweep["error"] else ""
    line = ("would be: " if sweep["dry_run"] else "") + (counts or nothing)
    return f"{line} ({sweep['seconds']} s){' ' if sweep['error'] else ''}{sweep['error'] or ''}".strip()
