"""The bodies of these routes in the API's description: the schemas of the models that check them, put together."""

from collections.abc import Iterable

from pydantic import BaseModel

from app.responses.items import FOREIGN, INPUT_PARTS, KINDS, OUTPUT_PARTS, Json
from app.responses.request import CHOICES, TOOLS
from app.routes.body import any_of, json_of, schema_of


def described(model: type[BaseModel]) -> Json:
    """What a route that reads its body itself says of it."""
    return _with_forms(model, _FORMS)


def keeping(model: type[BaseModel], *, is_required: bool = True) -> Json:
    """The same for a route that keeps items and uses none of the tools in them."""
    told = _with_forms(model, _KEPT)
    told["requestBody"]["required"] = is_required
    return told


def _with_forms(model: type[BaseModel], forms: Json) -> Json:
    schema = schema_of(model)
    for name, form in forms.items():
        if name in schema["properties"]:
            schema["properties"][name] = form
    return json_of(schema)


def _sent(kind: type[BaseModel]) -> Json:
    """Null stands for what is not there, in items and in their parts."""
    schema = schema_of(kind)
    for name, each in schema["properties"].items():
        if name not in schema.get("required", ()) and {"type": "null"} not in each.get("anyOf", ()):
            schema["properties"][name] = {"anyOf": [each, {"type": "null"}]}
    return schema


def _item(kind: type[BaseModel]) -> Json:
    schema = _sent(kind)
    parts = [*INPUT_PARTS.values(), *(OUTPUT_PARTS.values() if kind is KINDS["message"] else ())]
    for name in ("content", "output"):
        if "anyOf" in schema["properties"].get(name, {}) and kind is not KINDS["reasoning"]:
            text_or_parts = [
                {"type": "string"},
                {"type": "array", "items": {"anyOf": [_sent(part) for part in parts]}},
            ]
            schema["properties"][name] = {"anyOf": text_or_parts}
    return schema


_TOOLS: Json = {"type": "array", "items": any_of(TOOLS.values())}
_WITH_TOOLS = ("additional_tools", "tool_search_output")
"""These hold tools, none of which a response can use."""


def _foreign(kinds: Iterable[str], **properties: Json) -> Json:
    return {
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"enum": list(kinds)}, **properties},
        "x-passed-through": True,
    }


def _items(*foreign: Json) -> Json:
    return {"type": "array", "items": {"anyOf": [*(_item(kind) for kind in KINDS.values()), *foreign]}}


_ASKED = _items(
    _foreign(kind for kind in FOREIGN if kind not in _WITH_TOOLS),
    # The model reads them as JSON, like all items of others, but has no such tools.
    _foreign(_WITH_TOOLS, tools={"type": "array"}),
)
_KEPT: Json = {"items": {"anyOf": [_items(_foreign(FOREIGN)), {"type": "null"}]}}
_FORMS: Json = {
    "input": {"anyOf": [{"type": "string"}, _ASKED, {"type": "null"}]},
    "tools": _TOOLS,
    "tool_choice": {
        "anyOf": [
            {"type": "string", "enum": ["none", "auto", "required"]},
            *(schema_of(form) for form in dict.fromkeys(CHOICES.values())),
        ]
    },
}
