"""What a client may ask of /v1/responses, and what of it goes to the engine: a chat completion's request."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from app.answers.functions import function_of
from app.answers.grammars import Written, asking_for, must_be_named
from app.errors import BadRequest
from app.responses.client_tools import TOOL_SEARCH, ClientTool, function_name, function_of_form
from app.responses.items import Json, none_is_absent
from app.responses.prompts import Prompt
from app.responses.served_tools import Mcp, McpChoice
from app.routes.body import Body, read_tagged
from app.routes.chat_body import FileSearchTool, ServiceTier
from app.routes.vector_stores import Metadata

MOST_TOOLS = 128
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[a-zA-Z0-9_-]+$")]

ELSEWHERE = {
    "web_search": "it needs the internet",
    "computer": "there is no computer to use",
    "code_interpreter": "no code is run here",
    "image_generation": "no images are made here",
    "programmatic_tool_calling": "no code is run here",
}


class Function(Body):
    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    output_schema: dict[str, Any] | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None


class InputFormat(Body):
    type: Literal["text", "grammar"]
    syntax: Literal["lark", "regex"] | None = None
    definition: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _is_whole(self) -> "InputFormat":
        if {self.syntax is not None, self.definition is not None} != {self.type == "grammar"}:
            raise ValueError("syntax and definition go with the type 'grammar'")
        return self


class Custom(Body):
    """A tool that takes any text. The engine sees a function with one argument."""

    type: Literal["custom"]
    name: Name
    description: str | None = None
    format: InputFormat | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None


class LocalShell(Body):
    type: Literal["local_shell"]


class Skill(Body):
    name: str
    description: str
    path: str


class LocalEnvironment(Body):
    """The client's machine: there are no containers here."""

    type: Literal["local"]
    skills: list[Skill] | None = Field(None, max_length=200)


class Shell(Body):
    type: Literal["shell"]
    environment: LocalEnvironment | None = None
    allowed_callers: list[Literal["direct"]] | None = None


class ApplyPatch(Body):
    type: Literal["apply_patch"]
    allowed_callers: list[Literal["direct"]] | None = None


class Namespace(Body):
    type: Literal["namespace"]
    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_-]+$")]
    description: str
    tools: list[Annotated[Function | Custom, Field(discriminator="type")]] = Field(
        min_length=1, max_length=MOST_TOOLS
    )


class ToolSearch(Body):
    """The client finds tools, and gives them as a `tool_search_output`."""

    type: Literal["tool_search"]
    execution: Literal["client"]
    description: str | None = None
    parameters: dict[str, Any] | None = None


TOOLS: dict[str, type[BaseModel]] = {
    "function": Function,
    "custom": Custom,
    "file_search": FileSearchTool,
    "local_shell": LocalShell,
    "shell": Shell,
    "apply_patch": ApplyPatch,
    "namespace": Namespace,
    "tool_search": ToolSearch,
    "mcp": Mcp,
}
Tool = Function | Custom | FileSearchTool | LocalShell | Shell | ApplyPatch | Namespace | ToolSearch | Mcp


class AllowedTools(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[Json] = Field(min_length=1, max_length=MOST_TOOLS)


class NamedTool(Body):
    type: Literal["function", "custom"]
    name: str


class SearchTool(Body):
    type: Literal["file_search"]


class ShellTool(Body):
    type: Literal["shell"]


class PatchTool(Body):
    type: Literal["apply_patch"]


CHOICES: dict[str, type[BaseModel]] = {
    "allowed_tools": AllowedTools,
    "function": NamedTool,
    "custom": NamedTool,
    "file_search": SearchTool,
    "shell": ShellTool,
    "apply_patch": PatchTool,
    "mcp": McpChoice,
}


class TextFormat(Body):
    model_config = ConfigDict(populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, max_length=64, pattern=r"^[a-zA-Z0-9_-]+$")
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> "TextFormat":
        if self.type == "json_schema" and (self.name is None or self.json_schema is None):
            raise ValueError("a json_schema format needs a name and a schema")
        return self


class TextOptions(Body):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(Body):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "detailed"] | None = None
    """The reasoning whole, since nobody here sums it up."""
    generate_summary: Literal["auto", "detailed"] | None = None
    """Its older name."""
    mode: Literal["standard"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None


class ResponseStreamOptions(Body):
    include_obfuscation: bool | None = None


class ConversationId(BaseModel):
    id: str


class CacheOptions(Body):
    mode: Literal["implicit"] = "implicit"
    ttl: Literal["30m"] = "30m"


class Compacting(Body):
    type: Literal["compaction"]
    compact_threshold: int | None = Field(None, ge=1000)


Include = Literal[
    "file_search_call.results",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    # Of tools that are refused: there is nothing to include.
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


def _is_input(sent: Any) -> Any:
    if isinstance(sent, (str, list, type(None))):
        return sent
    raise ValueError("it must be a text or a list of items")


Input = Annotated[Any, AfterValidator(_is_input)]


class Context(Body):
    """What a model is to read: the part of a request that its tokens can be counted of."""

    model: str | None = None
    input: Input = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationId | None = None
    tools: list[Any] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None

    @property
    def conversation_id(self) -> str | None:
        return self.conversation.id if isinstance(self.conversation, ConversationId) else self.conversation


class ResponseBody(Context):
    """Every field that may be sent. What is not here is refused by name."""

    model: str
    background: bool | None = None
    context_management: list[Compacting] | None = Field(None, min_length=1, max_length=1)
    include: list[Include] | None = None
    max_output_tokens: int | None = Field(None, ge=16, le=1_000_000)
    max_tool_calls: int | None = Field(None, ge=1)
    """Of tools of MCP servers. A response's search, which is made once, does not count."""
    metadata: Metadata | None = None
    prompt: Prompt | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory"] | None = None
    prompt_cache_options: CacheOptions | None = None
    safety_identifier: str | None = Field(None, max_length=64)
    service_tier: ServiceTier | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    top_p: float | None = Field(None, ge=0, le=1)
    user: str | None = None

    @property
    def is_stored(self) -> bool:
        return self.store is not False

    @property
    def includes(self) -> frozenset[str]:
        return frozenset(self.include or ())

    @property
    def wants_logprobs(self) -> bool:
        return "message.output_text.logprobs" in self.includes or bool(self.top_logprobs)

    @property
    def wants_summary(self) -> bool:
        options = self.reasoning
        return options is not None and (options.summary or options.generate_summary) is not None


class CompactBody(Body):
    model: str
    input: Input = None
    instructions: str | None = None
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory"] | None = None
    prompt_cache_options: CacheOptions | None = None
    service_tier: ServiceTier | None = None


@dataclass(frozen=True)
class Tooling:
    """What of a request's tools may be used, and whether it must be."""

    searches: tuple[FileSearchTool, ...]
    calls: tuple[ClientTool, ...]
    choice: Any
    """Of the calls, as a chat completion has it; None leaves it open."""
    servers: tuple[Mcp, ...] = ()
    """MCP servers, which tell only when they are asked what tools they have."""
    served_choice: McpChoice | None = None
    """Of those."""

    def written(self) -> Written | None:
        """The call by a grammar that is wanted. Raises BadRequest where one is only allowed."""
        by_grammar = {tool.function["name"]: tool.grammar for tool in self.calls if tool.grammar is not None}
        if not by_grammar or self.choice == "none":
            return None
        if not isinstance(self.choice, dict):
            raise must_be_named(next(iter(by_grammar)))
        return by_grammar.get(self.choice["function"]["name"])


def read_tools(sent: Sequence[Any] | None, *, param: str = "tools") -> list[Tool]:
    """Raises BadRequest that names the place."""
    read: list[Tool] = []
    for place, tool in enumerate(sent or ()):
        at = f"{param}[{place}]"
        kind = str(tool.get("type") if isinstance(tool, dict) else tool)
        for name, why in ELSEWHERE.items():
            if kind.startswith(name):
                raise BadRequest(f"{at}: the tool '{kind[:40]}' is not offered: {why}.", param=f"{at}.type")
        read.append(read_tagged(none_is_absent(tool), TOOLS, at))  # type: ignore[arg-type]
    names = [tool.function["name"] for tool in _calls(read)]
    if len(set(names)) < len(names):
        raise BadRequest("Two tools have one name.", param="tools")
    labels = [tool.server_label for tool in read if isinstance(tool, Mcp)]
    if len(set(labels)) < len(labels):
        raise BadRequest("Two MCP servers have one server_label.", param="tools")
    return read


def tooling(tools: Sequence[Tool], choice: Any) -> Tooling:
    """`choice` is the request's tool_choice. Raises BadRequest."""
    searches = tuple(tool for tool in tools if isinstance(tool, FileSearchTool))
    calls = tuple(_calls(tools))
    servers = tuple(tool for tool in tools if isinstance(tool, Mcp))
    if choice is None:
        return Tooling(searches, calls, None, servers)
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise BadRequest("tool_choice must be none, auto, required or an object.", param="tool_choice")
        if choice == "none":
            return Tooling((), calls, "none")  # Nor are servers asked for what cannot be called.
        if choice == "required" and not tools:
            raise BadRequest("tool_choice is required, but there are no tools.", param="tool_choice")
        return Tooling(searches, calls, _mode(choice, searches), servers)
    read = read_tagged(choice, CHOICES, "tool_choice")
    if isinstance(read, SearchTool):
        if not searches:
            raise _unknown({"type": "file_search"})
        return Tooling(searches, calls, "none")
    if isinstance(read, McpChoice):
        if all(tool.server_label != read.server_label for tool in servers):
            raise _unknown(read.model_dump())
        return Tooling(searches, calls, None, servers, read)
    if isinstance(read, AllowedTools):
        return _allowed(read, searches, calls, servers)
    chosen = read.model_dump()
    for tool in calls:
        if _is_meant(tool, chosen["type"], chosen.get("name")):
            name = tool.function["name"]
            return Tooling(searches, calls, {"type": "function", "function": {"name": name}}, servers)
    raise _unknown(chosen)


def _allowed(
    choice: AllowedTools,
    searches: tuple[FileSearchTool, ...],
    calls: tuple[ClientTool, ...],
    servers: tuple[Mcp, ...],
) -> Tooling:
    """What of these the choice allows. Raises BadRequest."""
    wanted = [(each.get("type"), each.get("name")) for each in choice.tools if each.get("type") != "mcp"]
    labels = [each.get("server_label") for each in choice.tools if each.get("type") == "mcp"]
    for label in labels:
        if all(tool.server_label != label for tool in servers):
            raise _unknown({"type": "mcp", "server_label": label})
    for kind, name in wanted:
        if not any(_is_meant(tool, kind, name) for tool in calls) and not (
            kind == "file_search" and searches
        ):
            raise _unknown({"type": kind, "name": name})
    searches = searches if "file_search" in dict(wanted) else ()
    calls = tuple(tool for tool in calls if any(_is_meant(tool, *each) for each in wanted))
    servers = tuple(tool for tool in servers if tool.server_label in labels)
    return Tooling(searches, calls, _mode(choice.mode, searches), servers)


def _is_meant(tool: ClientTool, kind: Any, name: Any) -> bool:
    """A tool in a namespace goes by its own name, or by that which the engine is shown."""
    if tool.kind != kind:
        return False
    return name in (tool.name, tool.function["name"]) if tool.is_named else True


def chat_request(body: Context, tools: Tooling, messages: list[Json]) -> Json:
    """The engine's request, without what only this surface knows."""
    request: Json = {"model": body.model, "messages": messages}
    if tools.calls:
        request["tools"] = [{"type": "function", "function": tool.function} for tool in tools.calls]
        if tools.choice is not None:
            request["tool_choice"] = tools.choice
        if body.parallel_tool_calls is not None:
            request["parallel_tool_calls"] = body.parallel_tool_calls
    if body.text is not None and body.text.format is not None and body.text.format.type != "text":
        request["response_format"] = _response_format(body.text.format)
    if body.text is not None and body.text.verbosity is not None:
        request["verbosity"] = body.text.verbosity
    if body.reasoning is not None and body.reasoning.effort is not None:
        request["reasoning_effort"] = body.reasoning.effort
    if isinstance(body, ResponseBody):
        request |= _sampling(body)
    written = tools.written()
    return request if written is None else asking_for(request, written)


def _sampling(body: ResponseBody) -> Json:
    passed: Json = {
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "user": body.user,
        "prompt_cache_key": body.prompt_cache_key,
        "safety_identifier": body.safety_identifier,
    }
    if body.wants_logprobs:
        passed |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    return {name: value for name, value in passed.items() if value is not None}


def _mode(mode: str, searches: Sequence[FileSearchTool]) -> str:
    # Documents are searched before the model is asked, and that is a tool used.
    return "auto" if searches else mode


def _calls(tools: Sequence[Tool]) -> Iterator[ClientTool]:
    for tool in tools:
        match tool:
            case Function() | Custom():
                yield _named(tool, None)
            case Namespace():
                for inner in tool.tools:
                    yield _named(inner, tool)
            case LocalShell() | ApplyPatch():
                yield ClientTool(tool.type, tool.type, function_of_form(tool.type))
            case Shell():
                skills = (tool.environment.skills if tool.environment else None) or ()
                says = "".join(f"\nSkill {each.name} in {each.path}: {each.description}" for each in skills)
                yield ClientTool(tool.type, tool.type, function_of_form(tool.type, says=says))
            case ToolSearch():
                function = {
                    "name": TOOL_SEARCH,
                    "description": tool.description or "Finds more tools.",
                    "parameters": tool.parameters or {"type": "object", "properties": {}},
                }
                yield ClientTool(tool.type, TOOL_SEARCH, function)


def _named(tool: Function | Custom, namespace: Namespace | None) -> ClientTool:
    told = [namespace.description] if namespace is not None else []
    told += [] if tool.description is None else [tool.description]
    if isinstance(tool, Custom):
        function = function_of(tool.name, None)
    else:
        ours = {"type", "description", "defer_loading", "allowed_callers", "output_schema"}
        function = tool.model_dump(exclude_none=True, exclude=ours)
        if tool.output_schema is not None:
            told.append(f"Returns JSON of this schema: {json.dumps(tool.output_schema)}")
    within = None if namespace is None else namespace.name
    function |= {"name": function_name(tool.name, within)}
    if told:
        function["description"] = "\n".join(told)
    grammar = None
    form = tool.format if isinstance(tool, Custom) else None
    if form is not None and form.syntax and form.definition:
        grammar = Written(function["name"], function.get("description"), form.syntax, form.definition)
    return ClientTool(tool.type, tool.name, function, within, grammar)


def _response_format(wanted: TextFormat) -> Json:
    if wanted.type == "json_object":
        return {"type": "json_object"}
    schema = {
        "name": wanted.name,
        "description": wanted.description,
        "schema": wanted.json_schema,
        "strict": wanted.strict,
    }
    return {
        "type": "json_schema",
        "json_schema": {name: value for name, value in schema.items() if value is not None},
    }


def _unknown(choice: Json) -> BadRequest:
    return BadRequest(f"tool_choice names a tool that is not among tools: {choice}.", param="tool_choice")
