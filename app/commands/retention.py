"""`strongroom retention …`: zero data retention of keys and tenants, whether it can be promised, and its receipts."""

from typing import Annotated, Literal

import orjson
import typer
from sqlalchemy import select

from app.access.retention import NONE, engine_obstacles, machine_obstacles, read_jws, set_retention
from app.commands.terminal import DataDir, console, refuse, with_data_dir
from app.running.core_dumps import forbid_core_dumps
from app.storage.opening import open_storage
from retrieval.tables import Key, Tenant

retention_cli = typer.Typer(
    help="Zero data retention: nothing that is asked or answered is stored.", no_args_is_help=True
)


@retention_cli.command("set")
def set_command(
    retention: Annotated[Literal["none", "usual"], typer.Argument(help="none, or as usual.")],
    key: Annotated[str | None, typer.Option(help="Of the key with this id.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Of all keys of this tenant.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Say what is kept of a key's, or a tenant's, requests. It holds within a second, in every process."""
    if (key is None) == (tenant is None):
        refuse("Give --key or --tenant.")
    with open_storage(with_data_dir(data_dir)) as storage, storage.database.write() as session:
        row: Key | Tenant | None
        row = (
            session.get(Key, key)
            if key is not None
            else session.scalar(select(Tenant).where(Tenant.name == tenant))
        )
        if row is None:
            refuse(f"There is no key or tenant '{key or tenant}'.")
        set_retention(session, row, keeps_nothing=retention == NONE)
    console.print(f"{key or tenant}: {retention}.")


@retention_cli.command("check")
def check_command(data_dir: DataDir = None) -> None:
    """Tell whether zero data retention can be promised on this machine, and what stands in its way."""
    settings = with_data_dir(data_dir)
    forbid_core_dumps()
    found = machine_obstacles()
    if settings.engine.url:
        found += engine_obstacles(settings)
    if not settings.encryption.enabled:
        found.append("encryption.enabled is false.")
    for obstacle in found:
        console.print(obstacle, style="red")
    console.print("It cannot be promised." if found else "It can be promised.")
    raise typer.Exit(1 if found else 0)


@retention_cli.command("verify")
def verify_command(
    receipt: Annotated[str, typer.Argument(help="The reply's header x-strongroom-receipt.")],
    data_dir: DataDir = None,
) -> None:
    """Check a receipt's signature, and print what it says."""
    with open_storage(with_data_dir(data_dir)) as storage:
        told = read_jws(storage.audit_key, receipt)
    if told is None:
        refuse("The receipt was not signed here, or was changed.")
    typer.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
