"""What was asked and answered in the console: kept as a conversation of the API, without the text of documents."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from app.console.answer_html import Cited, Stretch, blocks_of
from app.responses.quoting import requote, unquoted
from retrieval import conversations
from retrieval.scope import Scope
from retrieval.tables import Conversation, new_id

Json = dict[str, Any]

TITLE = "title"
LONGEST_TITLE = 80
TURNS_SENT = 4
"""Of a conversation, to the model: more would crowd the passages out of a small context."""


@dataclass
class Answer:
    """As far as it is written."""

    text: str = ""
    annotations: list[Json] = field(default_factory=list)
    """In the form of Responses, each with the collection that its file is in."""
    unsupported: list[Json] = field(default_factory=list)
    is_refusal: bool = False
    """Nothing bears on the question."""
    is_whole: bool = True
    """False of one that was stopped or lost."""

    def blocks(self) -> list[str]:
        cited = [Cited(each["start_index"], each["end_index"]) for each in self.annotations]
        marked = [Stretch(each["start_index"], each["end_index"]) for each in self.unsupported]
        return blocks_of(self.text, cited, marked)


@dataclass
class Turn:
    question: str
    answer: Answer | None = None
    id: str = field(default_factory=lambda: new_id("msg_"))
    """Of the item that holds the question."""


def begin(session: Session, scope: Scope, question: str) -> Conversation:
    attributes = {TITLE: title_for(question)}
    return conversations.create_conversation(session, scope, attributes=attributes, now=time.time())


def title_for(question: str) -> str:
    """Of a conversation that begins with it."""
    return " ".join(question.split())[:LONGEST_TITLE]


def title_of(conversation: Conversation) -> str:
    return str(conversation.attributes.get(TITLE) or "Untitled")


def keep(session: Session, scope: Scope, conversation_id: str, turn: Turn) -> None:
    """Raises ConversationMissing when it was deleted meanwhile."""
    items = [_message(turn.id, "user", {"type": "input_text", "text": turn.question})]
    if turn.answer is not None:
        said = {
            "type": "output_text",
            "text": turn.answer.text,
            "annotations": turn.answer.annotations,
            "unsupported": turn.answer.unsupported,
            "logprobs": [],
        }
        status = "completed" if turn.answer.is_whole else "incomplete"
        answer = _message(new_id("msg_"), "assistant", said, status)
        items.append({**answer, "refused": turn.answer.is_refusal})
    conversations.own_conversation(session, scope, conversation_id)
    conversations.add_items(session, scope, conversation_id, unquoted(items))


def read(session: Session, scope: Scope, conversation_id: str) -> list[Turn]:
    """With the quotes as the documents hold them now. Raises ConversationMissing."""
    conversations.own_conversation(session, scope, conversation_id)
    items = conversations.all_items(session, scope, conversation_id)
    requote(session, scope, items)
    turns: list[Turn] = []
    for item in items:
        if item.get("type") != "message":
            continue
        if item["role"] == "user":
            turns.append(Turn(_text_of(item), id=item["id"]))
        elif item["role"] == "assistant" and turns:
            turns[-1].answer = _answer_of(item)
    return turns


def before(turns: Sequence[Turn], turn_id: str) -> list[Turn]:
    """Those that came before this one. Raises ItemMissing."""
    for place, turn in enumerate(turns):
        if turn.id == turn_id:
            return list(turns[:place])
    raise conversations.ItemMissing(turn_id)


def said_before(turns: Sequence[Turn]) -> list[Json]:
    """The last of them, as messages."""
    return [message for turn in turns[-TURNS_SENT:] for message in _messages(turn)]


def as_markdown(title: str, turns: Sequence[Turn]) -> str:
    lines = [f"# {title}", ""]
    for turn in turns:
        lines += [f"## {' '.join(turn.question.split())}", ""]
        if turn.answer is None:
            continue
        lines += [turn.answer.text, ""]
        for each in turn.answer.annotations:
            page = f", page {each['page']}" if each.get("page") else ""
            quote = " ".join((each.get("quote") or "(deleted)").split())
            lines.append(f"- [{each['number']}] {each['filename']}{page}: “{quote}”")
        lines.append("")
    return "\n".join(lines)


def _messages(turn: Turn) -> Iterator[Json]:
    if turn.answer is not None and turn.answer.text:
        yield {"role": "user", "content": turn.question}
        yield {"role": "assistant", "content": turn.answer.text}


def _message(item_id: str, role: str, content: Json, status: str = "completed") -> Json:
    return {"id": item_id, "type": "message", "role": role, "status": status, "content": [content]}


def _text_of(item: Json) -> str:
    content = item.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content or () if isinstance(part.get("text"), str))


def _answer_of(item: Json) -> Answer:
    parts = item["content"] if isinstance(item.get("content"), list) else []
    said: Json = next((part for part in parts if part.get("type") == "output_text"), {})
    return Answer(
        text=said.get("text", _text_of(item)),
        # Another client's conversation may hold anything, and tells no collection.
        annotations=[each for each in said.get("annotations", ()) if _is_citation(each)],
        unsupported=said.get("unsupported", []),
        is_refusal=bool(item.get("refused")),
        is_whole=item.get("status") != "incomplete",
    )


def _is_citation(annotation: Json) -> bool:
    places = ("start_index", "end_index", "start_char", "end_char")
    named = (*places, "number", "filename", "file_id", "vector_store_id")
    return annotation.get("type") == "file_citation" and all(name in annotation for name in named)
