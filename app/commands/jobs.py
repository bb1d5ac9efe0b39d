"""`strongroom jobs …`: documents on their way into collections, and those that failed."""

from collections.abc import AsyncIterator
from typing import Annotated

import typer
from rich.table import Column, Table

from app.commands.remote import Json, Remote
from app.commands.terminal import AsJson, DataDir, KeyFile, Url, console, print_json, with_remote

jobs_cli = typer.Typer(
    help="List documents that are being ingested or have failed; cancel them, or try again.",
    no_args_is_help=True,
)
Collection = Annotated[str | None, typer.Option(help="Name or id of a collection; else all of them.")]
OneCollection = Annotated[str, typer.Option("--collection", help="Name or id of the collection.")]
FileIds = Annotated[list[str] | None, typer.Argument(help="Ids of files; else all that it applies to.")]


@jobs_cli.command("list")
def list_jobs(
    collection: Collection = None,
    as_json: AsJson = False,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Show what is on its way in and how far it is, and what failed and why. Exit status 1 when something failed."""

    async def run(remote: Remote) -> list[Json]:
        stores = await remote.collections()
        chosen = [each for each in stores if collection in (None, each["id"], each["name"])]
        if collection is not None and not chosen:
            await remote.find_collection(collection)  # Says that there is none.
        return [
            {**document, "collection": store["name"] or store["id"]}
            for store in chosen
            async for document in _of(remote, store["id"], "in_progress", "failed")
        ]

    found = with_remote(url, key_file, data_dir, run)
    if as_json:
        print_json(found)
    elif not found:
        console.print("Nothing is on its way in, and nothing failed.")
    else:
        table = Table(Column("file", no_wrap=True), "collection", "state", "how far, or why")
        for each in found:
            table.add_row(each["id"], each["collection"], each["status"], _how_far(each))
        console.print(table)
    raise typer.Exit(1 if any(each["status"] == "failed" for each in found) else 0)


@jobs_cli.command("cancel")
def cancel(
    file_ids: FileIds = None,
    *,
    collection: OneCollection,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """End the ingestion of files, or of all that is on its way into a collection."""

    async def run(remote: Remote) -> int:
        store = await remote.find_collection(collection)
        ids = file_ids or [each["id"] async for each in _of(remote, store, "in_progress")]
        for file_id in ids:
            await remote.cancel_document(store, file_id)
        return len(ids)

    console.print(f"{with_remote(url, key_file, data_dir, run)} cancelled.")


@jobs_cli.command("retry")
def retry(
    file_ids: FileIds = None,
    *,
    collection: OneCollection,
    url: Url = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Ingest files again that failed or were cancelled: those that are named, or all of a collection."""

    async def run(remote: Remote) -> int:
        store = await remote.find_collection(collection)
        again = [
            each
            async for each in _of(remote, store, "failed", "cancelled")
            if not file_ids or each["id"] in file_ids
        ]
        for document in again:
            await remote.attach_again(store, document)
        return len(again)

    console.print(f"{with_remote(url, key_file, data_dir, run)} will be tried again.")


async def _of(remote: Remote, collection_id: str, *states: str) -> AsyncIterator[Json]:
    for state in states:
        async for document in remote.documents_in(collection_id, state):
            yield document


def _how_far(document: Json) -> str:
    if document["status"] == "failed":
        return str(document["last_error"]["message"])
    progress = document["progress"]
    if progress is None:
        return ""
    total = f" of {progress['total']} {progress['unit']}" if progress["total"] else ""
    return f"{progress['step']}, {progress['done']}{total}"
