"""`strongroom collections …`: list and remove them; cut or embed one anew, and change one's mind about it."""

import asyncio
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from app.commands.remote import Json, Remote, RemoteRefused
from app.commands.terminal import AsJson, DataDir, KeyFile, Url, console, print_json, refuse, with_remote

collections_cli = typer.Typer(
    help="List and remove collections; rebuild them with other settings or another embedding model.",
    no_args_is_help=True,
)

LOOK_S = 0.5
ACTIVE, BUILDING, PREVIOUS = "active", "building", "previous"
Name = Annotated[str, typer.Argument(help="Name or id of the collection.")]


@collections_cli.command("rebuild")
def rebuild(
    name: Name,
    embedding_model: Annotated[
        str | None, typer.Option(help="Embed with this model of models.embedding; as now by default.")
    ] = None,
    chunk_tokens: Annotated[
        int | None, typer.Option(help="Cut all documents into chunks of so many tokens at most.")
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(help="Tokens that neighbouring chunks share: an eighth by default.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it answers, or only until it is begun.")] = True,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Cut and embed a collection anew. What is answers until all is done; then the new answers, at once."""
    if overlap is not None and chunk_tokens is None:
        refuse("--overlap goes with --chunk-tokens.")
    body: Json = {"embedding_model": embedding_model}
    if chunk_tokens is not None:
        sizes = {
            "max_chunk_size_tokens": chunk_tokens,
            "chunk_overlap_tokens": chunk_tokens // 8 if overlap is None else overlap,
        }
        body["chunking_strategy"] = {"type": "static", "static": sizes}

    async def run(remote: Remote) -> Json:
        collection_id = await remote.find_collection(name)
        begun = await remote.begin_generation(collection_id, body)
        return await _follow(remote, collection_id, begun) if wait else begun

    found = with_remote(url, key_file, data_dir, run)
    if found["state"] == ACTIVE:
        console.print(f"Generation {found['number']} answers. Undo: strongroom collections rollback {name}")
    elif wait:
        refuse(found["waits_for"] or f"Generation {found['number']} is {found['state']}.")
    else:
        console.print(f"Generation {found['number']} is begun: strongroom collections status {name}")


@collections_cli.command("list")
def list_collections(
    as_json: AsJson = False, url: Url = "", key_file: KeyFile = None, data_dir: DataDir = None
) -> None:
    """List collections, with their documents and the room that these take."""

    async def run(remote: Remote) -> list[Json]:
        return await remote.collections()

    found = with_remote(url, key_file, data_dir, run)
    if as_json:
        print_json(found)
        return
    table = Table(Column("id", no_wrap=True), "name", "documents", "on their way", "failed", "MB")
    for each in found:
        counts = each["file_counts"]
        told = (str(counts[status]) for status in ("completed", "in_progress", "failed"))
        table.add_row(each["id"], escape(each["name"] or ""), *told, f"{each['usage_bytes'] / 1e6:.1f}")
    console.print(table)


@collections_cli.command("remove")
def remove(name: Name, url: Url = "", key_file: KeyFile = None, data_dir: DataDir = None) -> None:
    """Delete a collection with its documents, at once. The files that they were made of stay."""

    async def run(remote: Remote) -> None:
        await remote.remove_collection(await remote.find_collection(name))

    with_remote(url, key_file, data_dir, run)
    console.print(f"{name} is removed.", markup=False)


@collections_cli.command("status")
def status(
    name: Name,
    as_json: AsJson = False,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Show which generation of a collection answers, and how far others are."""

    async def run(remote: Remote) -> list[Json]:
        return await remote.generations(await remote.find_collection(name))

    found = with_remote(url, key_file, data_dir, run)
    if as_json:
        print_json(found)
        return
    table = Table("generation", "state", "embedding model", "chunks", "documents", "failed")
    for each in found:
        counts = each["file_counts"]
        done = f"{counts['completed']} of {counts['total']}"
        table.add_row(
            str(each["number"]),
            each["state"],
            each["embedding_model"],
            _cut(each["chunking_strategy"]),
            done,
            str(counts["failed"]),
        )
    console.print(table)
    for each in found:
        for failure in each["failures"]:
            console.print(
                f"{each['number']}: {failure['file_id']}: {failure['message']}", style="red", markup=False
            )
        if each["waits_for"]:
            console.print(each["waits_for"], style="yellow", markup=False)


@collections_cli.command("switch")
def switch(
    name: Name,
    force: Annotated[bool, typer.Option(help="Even if documents are missing in it.")] = False,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Let the generation that is being built answer now. A complete one does so by itself."""
    _switch_to(BUILDING, name, force, url, key_file, data_dir)


@collections_cli.command("rollback")
def rollback(
    name: Name,
    force: Annotated[bool, typer.Option(help="Even if documents are missing in it.")] = False,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Let the previous generation answer again, as it did."""
    _switch_to(PREVIOUS, name, force, url, key_file, data_dir)


@collections_cli.command("discard")
def discard(name: Name, url: Url = "", key_file: KeyFile = None, data_dir: DataDir = None) -> None:
    """Give up the generation that does not answer, in building or previous."""

    async def run(remote: Remote) -> int:
        collection_id = await remote.find_collection(name)
        number = _number(await remote.generations(collection_id), name, BUILDING, PREVIOUS)
        await remote.discard_generation(collection_id, number)
        return number

    console.print(f"Generation {with_remote(url, key_file, data_dir, run)} is discarded.")


def _switch_to(state: str, name: str, force: bool, url: str, key_file: KeyFile, data_dir: DataDir) -> None:
    async def run(remote: Remote) -> Json:
        collection_id = await remote.find_collection(name)
        number = _number(await remote.generations(collection_id), name, state)
        return await remote.switch_generation(collection_id, number, force=force)

    switched = with_remote(url, key_file, data_dir, run)
    console.print(f"Generation {switched['number']} answers.")


def _number(generations: list[Json], name: str, *states: str) -> int:
    for each in generations:
        if each["state"] in states:
            return int(each["number"])
    raise RemoteRefused(f"Collection '{name}' has no generation that is {' or '.join(states)}.")


async def _follow(remote: Remote, collection_id: str, begun: Json) -> Json:
    """Shows how far a generation is, until it answers or is held up."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("Rebuilding", total=begun["file_counts"]["total"])
        while True:
            found = await remote.generations(collection_id)
            now = next((each for each in found if each["number"] == begun["number"]), None)
            if now is None:
                return {**begun, "state": "discarded"}
            counts = now["file_counts"]
            progress.update(bar, total=counts["total"], completed=counts["total"] - counts["in_progress"])
            is_held_up = counts["in_progress"] == 0 and now["waits_for"] is not None
            if now["state"] != BUILDING or is_held_up:
                return now
            await asyncio.sleep(LOOK_S)


def _cut(strategy: Json | None) -> str:
    if strategy is None:
        return "as each was asked for"
    if strategy["type"] != "static":
        return "auto"
    sizes = strategy["static"]
    return f"{sizes['max_chunk_size_tokens']} tokens, overlap {sizes['chunk_overlap_tokens']}"
