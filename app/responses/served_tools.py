"""Tools of MCP servers in a response: which of them a model may call, and which not before a person allows it. Pure."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import orjson
from pydantic import Field

from app.answers.prompt import quoted
from app.responses.items import Json
from app.responses.tool_servers import Access, is_read_only
from app.routes.body import Body

MOST_DESCRIPTION_CHARS = 4_000
MOST_NAME_CHARS = 64
NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")


class ToolFilter(Body):
    tool_names: list[str] | None = None
    read_only: bool | None = None

    def matches(self, listed: Json) -> bool:
        return (self.tool_names is None or listed["name"] in self.tool_names) and (
            self.read_only is None or self.read_only == is_read_only(listed)
        )


class ApprovalFilter(Body):
    always: ToolFilter | None = None
    never: ToolFilter | None = None


class Mcp(Body):
    """Tools of a server that the owner named in tools.mcp_servers."""

    type: Literal["mcp"]
    server_label: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    server_url: Annotated[str, Field(max_length=2048)] | None = None
    """The label is the client's own then."""
    server_description: Annotated[str, Field(max_length=MOST_DESCRIPTION_CHARS)] | None = None
    authorization: Annotated[str, Field(max_length=8192)] | None = None
    headers: Annotated[dict[str, Annotated[str, Field(max_length=8192)]], Field(max_length=32)] | None = None
    """These two are for this response alone: they are neither told back nor kept."""
    allowed_tools: list[str] | ToolFilter | None = None
    require_approval: ApprovalFilter | Literal["always", "never"] | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: Literal[False] | None = None

    def allows(self, listed: Json) -> bool:
        if isinstance(self.allowed_tools, ToolFilter):
            return self.allowed_tools.matches(listed)
        return self.allowed_tools is None or listed["name"] in self.allowed_tools

    def needs_approval(self, listed: Json) -> bool:
        """As OpenAI has it, where nothing is said."""
        wanted = self.require_approval
        if isinstance(wanted, ApprovalFilter):
            always = wanted.always is not None and wanted.always.matches(listed)
            return always or not (wanted.never is not None and wanted.never.matches(listed))
        return wanted != "never"


class McpChoice(Body):
    type: Literal["mcp"]
    server_label: str
    name: str | None = None


@dataclass(frozen=True)
class ServedTool:
    """A tool of a server, as the engine is shown it."""

    access: Access
    name: str
    function: Json
    needs_approval: bool

    @property
    def label(self) -> str:
        return self.access.server.label


@dataclass(frozen=True)
class Approval:
    """What a person says to a call that was asked for."""

    request: Json
    """The `mcp_approval_request`."""
    approves: bool


def offered(wanted: Mcp, access: Access, listed: Iterable[Json], *, taken: set[str]) -> Iterator[ServedTool]:
    """Those that the client allows. `taken` are names of functions, and grows by theirs."""
    for tool in listed:
        if not wanted.allows(tool):
            continue
        name = _function_name(wanted.server_label, tool["name"], taken)
        taken.add(name)
        described = [wanted.server_description or "", tool.get("description") or ""]
        function: Json = {"name": name, "parameters": tool["input_schema"]}
        if description := "\n".join(each for each in described if each)[:MOST_DESCRIPTION_CHARS]:
            function["description"] = description
        yield ServedTool(access, tool["name"], function, wanted.needs_approval(tool))


def chosen(choice: McpChoice, tools: Sequence[ServedTool]) -> list[ServedTool]:
    return [tool for tool in tools if tool.label == choice.server_label and choice.name in (None, tool.name)]


def listed_before(items: Sequence[Json], label: str) -> list[Json] | None:
    """What an earlier response, which this one goes on from, was told by the server."""
    for item in reversed(items):
        if item["type"] == "mcp_list_tools" and item["server_label"] == label and not item.get("error"):
            tools: list[Json] = item["tools"]
            return tools
    return None


def approvals(past: Sequence[Json], items: Sequence[Json]) -> list[Approval]:
    """Of the calls that were asked for, those that `items` answer and that were not run yet. Raises KeyError, which
    has the id of one that was never asked for.
    """
    whole = [*past, *items]
    asked = {item["id"]: item for item in whole if item["type"] == "mcp_approval_request"}
    run = {item.get("approval_request_id") for item in whole if item["type"] == "mcp_call"}
    return [
        Approval(asked[item["approval_request_id"]], item["approve"])
        for item in items
        if item["type"] == "mcp_approval_response" and item["approval_request_id"] not in run
    ]


def function_name(label: str, name: str) -> str:
    return NOT_IN_NAMES.sub("_", f"{label}__{name}")[:MOST_NAME_CHARS]


def _function_name(label: str, name: str, taken: set[str]) -> str:
    wanted = function_name(label, name)
    number, free = 2, wanted
    while free in taken:
        free = f"{wanted[: MOST_NAME_CHARS - 4]}_{number}"
        number += 1
    return free


def as_messages(call_id: str, function: str, arguments: str, output: str) -> list[Json]:
    """A call and what came of it, as a model reads it: as a stranger's text."""
    if not _is_object(arguments):
        arguments = "{}"  # No chat template shows others, and the output says what was wrong.
    call = {"id": call_id, "type": "function", "function": {"name": function, "arguments": arguments}}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "content": quoted(output)},
    ]


def _is_object(arguments: str) -> bool:
    try:
        return isinstance(orjson.loads(arguments), dict)
    except orjson.JSONDecodeError:
        return False


def output_of(item: Json) -> str:
    """What a model reads of an `mcp_call`."""
    if item.get("output") is not None:
        return str(item["output"])
    error = item.get("error") or {}
    told = error.get("message") or "\n".join(
        str(part.get("text", "")) for part in error.get("content") or () if isinstance(part, dict)
    )
    return f"The call failed: {told or 'nothing is known of it.'}"
