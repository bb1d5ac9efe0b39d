"""The description of the API, completed: what errors look like, and which ids lead where."""

from typing import Any

Json = dict[str, Any]

METHODS = ("get", "post", "put", "patch", "delete")
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "What is wrong, and what to change."},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field that is wrong."},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def completed(document: Json) -> Json:
    """Changes FastAPI's document in place. Its 422 goes: what cannot be right is 400 here, as OpenAI has it."""
    parts = document.setdefault("components", {})
    schemas = parts.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    _bring_up(document["paths"], schemas)
    schemas["Error"] = ERROR
    for operations in document["paths"].values():
        for method in METHODS:
            if method in operations:
                _complete(operations[method])
    for made, by in _makers(document["paths"]).items():
        _link(document["paths"], made, by)
    return document


def _bring_up(part: Any, schemas: Json) -> None:
    """What schemas of bodies brought with them stands beside all others, where they refer to it."""
    if isinstance(part, list):
        for each in part:
            _bring_up(each, schemas)
    elif isinstance(part, dict):
        brought = part.pop("$defs", {})
        _bring_up(list(brought.values()), schemas)
        # Two models of one name would stand for each other.
        assert all(schemas.get(name, schema) == schema for name, schema in brought.items()), brought.keys()
        schemas.update(brought)
        _bring_up(list(part.values()), schemas)


def _complete(operation: Json) -> None:
    responses: Json = operation["responses"]
    responses.pop("422", None)
    responses["default"] = {
        "description": "An error",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }


KEPT_IF_ASKED = ("/v1/chat/completions", "/v1/responses")
"""Not all that they answer with is stored."""


def _makers(paths: Json) -> dict[str, str]:
    """Of each path that ends in an id, the path whose POST makes such an id."""
    return {
        path: outer
        for path in paths
        for outer, _, last in [path.rpartition("/")]
        if last.endswith("_id}") and "post" in paths.get(outer, {}) and outer not in KEPT_IF_ASKED
    }


def _link(paths: Json, made: str, maker: str) -> None:
    """What POST to `maker` replies with has the id that all paths under `made` ask for."""
    names = [part[1:-1] for part in made.split("/") if part.startswith("{")]
    given = {name: f"$request.path.{name}" for name in names[:-1]}
    given[names[-1]] = "$response.body#/id"
    links: Json = (
        paths[maker]["post"]["responses"].setdefault("200", {"description": "Done"}).setdefault("links", {})
    )
    for path, operations in paths.items():
        inner = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        if (path == made or path.startswith(f"{made}/")) and inner == names:
            for method in METHODS:
                if method in operations:
                    links[operations[method]["operationId"]] = {
                        "operationId": operations[method]["operationId"],
                        "parameters": given,
                    }
