"""Writes a response from the chunks of a chat completion: the object, and the events that build it up. Pure."""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from app.answers.functions import input_of
from app.responses.client_tools import ClientTool, NotOfItsForm, item_of
from app.responses.items import Json, item_id
from app.responses.served_tools import ServedTool

TOLD = ("search_queries", "search_question", "rewrite_failed", "evidence", "not_covered", "grounded")
"""What a grounded chat says of itself, which stands beside the response's own fields."""
OBFUSCATED_CHARS = 32
"""With what is added, deltas are as long as a multiple of this: their lengths tell nothing of the words."""


@dataclass
class _Open:
    """An item that is being written."""

    item: Json
    output_index: int
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True)
class ServedCall:
    """A call that the model made of a server's tool."""

    tool: ServedTool
    opened: _Open
    function: str
    """The tool's name as the engine knows it."""

    @property
    def arguments(self) -> str:
        return self.opened.text

    @property
    def call_id(self) -> str:
        return str(self.opened.item["id"])


@dataclass(frozen=True)
class Wishes:
    """What the client wants to see, of what a model says."""

    logprobs: bool = False
    summary: bool = False
    obfuscation: bool = False
    tools: Mapping[str, ClientTool] = field(default_factory=dict)
    """By the names of the functions that stand for them."""
    seal: Callable[[str], str] | None = None
    """For reasoning that a client keeps itself."""


class ResponseWriter:
    """One response while it is written. Each method gives the events that it leads to, in their order."""

    def __init__(self, response: Json, wishes: Wishes, *, first_event: int = 0) -> None:
        self.response = response
        self._wishes = wishes
        self._number = first_event
        self._output: list[_Open] = []
        self._message: _Open | None = None
        self._part: Json | None = None
        self._reasoning: _Open | None = None
        self._calls: dict[int, _Open] = {}
        self._held: list[tuple[ClientTool, _Open]] = []
        """Calls that are no item before they are whole."""
        self._offered: Mapping[str, ServedTool] = {}
        """Tools of servers, by the names of the functions that stand for them."""
        self._served: list[ServedCall] = []
        """Calls of these in this turn."""
        self._finish_reason: str | None = None
        self._spent: list[Json] = []
        """What the engine was asked before this turn."""
        self._turn_usage: Json = {}

    def created(self, *, queued: bool = False) -> list[Json]:
        events = [self._event("response.created", response=self._snapshot())]
        return [*events, self._event("response.queued", response=self._snapshot())] if queued else events

    def begun(self) -> list[Json]:
        self.response["status"] = "in_progress"
        return [self._event("response.in_progress", response=self._snapshot())]

    def compacted(self, item: Json, usage: Json) -> list[Json]:
        """What came before was summed up first."""
        self._spent.append(usage)
        opened = _Open({**item, "status": "completed"}, output_index=len(self._output))
        self._output.append(opened)
        return [self._added(opened), self._done(opened)]

    def searched(self, queries: Sequence[str], results: Sequence[Json], *, shown: bool) -> list[Json]:
        """The search that came before the model was asked."""
        call: Json = {"type": "file_search_call", "status": "in_progress", "queries": [], "results": None}
        opened = self._open(call)
        events = [self._added(opened)]
        events += [
            self._about(opened, f"response.file_search_call.{step}")
            for step in ("in_progress", "searching", "completed")
        ]
        opened.item |= {"status": "completed", "queries": list(queries)}
        events.append(
            self._event(
                "response.output_item.done",
                output_index=opened.output_index,
                item={**opened.item, "results": list(results) if shown else None},
            )
        )
        opened.item["results"] = list(results)
        return events

    def offer(self, tools: Sequence[ServedTool]) -> None:
        """What the model may call from now on."""
        self._offered = {tool.function["name"]: tool for tool in tools}

    def listing(self, label: str) -> tuple[_Open, list[Json]]:
        """A server is asked for its tools; `listed` tells what it said."""
        opened = self._open({"type": "mcp_list_tools", "server_label": label, "tools": [], "error": None})
        return opened, [self._added(opened), self._about(opened, "response.mcp_list_tools.in_progress")]

    def listed(self, opened: _Open, tools: Sequence[Json], *, error: str | None = None) -> list[Json]:
        opened.item |= {"tools": list(tools), "error": error}
        ended = "completed" if error is None else "failed"
        return [self._about(opened, f"response.mcp_list_tools.{ended}"), self._done(opened)]

    def approved(self, tool: ServedTool, request: Json) -> tuple[ServedCall, list[Json]]:
        """A call that a person allowed begins."""
        call = ServedCall(tool, self._open_served(tool, request["id"]), tool.function["name"])
        call.opened.pieces.append(request["arguments"])
        return call, [*self._served_added(call.opened), self._served_arguments(call.opened)]

    def turn_over(self) -> tuple[list[ServedCall], list[Json]]:
        """The calls that are to be run now, where the model's turn ended with any and nobody else has to act first.

        What it said is closed then, and the next turn's chunks may come once each was told by `ran`. Else all that is
        left is `finished`.
        """
        is_cut = self._finish_reason in ("length", "content_filter")
        calls = [call for call in self._served if not call.tool.needs_approval]
        if not calls or is_cut:
            return [], []
        running = [call.opened for call in calls]
        events = [event for opened in running for event in [self._served_arguments(opened)]]
        if self._message is not None:
            self._message.item["phase"] = "commentary"
        return calls, [*self._close_all("completed", but=running), *events]

    def ran(self, call: ServedCall, *, output: str | None = None, error: Json | None = None) -> list[Json]:
        ended = "completed" if error is None else "failed"
        call.opened.item |= {"output": output, "error": error, "status": ended}
        return [self._about(call.opened, f"response.mcp_call.{ended}"), self._done(call.opened)]

    @property
    def is_waited_for(self) -> bool:
        """Whether this turn holds calls that others have to run or to allow."""
        return len(self._calls) > sum(not call.tool.needs_approval for call in self._served)

    @property
    def said(self) -> str | None:
        """The text of this turn."""
        return None if self._message is None else self._message.text

    def next_turn(self) -> None:
        """The engine is asked again, with what its calls told."""
        self._message = self._part = self._reasoning = self._finish_reason = None
        self._calls, self._served = {}, []
        self._spent.append(self._turn_usage)
        self._turn_usage = {}

    def write(self, chunk: Json) -> Iterator[Json]:
        """A chunk of a chat completion's stream, or a whole completion as one."""
        self.response |= {name: chunk[name] for name in TOLD if name in chunk}
        if chunk.get("usage"):
            self._turn_usage = chunk["usage"]
            self.response["usage"] = usage_of(*self._spent, self._turn_usage)
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta") or choice.get("message") or {}
            if thought := delta.get("reasoning") or delta.get("reasoning_content"):
                yield from self._think(thought)
            logprobs = ((choice.get("logprobs") or {}).get("content") or []) if self._wishes.logprobs else []
            if delta.get("content") or (logprobs and self._message is not None):
                yield from self._say(delta.get("content") or "", [_logprob(each) for each in logprobs])
            for annotation in delta.get("annotations") or ():
                yield from self._annotate(annotation)
            if delta.get("refusal"):
                yield from self._refuse(delta["refusal"])
            for place, call in enumerate(delta.get("tool_calls") or ()):
                yield from self._call(call, call.get("index", place))
            if self._part is not None:
                self._part |= {name: delta[name] for name in ("unsupported", "support") if name in delta}
            self._finish_reason = choice.get("finish_reason") or self._finish_reason

    def finished(self, *, now: float) -> list[Json]:
        """What is open is closed, and the object is whole. Its last event is `closing`'s."""
        cut = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(
            self._finish_reason or ""
        )
        try:
            held = [(opened, item_of(tool, opened.text)) for tool, opened in self._held if not cut]
        except NotOfItsForm as error:
            self.failed(f"The model called the tool '{error}' with arguments that are not of its form.")
            return []
        if self._message is None and not self._calls:
            self._open_message()
            events = [*self._message_added(), *self._text_part_added()]
        else:
            events = []
        status = "incomplete" if cut else "completed"
        if self._message is not None:
            self._message.item["phase"] = "commentary" if self._calls else "final_answer"
        events += self._close_all(status)
        for opened, item in held:
            whole = self._open({**item, "call_id": opened.item["call_id"], "status": "completed"})
            events += [self._added(whole), self._done(whole)]
        for call in self._served if not cut else ():
            if call.tool.needs_approval:
                request = {
                    "type": "mcp_approval_request",
                    "server_label": call.tool.label,
                    "name": call.tool.name,
                }
                whole = self._open({**request, "arguments": call.arguments})
                events += [self._added(whole), self._done(whole)]
        self.response |= {
            "status": status,
            "incomplete_details": {"reason": cut} if cut else None,
            "completed_at": None if cut else int(now),
            "output_text": "".join(
                part["text"]
                for each in self._output
                if each.item["type"] == "message"
                for part in each.item["content"]
                if part["type"] == "output_text"
            ),
        }
        self.response["output"] = [each.item for each in self._output]
        return events

    def failed(self, message: str, *, code: str = "server_error") -> None:
        """What was written so far is not an answer: it stays, as incomplete. No event tells so but the last."""
        number = self._number
        self._close_all("incomplete")
        self._number = number
        self.response |= {
            "status": "failed",
            "error": {"code": code, "message": message},
            "output": [each.item for each in self._output],
        }

    def closing(self, response: Json | None = None) -> Json:
        """The last event. `response` is the object as this client gets it."""
        return {
            "type": f"response.{self.response['status']}",
            "sequence_number": self._number,
            "response": self.response if response is None else response,
        }

    def _think(self, text: str) -> Iterator[Json]:
        if self._reasoning is None:
            reasoning: Json = {"type": "reasoning", "summary": [], "content": [], "status": "in_progress"}
            self._reasoning = self._open(reasoning)
            yield self._added(self._reasoning)
            if self._wishes.summary:
                part = {"type": "summary_text", "text": ""}
                yield self._about(
                    self._reasoning, "response.reasoning_summary_part.added", summary_index=0, part=part
                )
        self._reasoning.pieces.append(text)
        yield self._about(
            self._reasoning,
            "response.reasoning_text.delta",
            content_index=0,
            delta=text,
            **self._padding(text),
        )
        if self._wishes.summary:
            yield self._about(
                self._reasoning,
                "response.reasoning_summary_text.delta",
                summary_index=0,
                delta=text,
                **self._padding(text),
            )

    def _say(self, text: str, logprobs: list[Json]) -> Iterator[Json]:
        yield from self._thought()
        if self._message is None:
            self._open_message()
            yield from self._message_added()
        assert self._message is not None
        if self._part is None:
            yield from self._text_part_added()
        self._message.pieces.append(text)
        self._message.logprobs += logprobs
        yield self._about(
            self._message,
            "response.output_text.delta",
            content_index=self._content_index(),
            delta=text,
            logprobs=[_brief(each) for each in logprobs],
            **self._padding(text),
        )

    def _annotate(self, annotation: Json) -> Iterator[Json]:
        if self._part is None or self._message is None:
            return
        cited = file_citation(annotation)
        self._part["annotations"].append(cited)
        yield self._about(
            self._message,
            "response.output_text.annotation.added",
            content_index=self._content_index(),
            annotation_index=len(self._part["annotations"]) - 1,
            annotation=cited,
        )

    def _refuse(self, text: str) -> Iterator[Json]:
        yield from self._thought()
        if self._message is None:
            self._open_message()
            yield from self._message_added()
        assert self._message is not None
        content = self._message.item["content"]
        if not content or content[-1]["type"] != "refusal":
            content.append({"type": "refusal", "refusal": ""})
            yield self._about(
                self._message,
                "response.content_part.added",
                content_index=len(content) - 1,
                part=dict(content[-1]),
            )
        content[-1]["refusal"] += text
        yield self._about(
            self._message,
            "response.refusal.delta",
            content_index=len(content) - 1,
            delta=text,
            **self._padding(text),
        )

    def _call(self, call: Json, index: int) -> Iterator[Json]:
        function = call.get("function") or {}
        if index not in self._calls:
            yield from self._thought()
            name = function.get("name") or ""
            tool = self._wishes.tools.get(name) or ClientTool("function", name, {})
            call_id = call.get("id") or f"call_{secrets.token_hex(12)}"
            if (served := self._offered.get(name)) is not None:
                yield from self._call_served(served, name, index)
            elif not tool.is_named:
                self._calls[index] = _Open({"type": tool.kind, "call_id": call_id}, output_index=-1)
                self._held.append((tool, self._calls[index]))
            else:
                is_custom = tool.kind == "custom"
                item: Json = {
                    "type": "custom_tool_call" if is_custom else "function_call",
                    "status": "in_progress",
                    "call_id": call_id,
                    "name": tool.name,
                    "caller": {"type": "direct"},
                    "input" if is_custom else "arguments": "",
                }
                if tool.namespace is not None:
                    item["namespace"] = tool.namespace
                self._calls[index] = self._open(item)
                yield self._added(self._calls[index])
        opened = self._calls[index]
        arguments = function.get("arguments") or ""
        if isinstance(arguments, dict):
            arguments = orjson.dumps(arguments).decode()
        opened.pieces.append(arguments)
        # A custom tool's input is not whole JSON yet, and is told once it is.
        if arguments and opened.item["type"] == "mcp_call":
            yield self._about(
                opened, "response.mcp_call_arguments.delta", delta=arguments, **self._padding(arguments)
            )
        elif arguments and opened.item["type"] == "function_call":
            yield self._about(
                opened,
                "response.function_call_arguments.delta",
                delta=arguments,
                **self._padding(arguments),
            )

    def _call_served(self, tool: ServedTool, function: str, index: int) -> Iterator[Json]:
        if tool.needs_approval:
            # It is asked for once it is whole.
            self._calls[index] = _Open({"type": "mcp_approval_request"}, output_index=-1)
        else:
            self._calls[index] = self._open_served(tool, None)
            yield from self._served_added(self._calls[index])
        self._served.append(ServedCall(tool, self._calls[index], function))

    def _open_served(self, tool: ServedTool, approval_request_id: str | None) -> _Open:
        return self._open(
            {
                "type": "mcp_call",
                "status": "in_progress",
                "server_label": tool.label,
                "name": tool.name,
                "arguments": "",
                "output": None,
                "error": None,
                "approval_request_id": approval_request_id,
            }
        )

    def _served_added(self, opened: _Open) -> list[Json]:
        return [self._added(opened), self._about(opened, "response.mcp_call.in_progress")]

    def _served_arguments(self, opened: _Open) -> Json:
        opened.item["arguments"] = opened.text
        return self._about(opened, "response.mcp_call_arguments.done", arguments=opened.text)

    def _thought(self) -> Iterator[Json]:
        """Reasoning ends where words or calls begin."""
        if self._reasoning is None:
            return
        opened, self._reasoning = self._reasoning, None
        yield from self._close_reasoning(opened, "completed")

    def _close_reasoning(self, opened: _Open, status: str) -> Iterator[Json]:
        text = opened.text
        opened.item |= {"status": status, "content": [{"type": "reasoning_text", "text": text}]}
        yield self._about(opened, "response.reasoning_text.done", content_index=0, text=text)
        if self._wishes.summary:
            part = {"type": "summary_text", "text": text}
            opened.item["summary"] = [part]
            yield self._about(opened, "response.reasoning_summary_text.done", summary_index=0, text=text)
            yield self._about(opened, "response.reasoning_summary_part.done", summary_index=0, part=part)
        if self._wishes.seal is not None:
            opened.item["encrypted_content"] = self._wishes.seal(text)
        yield self._done(opened)

    def _close_all(self, status: str, *, but: Sequence[_Open] = ()) -> list[Json]:
        events: list[Json] = []
        for opened in self._output:
            if opened.item.get("status") != "in_progress" or any(opened is each for each in but):
                continue
            match opened.item["type"]:
                case "mcp_call":
                    # It was never run: only what is whole is.
                    opened.item |= {"status": "incomplete", "arguments": opened.text}
                    events.append(self._done(opened))
                case "reasoning":
                    events += self._close_reasoning(opened, status)
                case "message":
                    events += self._close_message(opened, status)
                case _:
                    events += self._close_call(opened, status)
        return events

    def _close_message(self, opened: _Open, status: str) -> Iterator[Json]:
        for index, part in enumerate(opened.item["content"]):
            if part["type"] == "output_text":
                part |= {"text": opened.text, "logprobs": opened.logprobs}
                yield self._about(
                    opened,
                    "response.output_text.done",
                    content_index=index,
                    text=part["text"],
                    logprobs=[_brief(each) for each in opened.logprobs],
                )
            else:
                yield self._about(
                    opened, "response.refusal.done", content_index=index, refusal=part["refusal"]
                )
            yield self._about(opened, "response.content_part.done", content_index=index, part=part)
        opened.item["status"] = status
        yield self._done(opened)

    def _close_call(self, opened: _Open, status: str) -> Iterator[Json]:
        opened.item["status"] = status
        if opened.item["type"] == "function_call":
            opened.item["arguments"] = opened.text
            yield self._about(
                opened,
                "response.function_call_arguments.done",
                name=opened.item["name"],
                arguments=opened.text,
            )
        else:
            opened.item["input"] = input_of(opened.text)
            yield self._about(opened, "response.custom_tool_call_input.delta", delta=opened.item["input"])
            yield self._about(opened, "response.custom_tool_call_input.done", input=opened.item["input"])
        yield self._done(opened)

    def _open(self, item: Json) -> _Open:
        opened = _Open({"id": item_id(item["type"]), **item}, output_index=len(self._output))
        self._output.append(opened)
        return opened

    def _open_message(self) -> None:
        self._message = self._open(
            {"type": "message", "role": "assistant", "status": "in_progress", "content": []}
        )

    def _message_added(self) -> list[Json]:
        assert self._message is not None
        return [self._added(self._message)]

    def _text_part_added(self) -> list[Json]:
        assert self._message is not None
        self._part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._message.item["content"].append(self._part)
        part = {**self._part, "annotations": [], "logprobs": []}
        return [
            self._about(
                self._message, "response.content_part.added", content_index=self._content_index(), part=part
            )
        ]

    def _content_index(self) -> int:
        assert self._message is not None
        return next(index for index, part in enumerate(self._message.item["content"]) if part is self._part)

    def _added(self, opened: _Open) -> Json:
        item = {**opened.item, **({"content": []} if opened.item["type"] == "message" else {})}
        return self._event("response.output_item.added", output_index=opened.output_index, item=item)

    def _done(self, opened: _Open) -> Json:
        return self._event(
            "response.output_item.done", output_index=opened.output_index, item=dict(opened.item)
        )

    def _about(self, opened: _Open, kind: str, **more: Any) -> Json:
        return self._event(kind, item_id=opened.item["id"], output_index=opened.output_index, **more)

    def _event(self, kind: str, **more: Any) -> Json:
        event = {"type": kind, "sequence_number": self._number, **more}
        self._number += 1
        return event

    def _snapshot(self) -> Json:
        return {**self.response, "output": []}

    def _padding(self, delta: str) -> Json:
        if not self._wishes.obfuscation:
            return {}
        return {"obfuscation": padding(delta)}


def padding(delta: str) -> str:
    """Random characters that hide how long a delta is."""
    missing = -len(delta) % OBFUSCATED_CHARS
    return secrets.token_urlsafe(OBFUSCATED_CHARS)[:missing]


def file_citation(annotation: Json) -> Json:
    """A chat's annotation in this API's form. `index` is where it stands in the text, as in OpenAI's own answers."""
    place = annotation["url_citation"]
    kept = {
        name: value for name, value in annotation.items() if name not in ("index", "type", "url_citation")
    }
    return {
        "type": "file_citation",
        "index": place["start_index"],
        "start_index": place["start_index"],
        "end_index": place["end_index"],
        "url": place["url"],
        **kept,
    }


def usage_of(*told: Json) -> Json:
    """Of all that was asked of the engine, in this API's form."""
    asked = sum(each.get("prompt_tokens") or 0 for each in told)
    said = sum(each.get("completion_tokens") or 0 for each in told)
    cached = sum((each.get("prompt_tokens_details") or {}).get("cached_tokens") or 0 for each in told)
    thought = sum((each.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0 for each in told)
    return {
        "input_tokens": asked,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": said,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": asked + said,
    }


def _logprob(told: Json) -> Json:
    return {
        "token": told["token"],
        "logprob": told["logprob"],
        "bytes": told.get("bytes") or list(str(told["token"]).encode()),
        "top_logprobs": [
            {
                "token": each["token"],
                "logprob": each["logprob"],
                "bytes": each.get("bytes") or list(str(each["token"]).encode()),
            }
            for each in told.get("top_logprobs") or ()
        ],
    }


def _brief(told: Json) -> Json:
    """As deltas have it."""
    top = [{"token": each["token"], "logprob": each["logprob"]} for each in told["top_logprobs"]]
    return {"token": told["token"], "logprob": told["logprob"], "top_logprobs": top}
