"""Filters on documents, in OpenAI's form, and the SQL that admits what they match. Keys and values are never SQL."""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    SQLColumnExpression,
    and_,
    cast,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session, aliased

from retrieval.tables import Document, File

AttributeValue = str | float | bool
OF_FILE = "$"


class Comparator(StrEnum):
    EQ = "eq"
    NE = "ne"
    GT = "gt"
    GTE = "gte"
    LT = "lt"
    LTE = "lte"
    IN = "in"
    NIN = "nin"


class FileField(Enum):
    """What every document has of its file, as clients write it. No strings: an attribute may have any name."""

    FILENAME = "$filename"
    CREATED_AT = "$created_at"
    """When it was uploaded, in whole seconds since 1970, as the API shows it."""
    PATH = "$path"
    """Where it lies in its source, archive or mail; an upload has none."""


@dataclass(frozen=True)
class Comparison:
    """Compares an attribute, or a field of the file. A document that lacks it matches `ne` and `nin` only.

    A value of another kind (text, number, switch) is another value, and neither greater nor less. Texts are in the
    order of their code points.
    """

    comparator: Comparator
    key: str | FileField
    value: AttributeValue | tuple[AttributeValue, ...]

    @property
    def key_as_written(self) -> str:
        """By clients: an attribute whose name begins as a FileField's has that sign twice."""
        if isinstance(self.key, FileField):
            return self.key.value
        return f"{OF_FILE}{self.key}" if self.key.startswith(OF_FILE) else self.key

    @property
    def values(self) -> tuple[AttributeValue, ...]:
        return self.value if isinstance(self.value, tuple) else (self.value,)


@dataclass(frozen=True)
class AllOf:
    filters: "tuple[Filter, ...]"


@dataclass(frozen=True)
class AnyOf:
    filters: "tuple[Filter, ...]"


Filter = Comparison | AllOf | AnyOf

Condition = ColumnElement[bool]
_ORDERS: dict[Comparator, Callable[[Any, Any], Any]] = {
    Comparator.GT: operator.gt,
    Comparator.GTE: operator.ge,
    Comparator.LT: operator.lt,
    Comparator.LTE: operator.le,
}


class _Kind(Enum):
    TEXT = "text"
    NUMBER = "number"
    SWITCH = "switch"


_SQLITE_TYPES = {
    _Kind.TEXT: ("text",),
    _Kind.NUMBER: ("integer", "real"),
    _Kind.SWITCH: ("true", "false"),
}
_POSTGRESQL_TYPES = {_Kind.TEXT: "string", _Kind.NUMBER: "number", _Kind.SWITCH: "boolean"}


def comparisons(wanted: Filter) -> list[Comparison]:
    """All that it is made of, in the order in which they were written."""
    if isinstance(wanted, Comparison):
        return [wanted]
    return [comparison for each in wanted.filters for comparison in comparisons(each)]


def admitted(wanted: Filter, session: Session) -> Condition:
    """For the where-clause of a query on Document, in the SQL of the session's database."""
    return _condition(wanted, is_sqlite=session.get_bind().dialect.name == "sqlite")


def _condition(wanted: Filter, *, is_sqlite: bool) -> Condition:
    match wanted:
        case AllOf(filters):
            return and_(true(), *(_condition(each, is_sqlite=is_sqlite) for each in filters))
        case AnyOf(filters):
            return or_(false(), *(_condition(each, is_sqlite=is_sqlite) for each in filters))
        case Comparison():
            # None of these is ever NULL: what is missing must match `ne` and `nin`.
            found = _matching(wanted, is_sqlite=is_sqlite)
            return not_(found) if wanted.comparator in (Comparator.NE, Comparator.NIN) else found


def _matching(wanted: Comparison, *, is_sqlite: bool) -> Condition:
    """What it compares is there and compares so; for `ne` and `nin`, is there and equal to one of the values."""
    if isinstance(wanted.key, FileField):
        return _of_file(wanted.key, wanted, is_sqlite=is_sqlite)
    if is_sqlite:
        return _attribute_in_sqlite(wanted.key, wanted)
    return _attribute_in_postgresql(wanted.key, wanted)


def _attribute_in_sqlite(key: str, wanted: Comparison) -> Condition:
    """By json_each, which takes a key as it is. A path would have to be put together and quoted."""
    attribute = func.json_each(Document.attributes).table_valued("key", "value", "type")
    order = _ORDERS.get(wanted.comparator)
    conditions: list[Condition] = []
    for kind in _Kind:
        # SQLite's switches are the numbers 0 and 1.
        values = [int(each) if isinstance(each, bool) else each for each in _of_kind(kind, wanted.values)]
        if values:
            compares = order(attribute.c.value, values[0]) if order else attribute.c.value.in_(values)
            conditions.append(and_(attribute.c.type.in_(_SQLITE_TYPES[kind]), compares))
    there = select(attribute.c.key).where(attribute.c.key == key, or_(false(), *conditions))
    return there.correlate(Document).exists()


def _attribute_in_postgresql(key: str, wanted: Comparison) -> Condition:
    attributes = cast(Document.attributes, JSONB)
    found: ColumnElement[Any] = func.jsonb_extract_path(attributes, key, type_=JSONB)
    order = _ORDERS.get(wanted.comparator)
    if order is None:
        return func.coalesce(found.in_([literal(value, JSONB) for value in wanted.values]), false())
    value = wanted.values[0]
    kind = _kind_of(value)
    if kind is _Kind.TEXT:
        # As JSON, texts would be in the order of the database's language.
        compares = order(func.jsonb_extract_path_text(attributes, key).collate("C"), value)
    else:
        compares = order(found, literal(value, JSONB))
    return func.coalesce(and_(func.jsonb_typeof(found) == _POSTGRESQL_TYPES[kind], compares), false())


def _of_file(field: FileField, wanted: Comparison, *, is_sqlite: bool) -> Condition:
    file = aliased(File)
    if field is FileField.CREATED_AT:
        compares = _whole_seconds(file.created_at, wanted)
    else:
        column: Any = file.filename if field is FileField.FILENAME else file.path
        texts = _of_kind(_Kind.TEXT, wanted.values)
        order = _ORDERS.get(wanted.comparator)
        if order is None or not texts:
            compares = column.in_(texts)
        else:
            compares = order(column if is_sqlite else column.collate("C"), texts[0])
    return select(file.id).where(file.id == Document.file_id, compares).correlate(Document).exists()


def _whole_seconds(column: SQLColumnExpression[float], wanted: Comparison) -> Condition:
    """Compares the second that a time lies in, by comparing the time itself."""
    numbers = [float(each) for each in _of_kind(_Kind.NUMBER, wanted.values)]
    if not numbers:
        return false()
    next_second, this_or_next = float(math.floor(numbers[0])) + 1, float(math.ceil(numbers[0]))
    match wanted.comparator:
        case Comparator.GT:
            return column >= next_second
        case Comparator.GTE:
            return column >= this_or_next
        case Comparator.LT:
            return column < this_or_next
        case Comparator.LTE:
            return column < next_second
        case _:
            seconds = [number for number in numbers if number.is_integer()]
            return or_(false(), *(and_(column >= second, column < second + 1) for second in seconds))


def _kind_of(value: AttributeValue) -> _Kind:
    # True == 1 in Python, but a switch is not a number to the person who set it.
    if isinstance(value, bool):
        return _Kind.SWITCH
    return _Kind.TEXT if isinstance(value, str) else _Kind.NUMBER


def _of_kind(kind: _Kind, values: Sequence[AttributeValue]) -> list[Any]:
    return [value for value in values if _kind_of(value) is kind]
