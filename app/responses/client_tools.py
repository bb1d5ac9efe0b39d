"""Tools that a client runs: the function that engines are shown for each, its calls as items, and those items again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.answers.functions import called_with
from app.answers.grammars import Written
from app.responses.items import Json


class NotOfItsForm(Exception):
    """The model called a tool with arguments that are not of the tool's form."""


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ShellAction(_Arguments):
    commands: list[str] = Field(min_length=1, description="Commands to run, in this order.")
    timeout_ms: int | None = Field(None, description="The longest that they may take.")
    max_output_length: int | None = Field(None, description="The most characters of output to give back.")


class ExecAction(_Arguments):
    command: list[str] = Field(min_length=1, description="The program and its arguments.")
    env: dict[str, str] = Field({}, description="Environment variables to set.")
    timeout_ms: int | None = Field(None, description="The longest that it may take.")
    working_directory: str | None = None
    user: str | None = Field(None, description="Whom to run it as.")


class PatchOperation(_Arguments):
    type: Literal["create_file", "update_file", "delete_file"]
    path: str = Field(min_length=1)
    diff: str | None = Field(None, description="In the V4A form; none where a file is deleted.")

    @model_validator(mode="after")
    def _is_whole(self) -> "PatchOperation":
        if (self.diff is None) != (self.type == "delete_file"):
            raise ValueError("diff goes with create_file and update_file")
        return self


@dataclass(frozen=True)
class _Form:
    """How a tool without a name of its own is called."""

    says: str
    arguments: type[_Arguments]
    place: str
    """The item's property that holds what it was called with."""
    beside: Mapping[str, Any]
    """What else its items have."""


FORMS: Mapping[str, _Form] = {
    "local_shell": _Form("Runs a program on the user's machine.", ExecAction, "action", {}),
    "shell": _Form(
        "Runs shell commands on the user's machine.",
        ShellAction,
        "action",
        {"environment": {"type": "local"}},
    ),
    "apply_patch": _Form(
        "Creates, changes or deletes a file on the user's machine.", PatchOperation, "operation", {}
    ),
}
TOOL_SEARCH = "tool_search"


@dataclass(frozen=True)
class ClientTool:
    """`name` is the tool's own, or its type if it has none."""

    kind: str
    name: str
    function: Json
    """As the engine is shown it."""
    namespace: str | None = None
    grammar: Written | None = None
    """That a custom tool's input follows."""

    @property
    def is_named(self) -> bool:
        return self.kind in ("function", "custom")


def function_name(name: str, namespace: str | None) -> str:
    return name if namespace is None else f"{namespace}__{name}"


def function_of_form(kind: str, *, says: str = "") -> Json:
    """Of a tool in FORMS. `says` goes on from its description."""
    form = FORMS[kind]
    return {
        "name": kind,
        "description": f"{form.says}{says}",
        "parameters": form.arguments.model_json_schema(),
    }


def item_of(tool: ClientTool, arguments: str) -> Json:
    """Of a call of a tool that has no name, but for its ids and status. Raises NotOfItsForm."""
    try:
        if tool.kind == TOOL_SEARCH:
            told = orjson.loads(arguments or "{}")
            if not isinstance(told, dict):
                raise NotOfItsForm(tool.name)
            return {"type": "tool_search_call", "execution": "client", "arguments": told}
        form = FORMS[tool.kind]
        read = form.arguments.model_validate_json(arguments)
    except (ValidationError, orjson.JSONDecodeError) as error:
        raise NotOfItsForm(tool.name) from error
    # Of a shell's action all is told, of the others what there is.
    told = read.model_dump(exclude_none=tool.kind != "shell")
    if tool.kind == "local_shell":
        told["type"] = "exec"
    return {"type": f"{tool.kind}_call", form.place: told, **form.beside}


def called(item: Json) -> tuple[str, str] | None:
    """A function's name and arguments, of an item that is a call of a tool which clients run; None of any other."""
    kind = item["type"].removesuffix("_call")
    if item["type"] == "function_call":
        return function_name(item["name"], item.get("namespace")), item["arguments"]
    if item["type"] == "custom_tool_call":
        return function_name(item["name"], item.get("namespace")), called_with(item["input"])
    if not isinstance(item.get("call_id"), str):
        return None
    if item["type"] == "tool_search_call" and item.get("execution") == "client":
        return TOOL_SEARCH, orjson.dumps(item.get("arguments") or {}).decode()
    if item["type"] == f"{kind}_call" and kind in FORMS:
        told = dict(item.get(FORMS[kind].place) or {})
        if kind == "local_shell":
            told.pop("type", None)
        return kind, orjson.dumps(told).decode()
    return None


def answered(item: Json) -> str | None:
    """The call that an item is the output of, if a client ran it."""
    match item["type"]:
        case "function_call_output" | "custom_tool_call_output":
            return str(item["call_id"])
        case "local_shell_call_output":  # OpenAI's own clients give the call's id as the output's.
            call_id = item.get("call_id") or item.get("id")
        case "shell_call_output" | "apply_patch_call_output":
            call_id = item.get("call_id")
        case "tool_search_output" if item.get("execution") == "client":
            call_id = item.get("call_id")
        case _:
            return None
    return call_id if isinstance(call_id, str) else None


def output_text(item: Json) -> str:
    """What a model reads of the output of a tool that has no name."""
    told: Json
    match item["type"]:
        case "shell_call_output":
            told = {name: item[name] for name in ("output", "max_output_length") if name in item}
        case "apply_patch_call_output":
            told = {name: item[name] for name in ("status", "output") if name in item}
        case "tool_search_output":
            tools = [tool for tool in item.get("tools") or () if isinstance(tool, dict)]
            told = {"tools": [tool.get("name", tool.get("type")) for tool in tools]}
        case _:
            return str(item.get("output", ""))
    return orjson.dumps(told).decode()
