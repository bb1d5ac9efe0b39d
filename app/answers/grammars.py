"""Custom tools whose input follows a grammar: one that must be called is not offered; its input is all that is written.

Engines hold what they write to a grammar, but not the one argument of a function that a model may call or not.
"""

import secrets
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from app.answers.functions import called_with
from app.errors import BadRequest

Json = dict[str, Any]

ENGINES_WORD: Mapping[str, str] = {"lark": "grammar", "regex": "regex"}
"""What vLLM's `structured_outputs` calls each of OpenAI's syntaxes."""


@dataclass(frozen=True)
class Written:
    """A call that a request wants, by a grammar. `name` is the function's that stands for the tool."""

    name: str
    description: str | None
    syntax: Literal["lark", "regex"]
    definition: str


def must_be_named(name: str) -> BadRequest:
    return BadRequest(
        f"The input of the tool '{name}' follows a grammar, which holds only where the tool must be called: "
        "name it in tool_choice.",
        param="tool_choice",
    )


def written_of(body: Mapping[str, Any]) -> Written | None:
    """Of a chat's request; None where no tool with a grammar can be called. Raises BadRequest where one may be."""
    custom = [tool["custom"] for tool in body.get("tools") or () if tool["type"] == "custom"]
    by_grammar = {
        tool["name"]: tool for tool in custom if (tool.get("format") or {}).get("type") == "grammar"
    }
    choice = body.get("tool_choice")
    if not by_grammar or choice == "none":
        return None
    if isinstance(choice, dict) and choice["type"] in ("function", "file_search"):
        return None
    if not isinstance(choice, dict) or choice["type"] != "custom":
        raise must_be_named(next(iter(by_grammar)))
    tool = by_grammar.get(choice["custom"]["name"])
    if tool is None:
        return None
    grammar = tool["format"]["grammar"]
    return Written(tool["name"], tool.get("description"), grammar["syntax"], grammar["definition"])


def asking_for(request: Mapping[str, Any], written: Written) -> Json:
    """The request for the input alone. Raises BadRequest."""
    if request.get("structured_outputs") is not None:
        raise BadRequest(
            "structured_outputs says how a text is written, and here a tool's input is.",
            param="structured_outputs",
        )
    # What form a text would have is told of a reply that has none.
    of_calls = ("tool_choice", "parallel_tool_calls", "response_format")
    kept = {name: value for name, value in request.items() if name not in of_calls}
    tools = [tool for tool in kept.pop("tools", None) or () if tool["type"] != "function"]
    if tools:
        kept["tools"] = tools
    says = f"Write the input of the tool {written.name} for what was asked last, and nothing else."
    if written.description:
        says += f" The tool: {written.description}"
    first, *others = kept["messages"]
    if first.get("role") in ("system", "developer") and isinstance(first.get("content"), str):
        kept["messages"] = [{**first, "content": f"{first['content']}\n\n{says}"}, *others]
    else:
        kept["messages"] = [{"role": "system", "content": says}, first, *others]
    kept["structured_outputs"] = {ENGINES_WORD[written.syntax]: written.definition}
    return kept


@dataclass
class WrittenCall:
    """Makes of what the engine wrote a call of the function that stands for the tool."""

    name: str
    _held: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Of a stream, by choice: the arguments are JSON, and so are told when the input is whole."""

    def whole(self, completion: Json) -> Json:
        for choice in completion["choices"]:
            message = choice["message"]
            if isinstance(message.get("content"), str):
                self._call(choice, message, message["content"])
                message["content"] = None
        return completion

    def chunk(self, chunk: Json) -> Json:
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            held = self._held[choice["index"]]
            if isinstance(text := delta.pop("content", None), str):
                held.append(text)
            if choice.get("finish_reason") and held:
                choice["delta"] = delta
                self._call(choice, delta, "".join(held), index=0)
        return chunk

    def _call(self, choice: Json, said: Json, text: str, **place: int) -> None:
        """A reply that was cut keeps its reason: its input is not whole."""
        for of_text in ("annotations", "unsupported", "support"):
            said.pop(of_text, None)
        function = {"name": self.name, "arguments": called_with(text)}
        call = {**place, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
        said["tool_calls"] = [call]
        if choice["finish_reason"] == "stop":
            choice["finish_reason"] = "tool_calls"
