"""Reads what a response is asked: its items, what it goes on from, its tools, and the messages that come of them."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy.orm import Session

from app.access.retention import must_not_keep
from app.answers.attached import uploaded_text
from app.answers.prompt import text_of
from app.errors import BadRequest
from app.responses.items import Json, read_input
from app.responses.prompts import filled
from app.responses.request import Context, ResponseBody, Tool, Tooling, read_tools, tooling
from app.responses.served_tools import Mcp, approvals
from app.responses.tool_servers import Access, access_to
from app.responses.translation import file_ids, last_question, messages_of
from app.services import Services
from ingest.sealing import SealBroken
from retrieval import catalog, conversations, responses
from retrieval.scope import Scope
from retrieval.tables import Blob

MOST_IMAGE_BYTES = 20 * 1024 * 1024


@dataclass(frozen=True)
class Asked:
    """A request that was read: it can be answered, as far as can be told without asking the engine."""

    body: Context
    tools: tuple[Tool, ...]
    tooling: Tooling
    past: tuple[Json, ...]
    """Items that it goes on from."""
    items: tuple[Json, ...]
    """Its own."""
    messages: tuple[Json, ...]
    attached: Mapping[str, str]
    """Images and texts of files, by file id."""


def read_asked(
    services: Services, scope: Scope, body: Context, *, kept: Sequence[Json] | None = None
) -> Asked:
    """Blocks. `kept` are the items of a request that was stored. Raises BadRequest, NotFound, PreviousMissing."""
    tools = tuple(read_tools(body.tools))
    sent = list(kept) if kept is not None else read_input(body.input)
    with services.database.read() as session:
        past = _past(session, scope, body)
        items = resolved(session, scope, sent, param="input")
        _refuse_twice(body, past, items)
        attached = _attached(services, session, scope, [*past, *items])
    chosen = tooling([*tools, *read_tools(_found(body, [*past, *items]), param="input")], body.tool_choice)
    chosen.written()  # What cannot be written by a grammar is refused before a reply begins.
    if chosen.servers:
        # What a server is told is kept there, or not, as its owner likes.
        must_not_keep(scope, "tools")
    _check_servers(services, body, tools, past, items)
    return _asked(services, scope, body, tools, chosen, past, items, attached)


def _check_servers(
    services: Services, body: Context, tools: Sequence[Tool], past: Sequence[Json], items: Sequence[Json]
) -> None:
    """Raises BadRequest."""
    for place, tool in enumerate(tools):
        if isinstance(tool, Mcp):
            access_of(services, tool, at=f"tools[{place}]")
            if (tool.authorization or tool.headers) and isinstance(body, ResponseBody) and body.background:
                raise BadRequest(
                    f"tools[{place}]: a background response is kept, and secrets are not: leave authorization and "
                    "headers out. The owner can put a token into the setting tools.mcp_tokens.",
                    param=f"tools[{place}].authorization",
                )
    try:
        approvals(past, items)
    except KeyError as error:
        raise BadRequest(
            f"No mcp_approval_request found with the id '{error.args[0]}'.", param="input"
        ) from error


def access_of(services: Services, tool: Mcp, *, at: str) -> Access:
    """Raises BadRequest."""
    return access_to(
        services.settings,
        tool.server_label,
        url=tool.server_url,
        authorization=tool.authorization,
        headers=tool.headers,
        at=at,
    )


def _found(body: Context, items: Sequence[Json]) -> list[Any]:
    """Tools that the client found for the model's `tool_search`, each once."""
    found: list[Any] = []
    for item in items:
        if item["type"] == "tool_search_output" and item.get("execution") == "client":
            for tool in item.get("tools") or ():
                loaded = {**tool, "defer_loading": None} if isinstance(tool, dict) else tool
                if loaded not in found and tool not in (body.tools or ()):
                    found.append(loaded)
    return found


def again(services: Services, scope: Scope, asked: Asked, *, past: Sequence[Json]) -> Asked:
    """The same request, going on from something else."""
    return _asked(services, scope, asked.body, asked.tools, asked.tooling, past, asked.items, asked.attached)


def _asked(
    services: Services,
    scope: Scope,
    body: Context,
    tools: Sequence[Tool],
    chosen: Tooling,
    past: Sequence[Json],
    items: Sequence[Json],
    attached: Mapping[str, str],
) -> Asked:
    whole = [*past, *items]
    is_of_turn = body.reasoning is not None and body.reasoning.context == "current_turn"
    messages = messages_of(
        whole,
        instructions=_instructions(services, body),
        opened=lambda text: opened(services, scope, text),
        attached=attached,
        reasoning_from=last_question(whole) if is_of_turn else 0,
        has_servers=bool(chosen.servers),
    )
    if not messages:
        raise BadRequest("There is nothing to answer: send input.", param="input")
    return Asked(body, tuple(tools), chosen, tuple(past), tuple(items), tuple(messages), attached)


def _instructions(services: Services, body: Context) -> str | None:
    """Those of the template that is named, if one is, and the request's own after them."""
    prompt = body.prompt if isinstance(body, ResponseBody) else None
    if prompt is None:
        return body.instructions
    template = filled(prompt, services.settings.chat.prompts_folder)
    return template if body.instructions is None else f"{template}\n\n{body.instructions}"


def messages_text(messages: Sequence[Json]) -> list[str]:
    """What of each is counted as tokens."""
    return [_shown_text(message) for message in messages]


def sealed(services: Services, scope: Scope, text: str) -> str:
    """For the client to keep: only this server opens it, and only for this tenant."""
    return base64.b64encode(services.sealer.seal(text, owner=scope.tenant_id)).decode()


def opened(services: Services, scope: Scope, text: str) -> str:
    """Raises BadRequest."""
    try:
        return services.sealer.open(base64.b64decode(text, validate=True), owner=scope.tenant_id)
    except (SealBroken, binascii.Error, ValueError) as error:
        raise BadRequest(
            "encrypted_content was not made by this server, or was changed since.", param="input"
        ) from error


def _past(session: Session, scope: Scope, body: Context) -> list[Json]:
    if body.previous_response_id is not None:
        return responses.said_before(session, scope, body.previous_response_id)
    if body.conversation_id is not None:
        return conversations.all_items(session, scope, body.conversation_id)
    return []


def resolved(session: Session, scope: Scope, sent: Sequence[Json], *, param: str) -> list[Json]:
    """Each reference replaced by what it refers to."""
    wanted = [item["id"] for item in sent if item["type"] == "item_reference"]
    found = responses.find_items(session, scope, wanted) if wanted else {}
    items = []
    for place, item in enumerate(sent):
        if item["type"] != "item_reference":
            items.append(item)
            continue
        if item["id"] not in found:
            raise BadRequest(f"Item with id '{item['id']}' not found.", param=f"{param}[{place}].id")
        items.append(found[item["id"]])
    return items


def _refuse_twice(body: Context, past: Sequence[Json], items: Sequence[Json]) -> None:
    if body.conversation_id is None:
        return
    known = {item["id"] for item in past}
    for place, item in enumerate(items):
        if item["id"] in known:
            raise BadRequest(
                f"The conversation has an item with the id '{item['id']}' already.",
                param=f"input[{place}].id",
            )
        known.add(item["id"])


def _attached(services: Services, session: Session, scope: Scope, items: Sequence[Json]) -> dict[str, str]:
    """By file id: images as data URLs, other files as their text. Raises BadRequest, FileMissing."""
    shown = {}
    for file_id in file_ids(items, "input_image"):
        file = catalog.get_file(session, scope, file_id)
        if not file.media_type.startswith("image/") or file.size_bytes > MOST_IMAGE_BYTES:
            raise BadRequest(
                f"File '{file_id}' is no image of at most {MOST_IMAGE_BYTES} bytes.", param="input"
            )
        with services.blobs.content(session, session.get_one(Blob, file.blob_id)).open() as image:
            content = image.read()
        shown[file_id] = f"data:{file.media_type};base64,{base64.b64encode(content).decode()}"
    for file_id in file_ids(items, "input_file"):
        shown[file_id] = uploaded_text(session, scope, file_id, param="input")
    return shown


def _shown_text(message: Json) -> str:
    text = text_of(message.get("content"))
    return f"{text}{orjson.dumps(message['tool_calls']).decode()}" if message.get("tool_calls") else text
