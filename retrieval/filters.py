"""Filters on document attributes, in OpenAI's form: comparisons, joined by `and` and `or` to any depth."""

from dataclasses import dataclass
from enum import StrEnum

AttributeValue = str | float | bool


class Comparator(StrEnum):
    EQ = "eq"
    NE = "ne"
    GT = "gt"
    GTE = "gte"
    LT = "lt"
    LTE = "lte"
    IN = "in"
    NIN = "nin"


@dataclass(frozen=True)
class Comparison:
    """Compares the attribute `key`. A document that lacks it matches `ne` and `nin` only."""

    comparator: Comparator
    key: str
    value: AttributeValue | tuple[AttributeValue, ...]


@dataclass(frozen=True)
class AllOf:
    filters: "tuple[Filter, ...]"


@dataclass(frozen=True)
class AnyOf:
    filters: "tuple[Filter, ...]"


Filter = Comparison | AllOf | AnyOf


def matches(wanted: Filter, attributes: dict[str, AttributeValue]) -> bool:
    match wanted:
        case AllOf(filters):
            return all(matches(each, attributes) for each in filters)
        case AnyOf(filters):
            return any(matches(each, attributes) for each in filters)
        case Comparison():
            return _compare(wanted, attributes.get(wanted.key))


def _compare(wanted: Comparison, found: AttributeValue | None) -> bool:
    values = wanted.value if isinstance(wanted.value, tuple) else (wanted.value,)
    equal = found is not None and any(_same_kind(found, value) and found == value for value in values)
    match wanted.comparator:
        case Comparator.EQ | Comparator.IN:
            return equal
        case Comparator.NE | Comparator.NIN:
            return not equal
        case _:
            return found is not None and _same_kind(found, values[0]) and _ordered(wanted, found, values[0])


def _ordered(wanted: Comparison, found: AttributeValue, value: AttributeValue) -> bool:
    # Both are strings or both are numbers here; a tuple's first element decides, which mypy cannot see.
    difference = (found > value) - (found < value)  # type: ignore[operator]
    match wanted.comparator:
        case Comparator.GT:
            return difference > 0
        case Comparator.GTE:
            return difference >= 0
        case Comparator.LT:
            return difference < 0
        case _:
            return difference <= 0


def _same_kind(left: AttributeValue, right: AttributeValue) -> bool:
    # True == 1 in Python, but a switch is not a number to the person who set it.
    if isinstance(left, bool) or isinstance(right, bool):
        return isinstance(left, bool) and isinstance(right, bool)
    return isinstance(left, str) == isinstance(right, str)
