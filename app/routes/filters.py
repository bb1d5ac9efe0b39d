"""Filters as clients send them, in OpenAI's form, checked and turned into those of the search."""

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from retrieval.filters import (
    OF_FILE,
    AllOf,
    AnyOf,
    AttributeValue,
    Comparator,
    Comparison,
    FileField,
    Filter,
    comparisons,
)

MAX_DEPTH = 10
"""How deep `and` and `or` may stand in each other."""
MAX_COMPARISONS = 100
MAX_VALUES = 1_000
"""In all lists of a filter together. Both bound the SQL that is made of it."""
MAX_KEY_CHARS = 64

LISTS = (Comparator.IN, Comparator.NIN)

HALF_PAIR = re.compile("[\ud800-\udfff]")

Place = tuple[str | int, ...]


class _Refused(Exception):
    """What is wrong with a filter, and where in it."""

    def __init__(self, what: str, at: Place) -> None:
        super().__init__(what)
        self.at = at


def read_filter(sent: Any) -> Filter:
    """Raises pydantic's error, with the place in the filter that is wrong."""
    try:
        wanted = _read(sent, (), depth=0)
        _check_size(wanted)
    except _Refused as refused:
        # As context, since braces in the message would be taken for its own.
        error = PydanticCustomError("filter", "{what}", {"what": str(refused)})
        raise ValidationError.from_exception_data(
            "filter", [InitErrorDetails(type=error, loc=refused.at, input=None)]
        ) from refused
    return wanted


Key = Annotated[str, Field(pattern=r"^([^$\x00].{0,63}|\$\$.{1,63}|\$(filename|path|created_at))$")]
Value = str | float | bool


class ComparisonForm(BaseModel):
    """What a filter is described as. It is read above, which tells better where one is wrong."""

    model_config = ConfigDict(extra="forbid", title="Comparison")

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"]
    key: Key
    value: Value | Annotated[list[Value], Field(min_length=1, max_length=MAX_VALUES)]
    """A list for `in` and `nin`, else a single value."""


class CompoundForm(BaseModel):
    model_config = ConfigDict(extra="forbid", title="Compound")

    type: Literal["and", "or"]
    filters: "list[ComparisonForm | CompoundForm]" = Field(min_length=1, max_length=MAX_COMPARISONS)


FilterBody = Annotated[
    Filter, PlainValidator(read_filter, json_schema_input_type=ComparisonForm | CompoundForm)
]


def _read(sent: Any, at: Place, *, depth: int) -> Filter:
    if not isinstance(sent, dict):
        raise _Refused("must be an object with a type", at)
    kind = _field(sent, "type", at)
    if kind not in ("and", "or", *Comparator):
        known = ", ".join(("and", "or", *Comparator))
        raise _Refused(f"must be one of {known}", (*at, "type"))
    if kind not in ("and", "or"):
        return _read_comparison(sent, Comparator(kind), at)
    _no_others(sent, ("type", "filters"), at)
    if depth == MAX_DEPTH:
        raise _Refused(f"filters nest deeper than {MAX_DEPTH} levels", at)
    inner = _field(sent, "filters", at)
    if not isinstance(inner, list) or not inner:
        raise _Refused("must be a list of one filter or more", (*at, "filters"))
    if len(inner) > MAX_COMPARISONS:
        raise _Refused(_too_many(len(inner)), (*at, "filters"))
    filters = tuple(
        _read(each, (*at, "filters", number), depth=depth + 1) for number, each in enumerate(inner)
    )
    return AllOf(filters) if kind == "and" else AnyOf(filters)


def _read_comparison(sent: dict[str, Any], comparator: Comparator, at: Place) -> Comparison:
    _no_others(sent, ("type", "key", "value"), at)
    key = _read_key(_field(sent, "key", at), (*at, "key"))
    value, place = _field(sent, "value", at), (*at, "value")
    read_value = _reader_of(key)
    if comparator not in LISTS:
        if isinstance(value, list):
            raise _Refused(f"'{comparator}' needs a single value", place)
        return Comparison(comparator, key, read_value(value, place))
    if not isinstance(value, list) or not value:
        raise _Refused(f"'{comparator}' needs a list of one value or more", place)
    if len(value) > MAX_VALUES:
        raise _Refused(f"has {len(value)} values, and {MAX_VALUES} are the most", place)
    values = tuple(read_value(each, (*place, number)) for number, each in enumerate(value))
    return Comparison(comparator, key, values)


def _read_key(sent: Any, at: Place) -> str | FileField:
    name = _text(sent, at)
    if not 1 <= len(name.removeprefix(OF_FILE)) <= MAX_KEY_CHARS:
        raise _Refused(f"must have 1 to {MAX_KEY_CHARS} characters", at)
    if not name.startswith(OF_FILE):
        return name
    if name.startswith(OF_FILE * 2):
        return name.removeprefix(OF_FILE)
    if name not in {field.value for field in FileField}:
        known = ", ".join(field.value for field in FileField)
        raise _Refused(
            f"must be one of {known}, or an attribute's name; one that begins with {OF_FILE} is written with "
            f"{OF_FILE * 2}",
            at,
        )
    return FileField(name)


def _reader_of(key: str | FileField) -> Callable[[Any, Place], AttributeValue]:
    match key:
        case FileField.CREATED_AT:
            return _read_time
        case FileField():
            return _text
        case _:
            return _read_value


def _read_value(sent: Any, at: Place) -> AttributeValue:
    if isinstance(sent, bool):
        return sent
    if isinstance(sent, str):
        return _text(sent, at)
    return _number(sent, at, "must be a text, a number, true or false")


def _read_time(sent: Any, at: Place) -> float:
    """Seconds since 1970, or ISO 8601: a day is its first second, and without a zone it is in UTC."""
    what = "must be seconds since 1970, or a date such as 2026-01-31 or 2026-01-31T09:00:00Z"
    if not isinstance(sent, str):
        return _number(sent, at, what)
    try:
        time = datetime.fromisoformat(sent)
    except ValueError as error:
        raise _Refused(what, at) from error
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _text(sent: Any, at: Place) -> str:
    if not isinstance(sent, str):
        raise _Refused("must be a text", at)
    if "\0" in sent or HALF_PAIR.search(sent):
        raise _Refused("must not contain NUL or half of a surrogate pair: no database holds them", at)
    return sent


def _number(sent: Any, at: Place, what: str) -> float:
    if isinstance(sent, bool) or not isinstance(sent, int | float):
        raise _Refused(what, at)
    try:
        number = float(sent)
    except OverflowError as error:
        raise _Refused("is too large a number", at) from error
    if not math.isfinite(number):
        raise _Refused("must be a finite number", at)
    return number


def _field(sent: dict[str, Any], name: str, at: Place) -> Any:
    if name not in sent:
        raise _Refused("is required", (*at, name))
    return sent[name]


def _no_others(sent: dict[str, Any], known: tuple[str, ...], at: Place) -> None:
    for name in sent:
        if name not in known:
            raise _Refused("unknown field", (*at, HALF_PAIR.sub("?", name)[:MAX_KEY_CHARS]))


def _check_size(wanted: Filter) -> None:
    all_of_it = comparisons(wanted)
    if len(all_of_it) > MAX_COMPARISONS:
        raise _Refused(_too_many(len(all_of_it)), ())
    values = sum(len(each.values) for each in all_of_it if each.comparator in LISTS)
    if values > MAX_VALUES:
        raise _Refused(f"has {values} values in its lists, and {MAX_VALUES} are the most", ())


def _too_many(count: int) -> str:
    return f"has {count} conditions, and {MAX_COMPARISONS} are the most"
