"""What the commands of every module share: their options, the terminal, and the way to a running server."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import orjson
import typer
from rich.console import Console

from app.commands.remote import Remote
from app.settings import Settings, read_settings
from app.storage.opening import keys_dir

console = Console()

Result = TypeVar("Result")
Url = Annotated[str, typer.Option(help="Address of a running Strongroom.")]
KeyFile = Annotated[
    Path | None, typer.Option(help="File with an API key; the data folder's admin key by default.")
]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for scripts.")]
DataDir = Annotated[Path | None, typer.Option(help="Data folder: storage.data_dir.")]


def with_data_dir(data_dir: Path | None) -> Settings:
    return read_settings().with_options(storage={"data_dir": str(data_dir) if data_dir else None})


def with_remote(
    url: str,
    key_file: Path | None,
    data_dir: Path | None,
    use: Callable[[Remote], Coroutine[Any, Any, Result]],
) -> Result:
    settings = with_data_dir(data_dir)
    key = read_key(settings, key_file)

    async def run() -> Result:
        async with Remote(url or settings.public_url, key) as remote:
            return await use(remote)

    return asyncio.run(run())


def read_key(settings: Settings, key_file: Path | None) -> str:
    """The key in that file, or the data folder's admin key."""
    path = key_path(settings, key_file)
    if not path.exists():
        refuse(
            f"No key file at {path}. Name one with --key-file, or the server's data folder with --data-dir."
        )
    key = path.read_text(errors="replace").strip()
    if not key.isascii():
        refuse(f"{path} holds no key.")
    return key


def key_path(settings: Settings, key_file: Path | None) -> Path:
    return key_file or keys_dir(settings) / "admin.key"


def print_json(told: object) -> None:
    typer.echo(orjson.dumps(told).decode())


def refuse(message: str) -> NoReturn:
    """One line, and exit status 2."""
    typer.echo(f"strongroom: {message}", err=True)
    sys.exit(2)
