"""A response whose model may call tools of MCP servers: what they offer, what a person allowed, calls and turns."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from app.answers.chat import EngineRefused
from app.answers.generation import GenerationModel
from app.answers.prompt import last_asked
from app.errors import MEANINGS, message_of
from app.responses.client_tools import ClientTool
from app.responses.engine_turn import ask, chunks_of, refused_with, results_of
from app.responses.items import Json
from app.responses.reading import Asked, access_of
from app.responses.request import MOST_TOOLS, ResponseBody
from app.responses.served_tools import (
    ServedTool,
    approvals,
    as_messages,
    chosen,
    listed_before,
    offered,
    output_of,
)
from app.responses.tool_servers import ToolFailed, call_tool, list_tools
from app.responses.writing import ResponseWriter, ServedCall
from app.routes.chat import note_answer
from app.services import Services
from retrieval.scope import Scope
from retrieval.stages import Stages
from retrieval.tables import AuditEvent
from retrieval.together import in_thread
from serving.protocols import EngineUnavailable, Lane

MOST_CALLS = 20
"""Of one response that sets no limit: a model may go round in circles."""
RESULT_SHARE = 0.25
"""Of the model's context, for what one call tells."""
LEAST_S = 0.1
KNOWN: tuple[type[Exception], ...] = (EngineRefused, *MEANINGS)


async def write_turns(
    services: Services,
    scope: Scope,
    asked: Asked,
    writer: ResponseWriter,
    begun: Sequence[Json],
    *,
    model: str,
    lane: Lane,
    stages: Stages,
    deadline_s: float | None,
) -> AsyncGenerator[Json]:
    """All events of a response but the last; `begun` are its first. Calls may change something elsewhere: what goes
    wrong from here on makes a failed response that tells what was done, and never an error in its place.
    """
    for event in begun:
        yield event
    turns = _Turns(services, scope, asked, writer, model, lane, stages, deadline_s)
    try:
        async with aclosing(events := turns.events()):
            async for event in events:
                yield event
    except KNOWN as error:
        writer.failed(refused_with(error) if isinstance(error, EngineRefused) else message_of(error))
        return
    for event in writer.finished(now=time.time()):
        yield event


@dataclass
class _Turns:
    services: Services
    scope: Scope
    asked: Asked
    writer: ResponseWriter
    model: str
    lane: Lane
    stages: Stages
    deadline_s: float | None

    def __post_init__(self) -> None:
        assert isinstance(self.asked.body, ResponseBody)
        self._body = self.asked.body
        self._calls_left = self._body.max_tool_calls or MOST_CALLS
        self._until = None if self.deadline_s is None else time.monotonic() + self.deadline_s

    async def events(self) -> AsyncGenerator[Json]:
        """Raises what the journey to the engine raises."""
        tools: list[ServedTool] = []
        async with aclosing(events := self._listed(tools)):
            async for event in events:
                yield event
        self.writer.offer(tools)
        told: list[Json] = []
        async with aclosing(events := self._allowed(tools, told)):
            async for event in events:
                yield event
        question = await ask(
            self.services, self.scope, self._with(tools), model=self.model, lane=self.lane, stages=self.stages
        )
        asked_for = last_asked(self.asked.messages)
        note_answer(self.services, self.scope, self.writer.response["id"], asked_for, question.file_ids)
        self.writer.response |= {name: question.request.get(name) for name in ("temperature", "top_p")}
        if question.grounded is not None:
            results = await in_thread(results_of, self.services, question.grounded)
            is_shown = "file_search_call.results" in self._body.includes
            for event in self.writer.searched(question.grounded.asked.queries, results, shown=is_shown):
                yield event
        if told:
            question = question.going_on(told, may_call=self._calls_left > 0)
        while True:
            async with aclosing(chunks := chunks_of(self.services, question, deadline_s=self._left())):
                async for chunk in chunks:
                    for event in self.writer.write(chunk):
                        yield event
            calls, closed = self.writer.turn_over()
            for event in closed:
                yield event
            for call in calls:
                for event in await self._run(call):
                    yield event
            if not calls or self.writer.is_waited_for:
                return
            messages = _turn_messages(self.writer.said, calls)
            question = question.going_on(messages, may_call=self._calls_left > 0)
            self.writer.next_turn()

    async def _listed(self, tools: list[ServedTool]) -> AsyncGenerator[Json]:
        """Adds to `tools`. A server that cannot tell its tools offers none, and an item says so."""
        taken = {tool.function["name"] for tool in self.asked.tooling.calls}
        before = [*self.asked.past, *self.asked.items]
        for place, wanted in enumerate(self.asked.tooling.servers):
            access = access_of(self.services, wanted, at=f"tools[{place}]")
            listed = listed_before(before, wanted.server_label)
            if listed is None:
                opened, events = self.writer.listing(wanted.server_label)
                for event in events:
                    yield event
                try:
                    listed = await list_tools(access)
                    ended = self.writer.listed(opened, listed)
                except ToolFailed as error:
                    listed, ended = [], self.writer.listed(opened, [], error=str(error))
                for event in ended:
                    yield event
            tools += offered(wanted, access, listed, taken=taken)
        room = max(MOST_TOOLS - len(self.asked.tooling.calls), 0)
        del tools[room:]

    def _with(self, tools: Sequence[ServedTool]) -> Asked:
        """The request with these among its tools, and with a choice that can be made."""
        tooling = self.asked.tooling
        shown = [*tooling.calls, *(ClientTool("mcp", tool.name, tool.function) for tool in tools)]
        choice = tooling.choice
        if tooling.served_choice is not None:
            wanted = chosen(tooling.served_choice, tools)
            if len(wanted) == 1:
                choice = {"type": "function", "function": {"name": wanted[0].function["name"]}}
            elif wanted:
                shown = [ClientTool("mcp", tool.name, tool.function) for tool in wanted]
                choice = "required"
        if not shown:
            choice = None
        return replace(self.asked, tooling=replace(tooling, calls=tuple(shown), choice=choice))

    async def _allowed(self, tools: Sequence[ServedTool], told: list[Json]) -> AsyncGenerator[Json]:
        """Runs what a person allowed, and adds to `told` what came of it."""
        for approval in approvals(self.asked.past, self.asked.items):
            if not approval.approves:
                continue
            request = approval.request
            for tool in tools:
                if (tool.label, tool.name) == (request["server_label"], request["name"]):
                    call, events = self.writer.approved(tool, request)
                    for event in events:
                        yield event
                    for event in await self._run(call):
                        yield event
                    told += as_messages(
                        call.call_id, call.function, call.arguments, output_of(call.opened.item)
                    )
                    break
            else:
                gone = f"The tool {request['name']} is not offered in this request, so it was not called."
                told += as_messages(request["id"], request["name"], request["arguments"], gone)

    async def _run(self, call: ServedCall) -> list[Json]:
        """Its last events. In the audit log before and after, as nothing undoes it. Raises AuditUnavailable."""
        if self._calls_left <= 0:
            refused = ToolFailed.refused("No more calls: max_tool_calls are made.", 0)
            return self.writer.ran(call, error=refused.told)
        self._calls_left -= 1
        timeout_s = self.services.settings.tools.timeout_s
        if (left := self._left()) is not None:
            timeout_s = min(timeout_s, left)
        try:
            async with self.services.audit.audited(
                AuditEvent.TOOL_CALLED, self.writer.response["id"], call.tool.label, scope=self.scope
            ):
                output = await call_tool(
                    call.tool.access, call.tool.name, call.arguments, timeout_s=timeout_s
                )
        except ToolFailed as error:
            return self.writer.ran(call, error=error.told)
        sample = self.services.generation.of(self.model, tenant=self.scope.tenant_id, sample=output)
        return self.writer.ran(call, output=_shortened(output, await sample))

    def _left(self) -> float | None:
        """Seconds. Raises EngineUnavailable."""
        if self._until is None:
            return None
        left = self._until - time.monotonic()
        if left < LEAST_S:
            raise EngineUnavailable("The request's deadline has come before its response was whole.")
        return left


def _turn_messages(said: str | None, calls: Sequence[ServedCall]) -> list[Json]:
    messages = [
        as_messages(call.call_id, call.function, call.arguments, output_of(call.opened.item))
        for call in calls
    ]
    made = [call for (asking, _) in messages for call in asking["tool_calls"]]
    return [
        {"role": "assistant", "content": said, "tool_calls": made},
        *(output for (_, output) in messages),
    ]


def _shortened(text: str, reader: GenerationModel) -> str:
    """As much as the model's context leaves to one result."""
    if reader.max_tokens is None:
        return text
    most, tokens = int(RESULT_SHARE * reader.max_tokens), reader.count_tokens(text)
    if tokens <= most:
        return text
    kept = len(text) * most // tokens
    return f"{text[:kept]}\n[cut after {kept} of {len(text)} characters]"
