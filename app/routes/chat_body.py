"""What may be asked of /v1/chat/completions and /v1/completions, and what of it only this server knows."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.errors import BadRequest
from app.routes.body import (
    PASSED,
    Body,
    Unchecked,
    UncheckedObject,
    any_of,
    json_of,
    read_tagged,
    schema_of,
)
from app.routes.filters import FilterBody
from app.routes.vector_stores import Metadata, RankingOptions

ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast", "batch"]
"""OpenAI's, and ours for the lines of a batch."""


def _refused(why: str) -> BeforeValidator:
    def check(sent: Any) -> None:
        if sent is not None:
            raise PydanticCustomError("refused", why)

    return BeforeValidator(check)


class StreamOptions(BaseModel):
    """Engines know more of them."""

    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Sampling(Body):
    """Every field that may be sent, with OpenAI's ranges. What is not here is refused by name."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=128)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    min_tokens: int | None = Field(None, ge=0, le=1_000_000)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=64)] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    structured_outputs: Unchecked = None
    logit_bias: Annotated[dict[str, float], Field(max_length=1024)] | None = None
    seed: int | None = None
    user: str | None = None
    service_tier: ServiceTier | None = None


class SaidAudio(Body):
    """A spoken answer, which its engine knows by this id."""

    id: str


class CustomVoice(Body):
    id: str


class AudioOptions(Body):
    """Voices are the engine's affair."""

    voice: str | CustomVoice
    format: Literal["wav", "aac", "mp3", "flac", "opus", "pcm16"]


class ChatMessage(BaseModel):
    """The engine knows which parts its model reads; those of the type `file` become text here."""

    model_config = ConfigDict(extra="allow", json_schema_extra=PASSED)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    tool_calls: list[UncheckedObject] | None = None
    audio: SaidAudio | None = None


class FilePart(Body):
    file_id: str | None = None
    file_data: str | None = None
    filename: str | None = None


class ToolName(Body):
    name: str


class ChatBody(Sampling):
    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    response_format: UncheckedObject | None = None
    tools: list[Any] | None = Field(None, max_length=128)
    """Each is one of TOOLS."""
    tool_choice: Any = None
    """A word, or one of CHOICES."""
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[UncheckedObject], Field(max_length=128)] | None = None
    function_call: Literal["none", "auto"] | ToolName | None = None
    metadata: Metadata | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    moderation: Annotated[None, _refused("this server has no moderation model, remove it")] = None
    audio: AudioOptions | None = None
    prediction: Unchecked = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Unchecked = None
    prompt_cache_retention: str | None = None
    reasoning_effort: str | None = None
    safety_identifier: Annotated[str, Field(max_length=64)] | None = None
    store: bool | None = None
    verbosity: str | None = None
    web_search_options: Annotated[None, _refused("nothing is searched outside this server, remove it")] = None
    vector_store_ids: Annotated[list[str], Field(max_length=100)] | None = None


class CompletionBody(Sampling):
    prompt: str | list[str] | list[int] | list[list[int]]
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = Field(None, ge=0, le=128)
    max_tokens: int | None = Field(None, ge=0, le=1_000_000)
    logprobs: int | None = Field(None, ge=0, le=5)


class FunctionTool(BaseModel):
    """The engine knows what else a function may be."""

    model_config = ConfigDict(extra="allow", json_schema_extra=PASSED)

    type: Literal["function"]
    function: UncheckedObject


class Grammar(Body):
    syntax: Literal["lark", "regex"]
    definition: str = Field(min_length=1)


class CustomFormat(Body):
    type: Literal["text", "grammar"]
    grammar: Grammar | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> "CustomFormat":
        if (self.type == "grammar") != (self.grammar is not None):
            raise ValueError("a grammar goes with the type 'grammar'")
        return self


class CustomTool(Body):
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    format: CustomFormat | None = None


class ChatCustomTool(Body):
    """A tool that takes any text. The engine sees a function with one argument."""

    type: Literal["custom"]
    custom: CustomTool


class FileSearchTool(Body):
    type: Literal["file_search"]
    vector_store_ids: list[str] = Field(min_length=1, max_length=100)
    max_num_results: int | None = Field(None, ge=1, le=50)
    filters: FilterBody | None = None
    ranking_options: RankingOptions | None = None


TOOLS: Mapping[str, type[BaseModel]] = {
    "function": FunctionTool,
    "custom": ChatCustomTool,
    "file_search": FileSearchTool,
}


class FunctionChoice(Body):
    type: Literal["function"]
    function: ToolName


class CustomChoice(Body):
    type: Literal["custom"]
    custom: ToolName


class FileSearchChoice(Body):
    """What is searched for is searched before the model is asked."""

    type: Literal["file_search"]


class Allowed(Body):
    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]] = Field(min_length=1, max_length=128)


class AllowedChoice(Body):
    type: Literal["allowed_tools"]
    allowed_tools: Allowed


CHOICES: Mapping[str, type[BaseModel]] = {
    "function": FunctionChoice,
    "custom": CustomChoice,
    "file_search": FileSearchChoice,
    "allowed_tools": AllowedChoice,
}
CHOICE_WORDS = ("none", "auto", "required")


def check_tools(body: ChatBody) -> list[FileSearchTool]:
    """The searches among the tools. Raises BadRequest that names the place."""
    read = [read_tagged(tool, TOOLS, f"tools[{place}]") for place, tool in enumerate(body.tools or ())]
    choice = body.tool_choice
    if isinstance(choice, str):
        if choice not in CHOICE_WORDS:
            raise BadRequest(
                f"tool_choice must be {', '.join(CHOICE_WORDS)} or an object.", param="tool_choice"
            )
    elif choice is not None:
        read_tagged(choice, CHOICES, "tool_choice")
    return [tool for tool in read if isinstance(tool, FileSearchTool)]


def described() -> dict[str, Any]:
    """A chat's body in the API's description."""
    schema = schema_of(ChatBody)
    schema["properties"] |= {
        "tools": {"anyOf": [{"type": "array", "items": any_of(TOOLS.values())}, {"type": "null"}]},
        "tool_choice": {
            "anyOf": [
                {"type": "string", "enum": list(CHOICE_WORDS)},
                *(schema_of(form) for form in CHOICES.values()),
                {"type": "null"},
            ]
        },
    }
    return json_of(schema)
