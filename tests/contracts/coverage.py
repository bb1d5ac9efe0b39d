"""How much of OpenAI's interface is honoured: `python -m tests.contracts.coverage [--missing] [AREA…]`.

Three kinds of thing are counted in OpenAI's published document, each of them once in an area, and what stands in a
schema that has a name once for all places where that schema is used:

- operations: a method and a path. Honoured if our own OpenAPI document has it.
- of requests: query parameters, and the properties of bodies, those inside of others too. Where a value may be of
  several kinds (a text or a list; this tool or that), each kind counts as well. Honoured if our document, which FastAPI
  makes of the models that check requests, declares it at the same place by name. Those models refuse every other name,
  so what is not declared is refused, and so is what is declared as null alone. An object of ours is of the same kind as
  one of OpenAI's if `type`, `role` and `object` allow for a common value: a tool of a type that we do not list is
  missing, with all that it holds. Where a model says `x-passed-through`, all that lies below in an object of that kind
  goes to the engine, or into what is kept, as it came, and is honoured.
- of replies: properties, those inside of others too. Honoured if a reply had it while the walk of `openai_journey.py`
  went through all operations. Where a reply may be of several kinds, those that none was of do not count: which kinds
  there are follows from what can be asked, which is counted there.

What OpenAI calls deprecated does not count. An operation that is missing misses all that only its requests and replies
hold.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.contracts.exchanges import Exchange
from tests.contracts.openai_spec import AREAS, EVENTS, Json, Operation, Spec, openai_spec

PASSED_THROUGH = "x-passed-through"
ANYTHING: Json = {PASSED_THROUGH: True}
"""What lies below something that is passed through."""
TELLING = ("type", "role", "object")
"""Properties that say of which kind an object is."""

Item = tuple[str, bool]
"""What is counted, and whether it is honoured."""


@dataclass(frozen=True)
class Score:
    honoured: int
    missing: tuple[str, ...]

    @property
    def total(self) -> int:
        return self.honoured + len(self.missing)

    @property
    def share(self) -> float:
        return self.honoured / self.total if self.total else 1.0


def scores(document: Json, exchanges: Sequence[Exchange], *, theirs: Spec | None = None) -> dict[str, Score]:
    """By area. `document` is our OpenAPI document, `theirs` is OpenAI's."""
    theirs, ours = theirs or openai_spec(), Spec(document)
    seen: dict[tuple[str, str], list[Exchange]] = {}
    for exchange in exchanges:
        operation = theirs.operation_of(exchange.method, exchange.path)
        if operation is not None and exchange.status < 300:
            seen.setdefault(operation.shape, []).append(exchange)
    items: dict[str, dict[str, bool]] = {area: {} for area in AREAS}
    for operation in theirs.operations.values():
        if operation.area is not None:
            counted = items[operation.area]
            for name, is_honoured in _items(theirs, operation, ours, seen.get(operation.shape, ())):
                counted[name] = counted.get(name, False) or is_honoured
    return {
        area: Score(
            honoured=sum(counted.values()),
            missing=tuple(name for name, is_honoured in counted.items() if not is_honoured),
        )
        for area, counted in items.items()
    }


def _items(theirs: Spec, operation: Operation, ours: Spec, seen: Sequence[Exchange]) -> Iterator[Item]:
    own = ours.operations.get(operation.shape)
    name = f"{operation.method.upper()} {operation.path}"
    yield name, own is not None
    declared = {each["name"] for each in own.parameters} if own is not None else set()
    for each in operation.parameters:
        if not each.get("deprecated"):
            yield f"{name} ?{each['name']}", each["name"] in declared
    for body in list(operation.body.values())[:1]:
        own_body = list(own.body.values())[:1] if own is not None else []
        yield from _Request(theirs, ours).items(body, own_body, f"{name} >")
    for status, replies in operation.replies.items():
        if status.startswith("2"):
            for kind, schema in replies.items():
                if schema.get("type") != "string":
                    yield from _Reply(theirs).items(schema, _bodies(seen, kind), f"{name} <")


class _Request:
    """Goes through a schema of OpenAI's, and those of ours that stand at the same place, side by side."""

    def __init__(self, theirs: Spec, ours: Spec) -> None:
        self._theirs, self._ours = theirs, ours

    def items(
        self, schema: Json, own: Iterable[Json], at: str, inside: tuple[int, ...] = ()
    ) -> Iterator[Item]:
        if "$ref" in schema:
            at = schema["$ref"].rpartition("/")[2]
        kinds = list(kinds_of(self._theirs, schema))
        own_kinds = [kind for each in own for kind in kinds_of(self._ours, each)]
        for kind in kinds:
            if id(kind) in inside:
                continue  # A filter of filters: seen already.
            alike = [each for each in own_kinds if _is_alike(self._theirs, kind, self._ours, each)]
            here = at
            if len(kinds) > 1:
                here = f"{at}<{_name(self._theirs, kind)}>"
                yield here, bool(alike)
            below = (*inside, id(kind))
            for name, inner in kind.get("properties", {}).items():
                if self._theirs.resolved(inner).get("deprecated") or inner.get("deprecated"):
                    continue
                there, is_declared = _inner(alike, name)
                yield f"{here}.{name}", is_declared
                yield from self.items(inner, there, f"{here}.{name}", below)
            if isinstance(kind.get("items"), dict):
                elements = [
                    each["items"] if isinstance(each.get("items"), dict) else ANYTHING
                    for each in alike
                    if each.get(PASSED_THROUGH) or isinstance(each.get("items"), dict)
                ]
                yield from self.items(kind["items"], elements, f"{here}[]", below)


class _Reply:
    """Goes through a schema of OpenAI's, and the values that stood at the same place in replies, side by side."""

    def __init__(self, theirs: Spec) -> None:
        self._theirs = theirs

    def items(
        self, schema: Json, values: Sequence[Any], at: str, inside: tuple[int, ...] = ()
    ) -> Iterator[Item]:
        if "$ref" in schema:
            at = schema["$ref"].rpartition("/")[2]
        kinds = list(kinds_of(self._theirs, schema))
        for kind in kinds:
            of_it = [value for value in values if _is_of(self._theirs, value, kind)]
            if id(kind) in inside or (len(kinds) > 1 and not of_it):
                continue
            here = f"{at}<{_name(self._theirs, kind)}>" if len(kinds) > 1 else at
            below = (*inside, id(kind))
            for name, inner in kind.get("properties", {}).items():
                if self._theirs.resolved(inner).get("deprecated") or inner.get("deprecated"):
                    continue
                there = [value[name] for value in of_it if isinstance(value, dict) and name in value]
                yield f"{here}.{name}", bool(there)
                yield from self.items(inner, there, f"{here}.{name}", below)
            if isinstance(kind.get("items"), dict):
                elements = [element for value in of_it if isinstance(value, list) for element in value]
                yield from self.items(kind["items"], elements, f"{here}[]", below)


def kinds_of(spec: Spec, schema: Json) -> Iterator[Json]:
    """The schemas that a value may be of, with what `allOf` joins put together, and without null."""
    schema = spec.resolved(schema)
    if "$recursiveRef" in schema:
        return  # What stands around it, which is counted there.
    if schema.get(PASSED_THROUGH):
        yield schema
        return
    alternatives = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    # `anyOf: [{required: …}]` beside properties says which of them go together.
    if alternatives and not schema.get("properties"):
        for each in alternatives:
            yield from kinds_of(spec, each)
    elif "allOf" in schema:
        yield _joined(spec, schema)
    elif schema.get("type") != "null" and schema != {"nullable": True}:
        yield schema


_JOINED: dict[int, Json] = {}
"""A joined schema is made once, so that it is known again where it holds itself."""


def _joined(spec: Spec, schema: Json) -> Json:
    if id(schema) not in _JOINED:
        joined: Json = {key: value for key, value in schema.items() if key != "allOf"}
        joined["properties"] = dict(schema.get("properties", {}))
        for part in schema["allOf"]:
            for kind in kinds_of(spec, part):
                joined["properties"] |= kind.get("properties", {})
                joined.update(
                    {key: value for key, value in kind.items() if key not in ("properties", "allOf")}
                )
        _JOINED[id(schema)] = joined
    return _JOINED[id(schema)]


def is_taken(schema: Json) -> bool:
    """Whether a field of ours may be anything but null, which is how one is declared that is refused."""
    return schema.get("type") != "null"


def _is_alike(theirs: Spec, kind: Json, ours: Spec, own: Json) -> bool:
    if not _types(kind) & _types(own):
        return False
    told, own_told = _told(theirs, kind), _told(ours, own)
    return all(told[name] & own_told[name] for name in told.keys() & own_told.keys())


def _is_of(theirs: Spec, value: Any, kind: Json) -> bool:
    if _type_of(value) not in _types(kind):
        return False
    if not isinstance(value, dict):
        return True
    told = _told(theirs, kind)
    return all(value.get(name) in wanted for name, wanted in told.items() if name in value)


def _told(spec: Spec, kind: Json) -> Mapping[str, frozenset[Any]]:
    """What an object of this kind says of itself."""
    told = {}
    for name in TELLING:
        schema = spec.resolved(kind.get("properties", {}).get(name, {}))
        wanted = [schema["const"]] if "const" in schema else schema.get("enum", ())
        if wanted:
            told[name] = frozenset(wanted)
    return told


def _types(kind: Json) -> frozenset[str]:
    told = kind.get("type")
    if told is None:
        if "properties" in kind:
            told = "object"
        elif "const" in kind or "enum" in kind:
            told = "string"
        else:
            return frozenset(("object", "array", "string", "number", "boolean"))
    types = frozenset([told] if isinstance(told, str) else told)
    return types | {"number"} if "integer" in types else types


def _type_of(value: Any) -> str:
    match value:
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case dict():
            return "object"
        case _:
            return "null"


def _name(spec: Spec, kind: Json) -> str:
    told = _told(spec, kind)
    says = "|".join(str(value) for wanted in list(told.values())[:1] for value in sorted(wanted, key=str))
    return says or str(kind.get("title") or "|".join(sorted(_types(kind))))


def _inner(own: Sequence[Json], name: str) -> tuple[list[Json], bool]:
    """The schemas that ours has under this name, and whether it has any but null."""
    found = [
        each["properties"][name] if name in each.get("properties", {}) else ANYTHING
        for each in own
        if each.get(PASSED_THROUGH) or name in each.get("properties", {})
    ]
    return found, any(map(is_taken, found))


def _bodies(seen: Sequence[Exchange], kind: str) -> list[Any]:
    bodies: list[Any] = []
    for exchange in seen:
        if not exchange.headers.get("content-type", "").startswith(kind):
            continue
        if kind == EVENTS:
            lines = [line[6:] for line in exchange.body.split(b"\n") if line.startswith(b"data: ")]
            bodies += [json.loads(line) for line in lines if line != b"[DONE]"]
        elif kind == "application/json" and exchange.body:
            bodies.append(json.loads(exchange.body))
    return bodies


async def _measure() -> dict[str, Score]:
    # Only here: its tests take these functions, and it takes long to import.
    from tests.contracts.openai_journey import opened, walk_through

    with tempfile.TemporaryDirectory() as folder:
        async with opened(Path(folder)) as api:
            return scores(api.app.openapi(), await walk_through(api))


def main() -> None:
    parser = argparse.ArgumentParser(description="How much of OpenAI's interface is honoured.")
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"of {', '.join(AREAS)}; all without one")
    parser.add_argument("--missing", action="store_true", help="name what is not honoured")
    asked = parser.parse_args()
    measured = asyncio.run(_measure())
    print(f"{'area':<16}{'honoured':>10}{'of':>7}{'share':>9}")
    for area, score in measured.items():
        if asked.areas and area not in asked.areas:
            continue
        print(f"{area:<16}{score.honoured:>10}{score.total:>7}{score.share:>9.1%}")
        if asked.missing:
            for name in score.missing:
                print(f"    {name}")


if __name__ == "__main__":
    main()
