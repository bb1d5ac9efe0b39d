"""Holds transactions on PostgreSQL to the rows of one tenant: a second wall, behind the conditions of the queries.

Policies compare each row's tenant with what its transaction says that it works for. Who says nothing sees nothing.
They bind the tables' owner too, and superusers, whose transactions become those of `strongroom_rows`.
"""

from collections.abc import Callable
from contextvars import ContextVar

from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine.interfaces import ReflectedForeignKeyConstraint

EVERY_TENANT = "*"
NOBODY = ""
ROLE = "strongroom_rows"
_SETTING = "strongroom.tenant"
_ENTER = f"select set_config('{_SETTING}', %s, true)"
_ENTER_AS_ROLE = f"{_ENTER}, set_config('role', '{ROLE}', true)"
_PASSES_BY = "select rolsuper or rolbypassrls from pg_catalog.pg_roles where rolname = session_user"
_IS_PROTECTED = "select relforcerowsecurity from pg_catalog.pg_class where oid = to_regclass('tenants')"

_RIGHTS = {"tables": "select, insert, update, delete", "sequences": "usage, select, update"}

TenantOf = Callable[[], str]
_caller: ContextVar[str] = ContextVar("caller", default=NOBODY)


def act_for(tenant_id: str) -> None:
    """For the rest of this task, and for tasks and threads that it starts."""
    _caller.set(tenant_id)


def the_caller() -> str:
    return _caller.get()


def everybody() -> str:
    """Of work that belongs to no tenant: the worker's, the leader's, the owner's, the look-up of keys."""
    return EVERY_TENANT


def passes_by(connection: Connection) -> bool:
    """Whether no policy binds the user that this connection was opened by."""
    return bool(connection.exec_driver_sql(_PASSES_BY).scalar())


def is_protected(connection: Connection) -> bool:
    """Whether the tables are there, and are of this version."""
    return bool(connection.exec_driver_sql(_IS_PROTECTED).scalar())


def enter(connection: Connection, tenant_id: str, *, as_role: bool) -> None:
    """Until the end of its transaction, so that a connection that comes back to a pool says nothing."""
    connection.exec_driver_sql(_ENTER_AS_ROLE if as_role else _ENTER, (tenant_id,))


def make_role(connection: Connection) -> None:
    """For migrations, as far as the user may: one who may not is bound by policies as the tables' owner."""
    if not passes_by(connection):
        return
    known = text("select true from pg_catalog.pg_roles where rolname = :role")
    if connection.scalar(known, {"role": ROLE}) is None:
        connection.execute(text(f"create role {ROLE} nologin nosuperuser nobypassrls"))
    schema = connection.scalar(text("select quote_ident(current_schema())"))
    connection.execute(text(f"grant usage on schema {schema} to {ROLE}"))
    for kind, rights in _RIGHTS.items():
        connection.execute(text(f"grant {rights} on all {kind} in schema {schema} to {ROLE}"))
        # Those of later migrations.
        connection.execute(
            text(f"alter default privileges in schema {schema} grant {rights} on {kind} to {ROLE}")
        )


def drop_role(connection: Connection) -> None:
    """Other databases of the server may go on with it: it only loses its rights in this one."""
    if connection.scalar(text("select true from pg_catalog.pg_roles where rolname = :role"), {"role": ROLE}):
        connection.execute(text(f"drop owned by {ROLE}"))


def protect(connection: Connection, table: str) -> None:
    """For migrations: shows a table's rows to their tenant alone, or to who sees all of the rows that they name."""
    found = inspect(connection)
    columns = {column["name"] for column in found.get_columns(table)}
    said = f"(select current_setting('{_SETTING}', true))"
    if table == "tenants":
        is_own = f"id = {said}"
    elif "tenant_id" in columns:
        is_own = f"tenant_id = {said}"
    elif named := found.get_foreign_keys(table):
        is_own = " and ".join(
            f"exists (select from {each['referred_table']} as named where {_same(table, each)})"
            for each in named
        )
    else:
        return
    connection.execute(text(f"alter table {table} enable row level security"))
    connection.execute(text(f"alter table {table} force row level security"))
    connection.execute(
        text(f"create policy of_tenant on {table} using ({said} = '{EVERY_TENANT}' or ({is_own}))")
    )


def expose(connection: Connection, table: str) -> None:
    """Undoes `protect`."""
    connection.execute(text(f"drop policy if exists of_tenant on {table}"))
    connection.execute(text(f"alter table {table} no force row level security"))
    connection.execute(text(f"alter table {table} disable row level security"))


def _same(table: str, key: ReflectedForeignKeyConstraint) -> str:
    pairs = zip(key["referred_columns"], key["constrained_columns"], strict=True)
    return " and ".join(f"named.{theirs} = {table}.{ours}" for theirs, ours in pairs)
