"""Items of responses and conversations: read from what clients send, in the one form in which they are kept.

What is OpenAI's and cannot be here, such as a web search, is refused by its place: `input[3].type`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.answers.attached import file_text
from app.errors import BadRequest
from app.routes.body import UncheckedObject, read_tagged
from retrieval.tables import new_id

Json = dict[str, Any]

MOST_ITEMS = 10_000
MOST_TEXT_CHARS = 10_485_760
"""OpenAI's own bound, of one text."""
ID = r"^[A-Za-z0-9_.:-]{1,64}$"

Text = Annotated[str, Field(max_length=MOST_TEXT_CHARS)]


def none_is_absent(sent: Any) -> Any:
    """Clients send back what they got, with null for what was not there."""
    if isinstance(sent, dict):
        return {name: value for name, value in sent.items() if value is not None}
    return sent


class Sent(BaseModel):
    """A piece of an item. What else is in it was an answer's, and is made anew."""

    model_config = ConfigDict(extra="ignore")


class CacheBreakpoint(Sent):
    """A hint: engines here find the prompts that they know by themselves."""

    mode: str | None = None


class InputText(Sent):
    type: Literal["input_text"]
    text: Text
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class InputImage(Sent):
    type: Literal["input_image"]
    image_url: Annotated[str, Field(max_length=20_971_520)] | None = None
    file_id: str | None = None
    detail: Literal["low", "high", "auto", "original"] = "auto"
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class InputFile(Sent):
    """Its text: of an uploaded file, as it was parsed for a vector store, or sent along."""

    type: Literal["input_file"]
    file_id: str | None = None
    filename: str | None = Field(None, max_length=1000)
    file_data: Annotated[str, Field(max_length=73_400_320)] | None = None
    file_url: str | None = None
    detail: str | None = None
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class OutputText(Sent):
    type: Literal["output_text"]
    text: Text
    annotations: list[UncheckedObject] = []
    logprobs: list[UncheckedObject] = []


class Refusal(Sent):
    type: Literal["refusal"]
    refusal: Text


class Message(Sent):
    type: Literal["message"] = "message"
    id: str | None = Field(None, pattern=ID)
    role: Literal["user", "assistant", "system", "developer"]
    content: Text | list[Json]
    status: Literal["in_progress", "completed", "incomplete"] = "completed"
    phase: Literal["commentary", "final_answer"] | None = None


class Caller(Sent):
    type: Literal["direct", "program"]
    caller_id: str | None = None


class FunctionCall(Sent):
    type: Literal["function_call"]
    id: str | None = Field(None, pattern=ID)
    call_id: str = Field(min_length=1, max_length=64)
    name: str = Field(min_length=1, max_length=128)
    arguments: Text
    namespace: str | None = Field(None, max_length=64)
    caller: Caller | None = None
    status: Literal["in_progress", "completed", "incomplete"] = "completed"


class FunctionCallOutput(Sent):
    type: Literal["function_call_output"]
    id: str | None = Field(None, pattern=ID)
    call_id: str = Field(min_length=1, max_length=64)
    output: Text | list[Json]
    name: str | None = Field(None, max_length=128)
    namespace: str | None = Field(None, max_length=64)
    caller: Caller | None = None
    status: Literal["in_progress", "completed", "incomplete"] = "completed"


class CustomToolCall(Sent):
    type: Literal["custom_tool_call"]
    id: str | None = Field(None, pattern=ID)
    call_id: str = Field(min_length=1, max_length=64)
    name: str = Field(min_length=1, max_length=128)
    input: Text
    namespace: str | None = Field(None, max_length=64)
    caller: Caller | None = None
    status: Literal["in_progress", "completed", "incomplete"] = "completed"


class CustomToolCallOutput(Sent):
    type: Literal["custom_tool_call_output"]
    id: str | None = Field(None, pattern=ID)
    call_id: str = Field(min_length=1, max_length=64)
    output: Text | list[Json]
    caller: Caller | None = None
    status: Literal["in_progress", "completed", "incomplete"] = "completed"


class SearchResult(BaseModel):
    model_config = ConfigDict(extra="allow")

    file_id: str | None = None
    filename: str | None = None
    score: float | None = None
    text: str | None = None
    attributes: Json | None = None


class FileSearchCall(Sent):
    type: Literal["file_search_call"]
    id: str | None = Field(None, pattern=ID)
    status: Literal["in_progress", "searching", "completed", "incomplete", "failed"] = "completed"
    queries: list[Text]
    results: list[SearchResult] | None = None


class Summary(Sent):
    type: Literal["summary_text"]
    text: Text


class ReasoningText(Sent):
    type: Literal["reasoning_text"]
    text: Text


class Reasoning(Sent):
    type: Literal["reasoning"]
    id: str | None = Field(None, pattern=ID)
    summary: list[Summary] = []
    content: list[ReasoningText] | None = None
    encrypted_content: Text | None = None
    status: Literal["in_progress", "completed", "incomplete"] = "completed"


class Compaction(Sent):
    type: Literal["compaction"]
    id: str | None = Field(None, pattern=ID)
    encrypted_content: Annotated[str, Field(max_length=20_971_520)]


class ListedTool(Sent):
    name: str = Field(max_length=256)
    description: Text | None = None
    input_schema: UncheckedObject
    annotations: UncheckedObject | None = None


class McpListTools(Sent):
    type: Literal["mcp_list_tools"]
    id: str | None = Field(None, pattern=ID)
    server_label: str = Field(max_length=64)
    tools: list[ListedTool] = Field(max_length=1_000)
    error: Text | None = None


class McpCall(Sent):
    type: Literal["mcp_call"]
    id: str | None = Field(None, pattern=ID)
    server_label: str = Field(max_length=64)
    name: str = Field(max_length=256)
    arguments: Text
    output: Text | None = None
    error: UncheckedObject | None = None
    status: Literal["in_progress", "completed", "incomplete", "calling", "failed"] = "completed"
    approval_request_id: str | None = Field(None, pattern=ID)


class McpApprovalRequest(Sent):
    type: Literal["mcp_approval_request"]
    id: str | None = Field(None, pattern=ID)
    server_label: str = Field(max_length=64)
    name: str = Field(max_length=256)
    arguments: Text


class McpApprovalResponse(Sent):
    type: Literal["mcp_approval_response"]
    id: str | None = Field(None, pattern=ID)
    approval_request_id: str = Field(pattern=ID)
    approve: Annotated[bool, Field(strict=True)]
    reason: Text | None = None


class Foreign(BaseModel):
    """What another service's tool did: kept as it came, and shown to the model as JSON."""

    model_config = ConfigDict(extra="allow")

    type: str
    id: str | None = Field(None, pattern=ID)


class Reference(Sent):
    """Another item by its id, which the caller puts in its place."""

    type: Literal["item_reference"]
    id: str = Field(pattern=ID)


KINDS: dict[str, type[Sent]] = {
    "message": Message,
    "function_call": FunctionCall,
    "function_call_output": FunctionCallOutput,
    "custom_tool_call": CustomToolCall,
    "custom_tool_call_output": CustomToolCallOutput,
    "file_search_call": FileSearchCall,
    "reasoning": Reasoning,
    "compaction": Compaction,
    "mcp_list_tools": McpListTools,
    "mcp_call": McpCall,
    "mcp_approval_request": McpApprovalRequest,
    "mcp_approval_response": McpApprovalResponse,
    "item_reference": Reference,
}
FOREIGN = (
    "additional_tools",
    "apply_patch_call",
    "apply_patch_call_output",
    "code_interpreter_call",
    "computer_call",
    "computer_call_output",
    "image_generation_call",
    "local_shell_call",
    "local_shell_call_output",
    "program",
    "program_output",
    "shell_call",
    "shell_call_output",
    "tool_search_call",
    "tool_search_output",
    "web_search_call",
)
READ: dict[str, type[BaseModel]] = {**KINDS, **dict.fromkeys(FOREIGN, Foreign)}
INPUT_PARTS: dict[str, type[Sent]] = {
    "input_text": InputText,
    "input_image": InputImage,
    "input_file": InputFile,
}
OUTPUT_PARTS: dict[str, type[Sent]] = {"output_text": OutputText, "refusal": Refusal}
PREFIXES = {
    "message": "msg_",
    "function_call": "fc_",
    "function_call_output": "fco_",
    "custom_tool_call": "ctc_",
    "custom_tool_call_output": "ctco_",
    "file_search_call": "fs_",
    "reasoning": "rs_",
    "compaction": "cmp_",
    "mcp_list_tools": "mcpl_",
    "mcp_call": "mcp_",
    "mcp_approval_request": "mcpr_",
    "mcp_approval_response": "mcpa_",
}


def read_input(sent: str | Sequence[Any] | None, *, param: str = "input") -> list[Json]:
    """Items in the form in which they are kept, each with an id; references as they are. Raises BadRequest."""
    if sent is None:
        return []
    if isinstance(sent, str):
        sent = [{"role": "user", "content": sent}]
    if len(sent) > MOST_ITEMS:
        raise BadRequest(f"{param} has {len(sent)} items; {MOST_ITEMS} are the most.", param=param)
    return [_read(item, f"{param}[{place}]") for place, item in enumerate(sent)]


def item_id(kind: str) -> str:
    return new_id(PREFIXES.get(kind, "item_"))


def _read(sent: Any, param: str) -> Json:
    sent = none_is_absent(sent)
    kind = None
    if isinstance(sent, dict) and "type" not in sent:
        kind = "item_reference" if "role" not in sent and "id" in sent else "message"
    read = read_tagged(sent, READ, param, kind=kind)
    item = read.model_dump(exclude_none=True)
    if isinstance(read, Message):
        item["content"] = _content(read, f"{param}.content")
    elif isinstance(read, (FunctionCallOutput, CustomToolCallOutput)) and not isinstance(read.output, str):
        parts = [
            read_tagged(none_is_absent(part), INPUT_PARTS, f"{param}.output[{place}]")
            for place, part in enumerate(read.output)
        ]
        item["output"] = [_checked(part, f"{param}.output[{place}]") for place, part in enumerate(parts)]
    elif isinstance(read, McpApprovalResponse):
        # OpenAI's document has it among what such an item must have, under both names.
        item["request_id"] = read.approval_request_id
    item.setdefault("id", item_id(item["type"]))
    return item


def _content(message: Message, param: str) -> list[Json]:
    says = message.role == "assistant"
    if isinstance(message.content, str):
        if says:
            return [{"type": "output_text", "text": message.content, "annotations": [], "logprobs": []}]
        return [{"type": "input_text", "text": message.content}]
    shaped = []
    for place, sent in enumerate(message.content):
        where, told = f"{param}[{place}]", none_is_absent(sent)
        if says and isinstance(told, dict) and told.get("type") == "input_text":
            told["type"] = "output_text"
        part = read_tagged(told, OUTPUT_PARTS if says else INPUT_PARTS, where)
        shaped.append(_checked(part, where))
    return shaped


def _checked(part: Sent, param: str) -> Json:
    if isinstance(part, InputImage):
        if (part.image_url is None) == (part.file_id is None):
            raise BadRequest(f"{param} needs either image_url or file_id.", param=param)
        if part.image_url is not None and not part.image_url.startswith("data:image/"):
            raise BadRequest(
                f"{param}.image_url must be a data URL: nothing is fetched from the network here. "
                "Or upload the image and send its file_id.",
                param=f"{param}.image_url",
            )
    if isinstance(part, InputFile):
        if part.file_url is not None:
            raise BadRequest(
                f"{param}.file_url: nothing is fetched from the network here. Upload the file and send its file_id.",
                param=f"{param}.file_url",
            )
        if (part.file_data is None) == (part.file_id is None):
            raise BadRequest(f"{param} needs either file_id or file_data.", param=param)
        if part.file_data is not None:
            file_text(part.file_data, f"{param}.file_data")
    return part.model_dump(exclude_none=True)
