"""`strongroom keys …`: make, list, rotate and end API keys, in the data folder or, as an admin, elsewhere."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.access.audit import audited
from app.access.auth import DEFAULT_TENANT, KeyRing, NewKey, find_key, server_secret, tenant_named
from app.access.quotas import Quotas
from app.commands.remote import Json, Remote
from app.commands.terminal import (
    AsJson,
    DataDir,
    KeyFile,
    Result,
    console,
    print_json,
    refuse,
    with_data_dir,
    with_remote,
)
from app.storage.master_key import rotate_master
from app.storage.opening import keys_dir, open_storage
from retrieval import audit
from retrieval.tables import AuditEvent, Key, Role, Tenant

keys_cli = typer.Typer(help="Make, list, rotate and end API keys.", no_args_is_help=True)

KeyId = Annotated[str, typer.Argument(help="As `strongroom keys list` shows it.")]
Elsewhere = Annotated[
    str, typer.Option("--url", help="Address of a running Strongroom; else the data folder's keys.")
]
HOUR_S = 3600
TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]


@keys_cli.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.READER,
    tenant: Annotated[
        str, typer.Option(help="Whose documents it sees; made if it is missing.")
    ] = DEFAULT_TENANT,
    group: Annotated[
        list[str] | None, typer.Option(help="A group that it is in; may be given several times.")
    ] = None,
    expires: Annotated[
        datetime | None, typer.Option(formats=TIMES, help="When it ends, in UTC; never by default.")
    ] = None,
    url: Elsewhere = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it: it is shown this once."""
    ends_at = _seconds(expires) if expires is not None else None
    if url:
        if tenant != DEFAULT_TENANT:
            refuse("--tenant is for the server's own machine: elsewhere the admin's key decides.")
        body = {"name": name, "role": role.value, "groups": group or [], "expires_at": ends_at}
        made = with_remote(url, key_file, data_dir, lambda remote: remote.add_key(body))
        typer.echo(made["value"])
        return
    new = NewKey(name, role, group or (), ends_at)

    def make(session: Session, ring: KeyRing, now: float) -> str:
        return ring.add_to(session, tenant_named(session, tenant, now=now).id, new, now=now)[1]

    typer.echo(_change(data_dir, make))


@keys_cli.command("list")
def list_keys(
    as_json: AsJson = False, url: Elsewhere = "", key_file: KeyFile = None, data_dir: DataDir = None
) -> None:
    """List keys, without their text, which is stored nowhere."""

    def rows(session: Session, _: KeyRing, __: float) -> list[Json]:
        found = session.execute(select(Key, Tenant.name).join(Tenant, Tenant.id == Key.tenant_id))
        return [
            {
                "id": key.id,
                "name": key.name,
                "role": key.role.value,
                "groups": key.groups,
                "tenant": tenant,
                "expires_at": key.expires_at,
                "revoked_at": key.revoked_at,
                "last_used_at": key.used_at,
            }
            for key, tenant in found
        ]

    async def ask(remote: Remote) -> list[Json]:
        return await remote.keys()

    keys = with_remote(url, key_file, data_dir, ask) if url else _change(data_dir, rows)
    if as_json:
        print_json(keys)
        return
    # An id that is cut at a narrow terminal's edge could not be revoked.
    table = Table(
        Column("id", no_wrap=True, min_width=28),
        Column("role", no_wrap=True, min_width=6),
        *(Column(name, overflow="fold") for name in ("tenant", "name", "groups", "state", "last use")),
    )
    for key in keys:
        # A server elsewhere lists one tenant's, without those that were revoked.
        state = "revoked" if key.get("revoked_at") else _state(key["expires_at"])
        groups = ", ".join(key["groups"])
        table.add_row(
            key["id"],
            key["role"],
            key.get("tenant", ""),
            escape(key["name"]),
            escape(groups),
            state,
            _shown(key["last_used_at"]),
        )
    console.print(table)


@keys_cli.command("rotate")
def rotate_key(
    key_id: KeyId,
    grace_hours: Annotated[float, typer.Option(min=0, help="How long the old text is taken beside.")] = 0.0,
    url: Elsewhere = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Give a key another text and print it: it is shown this once."""
    grace_s = round(grace_hours * HOUR_S)
    if url:
        rotated = with_remote(
            url, key_file, data_dir, lambda remote: remote.rotate_key(key_id, grace_s=grace_s)
        )
        typer.echo(rotated["value"])
        return

    def rotate(session: Session, ring: KeyRing, now: float) -> str:
        return ring.rotate(session, find_key(session, key_id), now=now, grace_s=grace_s)

    typer.echo(_change(data_dir, rotate))


@keys_cli.command("expire")
def expire_key(
    key_id: KeyId,
    at: Annotated[datetime | None, typer.Option(formats=TIMES, help="In UTC; now by default.")] = None,
    url: Elsewhere = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Set when a key ends."""
    ends_at = int(time.time()) if at is None else _seconds(at)
    if url:
        change = {"expires_at": ends_at}
        with_remote(url, key_file, data_dir, lambda remote: remote.change_key(key_id, change))
    else:

        def expire(session: Session, _: KeyRing, __: float) -> None:
            key = find_key(session, key_id)
            key.expires_at = ends_at
            audit.record(session, AuditEvent.KEY_CHANGED, key_id, scope=None, tenant_id=key.tenant_id)

        _change(data_dir, expire)
    console.print(f"{key_id}: {_state(ends_at)}.")


@keys_cli.command("revoke")
def revoke_key(
    key_id: KeyId, url: Elsewhere = "", key_file: KeyFile = None, data_dir: DataDir = None
) -> None:
    """Make a key worthless for ever, within a second, in every process."""

    def revoke(session: Session, ring: KeyRing, now: float) -> None:
        ring.revoke(session, key_id, now=now)

    if url:
        with_remote(url, key_file, data_dir, lambda remote: remote.revoke_key(key_id))
    else:
        _change(data_dir, revoke)
    console.print(f"{key_id} is revoked.")


@keys_cli.command("quotas")
def set_quotas(
    key_id: Annotated[str | None, typer.Argument(help="Of a key; else give --tenant.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Of all keys of this tenant together.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    input_tokens_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    output_tokens_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    streams: Annotated[int | None, typer.Option(min=1, help="At the same time.")] = None,
    stored_bytes: Annotated[int | None, typer.Option(min=1, help="Of all files that are kept.")] = None,
    url: Elsewhere = "",
    key_file: KeyFile = None,
    data_dir: DataDir = None,
) -> None:
    """Set how much may be asked for, in the place of what was set: what is left out is without bound."""
    if (key_id is None) == (tenant is None):
        refuse("Give the id of a key, or --tenant.")
    quotas = Quotas(
        requests_per_minute=requests_per_minute,
        input_tokens_per_minute=input_tokens_per_minute,
        output_tokens_per_minute=output_tokens_per_minute,
        streams=streams,
        stored_bytes=stored_bytes,
    ).model_dump(exclude_none=True)

    def set_them(session: Session, _: KeyRing, __: float) -> None:
        if key_id is not None:
            key = find_key(session, key_id)
            key.quotas = quotas or None
            audit.record(session, AuditEvent.KEY_CHANGED, key_id, scope=None, tenant_id=key.tenant_id)
            return
        row = session.scalar(select(Tenant).where(Tenant.name == tenant))
        if row is None:
            refuse(f"No tenant '{tenant}'.")
        row.quotas = quotas or None
        audit.record(session, AuditEvent.QUOTAS_CHANGED, scope=None, tenant_id=row.id)

    if url:
        if key_id is None:
            refuse("--tenant is for the server's own machine.")
        with_remote(url, key_file, data_dir, lambda remote: remote.change_key(key_id, {"quotas": quotas}))
    else:
        _change(data_dir, set_them)
    console.print(f"{key_id or tenant}: {quotas or 'without bounds'}.")


@keys_cli.command("rotate-master")
def rotate_master_key(
    new: Annotated[
        Path | None,
        typer.Option(help="File with the new master key, where the key comes from a setting or a command."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Put all data under another master key, without rewriting it. Processes that run go on."""
    settings = with_data_dir(data_dir)
    with (
        open_storage(settings) as storage,
        audited(storage.database, AuditEvent.MASTER_KEY_CHANGED),
    ):
        done = rotate_master(settings.encryption, keys_dir(settings), new_key_file=new)
    console.print(done, soft_wrap=True)


def _change(data_dir: Path | None, change: Callable[[Session, KeyRing, float], Result]) -> Result:
    settings = with_data_dir(data_dir)
    with open_storage(settings) as storage:
        storage.database.check()
        ring = KeyRing(storage.database, server_secret(keys_dir(settings)))
        with storage.database.write() as session:
            return change(session, ring, time.time())


def _seconds(at: datetime) -> int:
    return round(at.replace(tzinfo=UTC).timestamp())


def _state(expires_at: float | None) -> str:
    if expires_at is None:
        return "active"
    return f"{'expired' if expires_at <= time.time() else 'active until'} {_shown(expires_at)}"


def _shown(at: float | None) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M") if at is not None else ""
