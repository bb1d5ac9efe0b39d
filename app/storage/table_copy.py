"""Copies all tables of one database into an empty other one, row by row: from PostgreSQL into a backup, and back."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Column, Table, func, insert, select, text, update
from sqlalchemy.orm import Session

from retrieval.database import Database
from retrieval.tables import Base

ROWS = 500


def copy_tables(source: Database, target: Database) -> None:
    """As one transaction of each: what one state of the source holds is there afterwards, or nothing.

    Both have the tables of this version.
    """
    with source.read() as reading, target.write() as writing:
        for table in Base.metadata.sorted_tables:
            _copy(reading, writing, table)
            _go_on_counting(reading, writing, table)


def _copy(reading: Session, writing: Session, table: Table) -> None:
    """A row that names another of its table is told so once all are there."""
    own = _column_of_parent(table)
    named: list[dict[str, Any]] = []
    for found in _partitions(reading, table):
        rows = found
        if own is not None:
            named += [
                {"row": row["id"], "parent": row[own.name]} for row in found if row[own.name] is not None
            ]
            rows = [row | {own.name: None} for row in found]
        writing.execute(insert(table), rows)
    if own is not None:
        for each in named:
            parent = update(table).where(table.c.id == each["row"]).values({own: each["parent"]})
            writing.execute(parent)


def _partitions(reading: Session, table: Table) -> Iterator[list[dict[str, Any]]]:
    found = reading.execute(select(table), execution_options={"yield_per": ROWS})
    for part in found.mappings().partitions():
        yield [dict(row) for row in part]


def _column_of_parent(table: Table) -> Column[Any] | None:
    return next(
        (key.parent for key in table.foreign_keys if key.column.table is table),
        None,
    )


def _go_on_counting(reading: Session, writing: Session, table: Table) -> None:
    """So that no id is given twice, not even that of a row which is gone."""
    if not table.dialect_options["sqlite"]["autoincrement"]:
        return
    last = _last_id(reading, table)
    if last == 0:
        return
    if writing.get_bind().dialect.name == "sqlite":
        writing.execute(text("delete from sqlite_sequence where name = :name"), {"name": table.name})
        writing.execute(
            text("insert into sqlite_sequence (name, seq) values (:name, :last)"),
            {"name": table.name, "last": last},
        )
    else:
        sequence = func.pg_get_serial_sequence(table.name, "id")
        writing.execute(select(func.setval(sequence, last)))


def _last_id(reading: Session, table: Table) -> int:
    if reading.get_bind().dialect.name == "sqlite":
        name = text("select seq from sqlite_sequence where name = :name")
        return reading.scalar(name, {"name": table.name}) or 0
    sequence = reading.scalar(select(func.pg_get_serial_sequence(table.name, "id")))
    return reading.scalar(text(f"select case when is_called then last_value else 0 end from {sequence}")) or 0  # noqa: S608 - a name from PostgreSQL
