"""OpenAI's old functions, its custom tools and its choice among allowed tools in terms of tools that engines know."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from app.errors import BadRequest

Json = dict[str, Any]


def needs_translation(body: Mapping[str, Any]) -> bool:
    """Whether a request, or its history, has what engines do not know."""
    choice = body.get("tool_choice")
    return (
        bool(body.get("functions"))
        or (isinstance(choice, dict) and choice["type"] != "function")
        or any(tool["type"] == "custom" for tool in body.get("tools") or ())
        or any(
            message.get("role") == "function"
            or message.get("function_call")
            or any(call.get("type") == "custom" for call in message.get("tool_calls") or ())
            for message in body["messages"]
        )
    )


def translated(body: Mapping[str, Any]) -> Json:
    """The request as an engine knows it. Raises BadRequest for a choice of what is not among the tools."""
    kept = {name: value for name, value in body.items() if name not in ("functions", "function_call")}
    kept["messages"] = [_with_functions(message) for message in _with_tool_messages(body["messages"])]
    tools = [_as_function(tool) for tool in body.get("tools") or ()]
    if functions := body.get("functions"):
        tools += [{"type": "function", "function": function} for function in functions]
        kept["parallel_tool_calls"] = False
    choice = body.get("tool_choice")
    called = body.get("function_call")
    if called is not None and functions:
        choice = (
            {"type": "function", "function": {"name": called["name"]}} if isinstance(called, dict) else called
        )
    if isinstance(choice, dict) and choice["type"] == "custom":
        choice = {"type": "function", "function": choice["custom"]}
    elif isinstance(choice, dict) and choice["type"] == "file_search":
        choice = "none"  # It is searched before the model is asked.
    elif isinstance(choice, dict) and choice["type"] == "allowed_tools":
        tools, choice = _allowed(tools, choice["allowed_tools"]), choice["allowed_tools"]["mode"]
    for name, value in (("tools", tools or None), ("tool_choice", choice)):
        kept.pop(name, None)
        if value is not None:
            kept[name] = value
    return kept


def custom_names(body: Mapping[str, Any]) -> frozenset[str]:
    """Of the custom tools that a request offers."""
    return frozenset(
        tool["custom"]["name"] for tool in body.get("tools") or () if tool.get("type") == "custom"
    )


def called_with(text: str) -> str:
    """The arguments that the function behind a custom tool gets for this input."""
    return orjson.dumps({"input": text}).decode()


def input_of(arguments: str) -> str:
    """Of a custom tool, whose engine was shown a function; what is not of that form is the input itself."""
    try:
        told = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return arguments
    return str(told["input"]) if isinstance(told, dict) and "input" in told else arguments


def function_of(name: str, description: str | None) -> Json:
    """That takes a custom tool's input."""
    function: Json = {
        "name": name,
        "parameters": {
            "type": "object",
            "properties": {"input": {"type": "string"}},
            "required": ["input"],
            "additionalProperties": False,
        },
    }
    return function if description is None else {**function, "description": description}


def as_function_call(reply: Json) -> Json:
    """A completion, or a chunk of one, in which the first tool call of each choice is a function call."""
    for choice in reply.get("choices") or ():
        said = choice.get("message") or choice.get("delta") or {}
        for call in said.pop("tool_calls", None) or ():
            if call.get("index", 0) == 0 and "function_call" not in said:
                function = call.get("function") or {}
                said["function_call"] = {
                    name: function[name] for name in function if function[name] is not None
                }
        if choice.get("finish_reason") == "tool_calls":
            choice["finish_reason"] = "function_call"
    return reply


@dataclass
class CustomCalls:
    """Makes calls of custom tools of a reply's calls of the functions that stand for them."""

    names: Collection[str]
    _held: dict[tuple[int, int], Json] = field(default_factory=dict)
    """Of a stream, by choice and call: arguments are no input before they are whole."""

    def whole(self, completion: Json) -> Json:
        for choice in completion.get("choices") or ():
            message = choice.get("message") or {}
            if calls := message.get("tool_calls"):
                message["tool_calls"] = [self._call(call) for call in calls]
        return completion

    def chunk(self, chunk: Json) -> Json:
        for choice in chunk.get("choices") or ():
            delta, index = choice.get("delta") or {}, choice["index"]
            told = [call for call in delta.pop("tool_calls", None) or () if not self._hold(index, call)]
            if choice.get("finish_reason"):
                ended = [key for key in self._held if key[0] == index]
                told += [{"index": key[1], **self._call(self._held.pop(key))} for key in ended]
            if told:
                choice["delta"] = {**delta, "tool_calls": told}
        return chunk

    def _call(self, call: Json) -> Json:
        function = call["function"]
        if function["name"] not in self.names:
            return call
        custom = {"name": function["name"], "input": input_of(function["arguments"])}
        return {"id": call["id"], "type": "custom", "custom": custom}

    def _hold(self, choice: int, call: Json) -> bool:
        """Whether this piece of a call is one to be told later."""
        key, function = (choice, call["index"]), call.get("function") or {}
        if key not in self._held and function.get("name") in self.names:
            self._held[key] = {"id": call["id"], "function": {"name": function["name"], "arguments": ""}}
        if key not in self._held:
            return False
        self._held[key]["function"]["arguments"] += function.get("arguments") or ""
        return True


def _allowed(tools: list[Json], allowed: Json) -> list[Json]:
    names = {_name_of(each) for each in allowed["tools"]}
    for name in names - {_name_of(tool) for tool in tools}:
        raise BadRequest(
            f"tool_choice allows a tool that is not among tools: {name}.",
            param="tool_choice.allowed_tools.tools",
        )
    return [tool for tool in tools if _name_of(tool) in names]


def _as_function(tool: Json) -> Json:
    if tool["type"] != "custom":
        return tool
    custom = tool["custom"]
    return {"type": "function", "function": function_of(custom["name"], custom.get("description"))}


def _name_of(tool: Json) -> str:
    """What a choice knows a tool by: a search, which has no name, by its type."""
    named = tool.get("function") or tool.get("custom")
    return str(named.get("name") if isinstance(named, dict) else tool.get("type"))


def _with_functions(message: Json) -> Json:
    if not any(call.get("type") == "custom" for call in message.get("tool_calls") or ()):
        return message
    calls = [
        {
            "id": call.get("id"),
            "type": "function",
            "function": {
                "name": call["custom"].get("name"),
                "arguments": called_with(str(call["custom"].get("input", ""))),
            },
        }
        if call.get("type") == "custom" and isinstance(call.get("custom"), dict)
        else call
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _with_tool_messages(messages: list[Json]) -> list[Json]:
    """A function's result belongs to the call before it, which old messages give no id."""
    written: list[Json] = []
    call_id = "call_0"
    for number, message in enumerate(messages):
        if call := message.get("function_call"):
            call_id = f"call_{number}"
            rest = {name: value for name, value in message.items() if name != "function_call"}
            calls = [{"id": call_id, "type": "function", "function": call}]
            written.append({"content": None, **rest, "tool_calls": calls})
        elif message.get("role") == "function":
            written.append({"role": "tool", "tool_call_id": call_id, "content": message.get("content") or ""})
        else:
            written.append(message)
    return written
