"""OpenAI's published OpenAPI document: its operations by method and path, and a judge of replies.

The document is not ours to keep, so it lies beside the repository; without it tests skip. It is read with eight
corrections. What 3.0 called `nullable` may be null. `oneOf` is `anyOf`, as some of its alternatives overlap. A
recursive reference means the schema it stands in. An embedding may be base64 and a file's purpose `evals`, as they were
asked for. The messages of a stored completion have any role, and a response's events may be read again. And objects may
have more properties than it lists, since ours do.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

Json = dict[str, Any]

SPEC = Path(__file__).parents[3] / "shared" / "data" / "openai_openapi" / "openapi.yaml"
NO_SPEC = "OpenAI's openapi.yaml is not there"
METHODS = ("get", "post", "put", "patch", "delete")
AREAS: Mapping[str, str] = {
    "Chat": "/chat/completions",
    "Responses": "/responses",
    "Conversations": "/conversations",
    "Files": "/files",
    "Uploads": "/uploads",
    "Vector stores": "/vector_stores",
    "Embeddings": "/embeddings",
    "Models": "/models",
    "Batches": "/batches",
}
EVENTS = "text/event-stream"
READ_AGAIN = "/responses/{response_id}"
"""Its events are told of nowhere but in its parameters."""


@dataclass(frozen=True)
class Operation:
    """`path` is OpenAI's, with names in braces. Schemas are by content type."""

    method: str
    path: str
    parameters: tuple[Json, ...]
    body: Mapping[str, Json]
    replies: Mapping[str, Mapping[str, Json]]
    """By status."""

    @property
    def shape(self) -> tuple[str, str]:
        return self.method, shape_of(self.path)

    @property
    def area(self) -> str | None:
        inside = (area for area, path in AREAS.items() if f"{self.path}/".startswith(f"{path}/"))
        return next(inside, None)


def shape_of(path: str) -> str:
    """A path whatever its ids are called: `/files/{}/content`."""
    return re.sub(r"\{[^}]*\}", "{}", path.removeprefix("/v1"))


class Spec:
    """An OpenAPI document, OpenAI's or ours."""

    def __init__(self, document: Json) -> None:
        self.document = document
        self.operations = {operation.shape: operation for operation in self._operations()}

    def resolved(self, schema: Json) -> Json:
        while "$ref" in schema:
            schema = self._at(schema["$ref"])
        return schema

    def operation_of(self, method: str, path: str) -> Operation | None:
        """That a request went to."""
        found = [
            each
            for each in self.operations.values()
            if each.method == method.lower()
            and _pattern(shape_of(each.path)).fullmatch(path.removeprefix("/v1"))
        ]
        # A path without an id goes before one that takes the same word for an id.
        return min(found, key=lambda each: each.path.count("{"), default=None)

    def _operations(self) -> Iterator[Operation]:
        for path, operations in self.document["paths"].items():
            if "?" in path:
                continue  # The beta forms of others.
            for method in METHODS:
                if method in operations:
                    yield self._operation(method, path, operations)

    def _operation(self, method: str, path: str, operations: Json) -> Operation:
        told = operations[method]
        parameters = [
            self.resolved(each) for each in (*operations.get("parameters", ()), *told.get("parameters", ()))
        ]
        return Operation(
            method=method,
            path=path.removeprefix("/v1"),
            parameters=tuple(each for each in parameters if each["in"] == "query"),
            body=_schemas(self.resolved(told.get("requestBody", {}))),
            replies={status: _schemas(self.resolved(reply)) for status, reply in told["responses"].items()},
        )

    def _at(self, reference: str) -> Json:
        found: Any = self.document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part.replace("~1", "/").replace("~0", "~")]
        assert isinstance(found, dict)
        return found


class Judge:
    """Says what is wrong with replies, by the spec."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        schemas = spec.document["components"]["schemas"]
        self._components = {name: _corrected(schema, name) for name, schema in schemas.items()}
        embedding = self._components["Embedding"]["properties"]
        embedding["embedding"] = {"anyOf": [embedding["embedding"], {"type": "string"}]}
        # It may be asked for, and is missing among what a reply may be.
        self._components["OpenAIFile"]["properties"]["purpose"]["enum"].append("evals")
        self._validators: dict[str, jsonschema_rs.Draft202012Validator] = {}

    def errors(self, method: str, path: str, status: int, content_type: str, body: bytes) -> list[str]:
        """A sentence for each; none also for operations that the spec does not have, but for their error bodies."""
        kind = content_type.partition(";")[0]
        if status >= 400:
            return self._wrong({"$ref": "#/components/schemas/ErrorResponse"}, body)
        operation = self.spec.operation_of(method, path)
        if operation is None or status == 206 or (kind == EVENTS and operation.path == "/completions"):
            return []  # A stretch of some bytes; a stream that the spec does not tell of.
        replies = operation.replies.get(str(status))
        if replies is None:
            return [f"The spec has no reply {status}."]
        if kind == EVENTS and (EVENTS in replies or operation.path == READ_AGAIN):
            schema = replies.get(EVENTS) or {"$ref": "#/components/schemas/ResponseStreamEvent"}
            events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
            return [wrong for event in events if event != b"[DONE]" for wrong in self._wrong(schema, event)]
        schema = replies.get("application/json", {"type": "string"})
        if schema.get("type") == "string":
            return []  # Bytes, or nothing that is said.
        if kind != "application/json":
            return [f"The reply is {kind}, not JSON."]
        return self._wrong(schema, body)

    def errors_of(self, schema: str, told: Any) -> list[str]:
        """Of one object, by its schema's name."""
        return self._wrong({"$ref": f"#/components/schemas/{schema}"}, json.dumps(told).encode())

    def _wrong(self, schema: Json, body: bytes) -> list[str]:
        try:
            instance = json.loads(body)
        except ValueError:
            return ["The reply is not JSON."]
        key = json.dumps(schema, sort_keys=True)
        if key not in self._validators:
            whole = {**_corrected(schema, ""), "components": {"schemas": self._components}}
            self._validators[key] = jsonschema_rs.Draft202012Validator(whole)
        return [
            f"{'.'.join(map(str, error.instance_path)) or 'The body'}: {error.message[:300]}"
            for error in self._validators[key].iter_errors(instance)
        ]


@cache
def openai_spec() -> Spec:
    # YAML takes some of its examples for dates, which no schema can hold.
    document = json.loads(json.dumps(yaml.load(SPEC.read_bytes(), Loader=yaml.CSafeLoader), default=str))
    _correct_stored_messages(document["components"]["schemas"])
    return Spec(document)


def _correct_stored_messages(schemas: Json) -> None:
    """Those that were sent, of any role, as the example beside that schema has them."""
    (said, named) = schemas["ChatCompletionMessageList"]["properties"]["data"]["items"]["allOf"]
    answer = schemas[said["$ref"].rpartition("/")[2]]
    roles = ["developer", "system", "user", "assistant", "tool", "function"]
    properties = answer["properties"] | {"role": {"type": "string", "enum": roles}}
    stored = {**answer, "properties": properties}
    schemas["ChatCompletionMessageList"]["properties"]["data"]["items"] = {"allOf": [stored, named]}


@cache
def openai_judge() -> Judge:
    return Judge(openai_spec())


def must_be(schema: str, told: Any) -> None:
    """Fails with all that is wrong of an object of this schema."""
    if not SPEC.is_file():
        pytest.skip(NO_SPEC)
    wrong = openai_judge().errors_of(schema, told)
    assert not wrong, f"{schema}: {wrong}"


def must_be_event(told: Json) -> None:
    """Fails for what is no event of a response's stream: an error in one of them is told better than one in all."""
    if not SPEC.is_file():
        pytest.skip(NO_SPEC)
    must_be(_events()[told["type"]], told)


@cache
def _events() -> dict[str, str]:
    """Schemas by the events' types."""
    schemas = openai_spec().document["components"]["schemas"]
    names = [each["$ref"].rpartition("/")[2] for each in schemas["ResponseStreamEvent"]["anyOf"]]
    return {schemas[name]["properties"]["type"]["enum"][0]: name for name in names}


@cache
def _pattern(shape: str) -> re.Pattern[str]:
    return re.compile("[^/]+".join(map(re.escape, shape.split("{}"))))


def _schemas(holder: Json) -> Mapping[str, Json]:
    return {kind: told["schema"] for kind, told in holder.get("content", {}).items() if "schema" in told}


def _corrected(schema: Any, name: str) -> Any:
    if isinstance(schema, list):
        return [_corrected(each, name) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$recursiveRef" in schema:
        return {"$ref": f"#/components/schemas/{name}"}
    corrected = {key: _corrected(each, name) for key, each in schema.items() if key != "$recursiveAnchor"}
    if "oneOf" in corrected:
        corrected["anyOf"] = corrected.pop("oneOf")
    if corrected.get("additionalProperties") is False:
        del corrected["additionalProperties"]
    # `allOf: [something, {nullable: true}]` is how it writes that something may be null.
    if {"nullable": True} in corrected.get("allOf", ()):
        corrected["allOf"].remove({"nullable": True})
        return {"anyOf": [corrected, {"type": "null"}]}
    if corrected.pop("nullable", None) is True:
        return {"anyOf": [corrected, {"type": "null"}]}
    return corrected
