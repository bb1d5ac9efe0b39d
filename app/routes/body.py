"""Bodies of requests: JSON objects and forms, whose fields are all known by name."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError, WithJsonSchema
from pydantic.config import JsonDict

from app.errors import BadRequest


class Body(BaseModel):
    """A field that it does not have is refused: in silence it would do nothing. So is "5" for a number."""

    model_config = ConfigDict(extra="forbid", strict=True)


PASSED: JsonDict = {"x-passed-through": True}
"""Told in the API's description: passed on, or kept, as it came."""
Unchecked = Annotated[Any, WithJsonSchema(PASSED)]
UncheckedObject = Annotated[dict[str, Any], WithJsonSchema({"type": "object", **PASSED})]

Model = TypeVar("Model", bound=BaseModel)
Fields = TypeVar("Fields", bound=Body)
NUMBER = re.compile(r"[0-9]{1,18}")


def read_model(form: type[Model], sent: Any, param: str = "") -> Model:
    """Raises BadRequest that names the place below `param`, or at the top if that is empty."""
    try:
        return form.model_validate(sent)
    except ValidationError as error:
        first = error.errors()[0]
        place = param + "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}"
            for part in first["loc"]
            # Of a union, pydantic names the member.
            if isinstance(part, int) or not _MEMBER.search(part)
        )
        place = place.removeprefix(".")
        what = "unknown field" if first["type"] == "extra_forbidden" else first["msg"]
        raise BadRequest(f"{place or 'body'}: {what}.", param=place or None) from error


_MEMBER = re.compile(r"^(str|int|float|bool|dict)$|\[|-")


def read_tagged(sent: Any, kinds: Mapping[str, type[Model]], param: str, *, kind: str | None = None) -> Model:
    """One of several forms, told apart by `type`. Raises BadRequest that names the place."""
    if not isinstance(sent, dict):
        raise BadRequest(f"{param} must be an object.", param=param)
    kind = kind or sent.get("type")
    if not isinstance(kind, str) or kind not in kinds:
        raise BadRequest(
            f"{param}.type is {str(kind)[:64]!r}, which is not known here. It must be one of: {', '.join(kinds)}.",
            param=f"{param}.type",
        )
    return read_model(kinds[kind], {**sent, "type": kind}, param)


def read_fields(model: type[Fields], sent: Mapping[str, str]) -> Fields:
    """A form's fields. An object in one comes as `name[inner]`, as OpenAI's clients write it, or as JSON.

    Raises RequestValidationError.
    """
    fields: dict[str, Any] = {}
    for name, value in sent.items():
        outer, bracket, inner = name.partition("[")
        if bracket and inner.endswith("]") and isinstance(fields.setdefault(outer, {}), dict):
            fields[outer][inner[:-1]] = int(value) if NUMBER.fullmatch(value) else value
        else:
            fields[name] = _object(value)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError(
            [{**each, "loc": ("body", _name(each["loc"], sent))} for each in error.errors()]
        ) from error


def _object(value: str) -> Any:
    if not value.startswith("{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _name(place: tuple[str | int, ...], sent: Mapping[str, str]) -> str:
    """The field's as it was sent."""
    outer, *inner = map(str, place)
    is_split = outer not in sent and any(name.startswith(f"{outer}[") for name in sent)
    return outer + "".join(f"[{each}]" for each in inner) if is_split else ".".join([outer, *inner])


def json_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a JSON body, for a route that reads it itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """It brings what it refers to as `$defs`, which `app.edge.description.completed` puts in its place."""
    return model.model_json_schema(ref_template="#/components/schemas/{model}")


def any_of(models: Iterable[type[BaseModel]]) -> dict[str, Any]:
    return {"anyOf": [schema_of(model) for model in models]}


def form_of(model: type[Body], file_field: str) -> dict[str, Any]:
    """The description of a form with a file in it, for a route that reads its body itself."""
    schema = model.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    schema["properties"] = {file_field: {"type": "string", "format": "binary"}, **schema["properties"]}
    schema["required"] = [file_field, *schema.get("required", ())]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    inlined = {name: _inlined(each, definitions) for name, each in schema.items()}
    # A form has no null: what is not sent is not there.
    if {"type": "null"} in inlined.get("anyOf", ()):
        inlined["anyOf"].remove({"type": "null"})
        del inlined["default"]
    return inlined
