"""`strongroom audit …`: verifies the audit log, takes checkpoints of it, and writes it out."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import orjson
import typer

from app.access.audit import head_of, read_checkpoints
from app.access.retention import jwk_of
from app.commands.terminal import DataDir, console, refuse, with_data_dir
from app.storage.opening import checkpoint_file, open_storage
from retrieval.audit import Checkpoint, prune, restart
from retrieval.audit_check import entries_of, verify_audit
from retrieval.database import Database

audit_cli = typer.Typer(
    help="What was done, by which key: verify it, and copy it elsewhere.", no_args_is_help=True
)
DAY_S = 86_400


@audit_cli.command("verify")
def verify_command(
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="File of checkpoints that was kept elsewhere: shows a tail that was cut off."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Prove that no entry was changed, inserted, swapped or removed, or name the first that was."""
    settings = with_data_dir(data_dir)
    own = checkpoint_file(settings)
    paths = [*(checkpoint or ()), *([own] if own.exists() else ())]
    known = [each for path in paths for each in _read(path)]
    with open_storage(settings) as storage, storage.database.read() as session:
        verdict = verify_audit(session, storage.audit_key, known)
    if verdict.problem is not None:
        console.print(
            f"{verdict.problem.reason} First bad entry: {verdict.problem.seq}.", style="red", soft_wrap=True
        )
        raise typer.Exit(1)
    console.print(
        f"{verdict.entries} entries and {len(known)} checkpoints: all as they were written.", soft_wrap=True
    )


@audit_cli.command("checkpoint")
def checkpoint_command(data_dir: DataDir = None) -> None:
    """Print where the log stands, signed: one line, to be kept on another machine."""
    with open_storage(with_data_dir(data_dir)) as storage:
        head = head_of(storage.database)
    if head is None:
        refuse("The audit log is empty.")
    typer.echo(head.line())


@audit_cli.command("export")
def export_command(
    since: Annotated[
        datetime | None, typer.Option(help="Only what was done from this time on, in UTC.")
    ] = None,
    about: Annotated[
        str | None, typer.Option(help="Only searches and answers that this text was asked of.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Print the entries of all tenants, oldest first: one JSON object a line."""
    from_s = since.replace(tzinfo=UTC).timestamp() if since is not None else None
    with open_storage(with_data_dir(data_dir)) as storage:
        wanted = storage.audit_key.keyed_hash(about) if about is not None else ""
        for line in _lines(storage.database, from_s):
            if wanted in line:
                typer.echo(line)


@audit_cli.command("key")
def key_command(data_dir: DataDir = None) -> None:
    """Print the public key that checkpoints and receipts are signed with: a JWK."""
    with open_storage(with_data_dir(data_dir)) as storage:
        typer.echo(orjson.dumps(jwk_of(storage.audit_key)).decode())


@audit_cli.command("prune")
def prune_command(
    days: Annotated[int, typer.Option(min=1, help="How many days of it are kept.")],
    data_dir: DataDir = None,
) -> None:
    """Remove older entries, under a signed cut. `audit.keep_days` does so by itself."""
    with open_storage(with_data_dir(data_dir)) as storage, storage.database.write() as session:
        count = prune(session, before=time.time() - days * DAY_S)
    console.print(f"{count} entries removed.")


@audit_cli.command("restart")
def restart_command(
    export: Annotated[Path, typer.Argument(help="File that the old entries are written to.")],
    data_dir: DataDir = None,
) -> None:
    """Give up a log that does not verify, or whose key is lost: a new one begins behind it, and says so."""
    if export.exists():
        refuse(f"{export} exists: name another file.")
    with open_storage(with_data_dir(data_dir)) as storage:
        with storage.database.read() as session:
            problem = verify_audit(session, storage.audit_key).problem
        if problem is None:
            refuse("The audit log verifies: nothing is to be given up.")
        export.write_text("".join(f"{line}\n" for line in _lines(storage.database, None)))
        with storage.database.write() as session:
            restart(session, reason=problem.reason)
    console.print(
        f"{export} has the old entries. The log goes on from here: {problem.reason}", soft_wrap=True
    )


def _lines(database: Database, since: float | None) -> list[str]:
    with database.read() as session:
        return [orjson.dumps(entry, default=repr).decode() for entry in entries_of(session, since=since)]


def _read(path: Path) -> list[Checkpoint]:
    try:
        return read_checkpoints(path)
    except (OSError, ValueError) as error:
        refuse(f"{path}: no file of checkpoints ({error}).")
