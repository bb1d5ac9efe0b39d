"""An engine that says what a script's deltas say: calls of tools, reasoning, refusals, and why it ended."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.fakes import ScriptedEngine, _head, _usage

Json = dict[str, Any]


@dataclass
class DeltaEngine(ScriptedEngine):
    """As ScriptedEngine while `deltas` is None."""

    deltas: Callable[[Json], list[Json]] | None = None
    """Of a request; a streamed reply has one chunk for each, a whole one all of them together."""
    reason: str = "stop"
    logprobs: Callable[[str], Json] | None = None

    async def _stream(self, request: web.Request, asked: Json) -> web.StreamResponse:
        if self.deltas is None:
            return await super()._stream(request, asked)
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await reply.prepare(request)
        for delta in self.deltas(asked):
            await self._chunk(reply, asked, delta)
        await self._chunk(reply, asked, {}, self.reason)
        usage = {**_head(asked, "chat.completion.chunk"), "choices": [], "usage": _usage(asked, "one two")}
        await self._write(reply, f"data: {json.dumps(usage)}\n\n")
        await self._write(reply, "data: [DONE]\n\n")
        return reply

    async def _chunk(
        self, reply: web.StreamResponse, asked: Json, delta: Json, reason: str | None = None
    ) -> None:
        told = self.logprobs(delta["content"]) if self.logprobs and delta.get("content") else None
        choice = {"index": 0, "delta": delta, "logprobs": told, "finish_reason": reason}
        chunk = {**_head(asked, "chat.completion.chunk"), "choices": [choice]}
        await self._write(reply, f"data: {json.dumps(chunk)}\n\n")

    async def _whole(self, request: web.Request, asked: Json) -> web.StreamResponse:
        if self.deltas is None:
            return await super()._whole(request, asked)
        message: Json = {"role": "assistant", "content": None}
        told = None
        for delta in self.deltas(asked):
            for name, value in delta.items():
                if name == "tool_calls":
                    _join(message.setdefault("tool_calls", []), value)
                else:
                    message[name] = (message.get(name) or "") + value
        if self.logprobs and message["content"]:
            told = self.logprobs(message["content"])
        choice = {"index": 0, "message": message, "finish_reason": self.reason, "logprobs": told}
        reply = {**_head(asked, "chat.completion"), "choices": [choice], "usage": _usage(asked, "one two")}
        return web.json_response(reply)


def call(index: int, name: str, arguments: list[str], call_id: str) -> list[Json]:
    """The deltas of a tool's call, as vLLM streams it."""
    first = {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
    rest = [{"index": index, "function": {"arguments": piece}} for piece in arguments]
    return [{"tool_calls": [each]} for each in (first, *rest)]


def _join(calls: list[Json], pieces: list[Json]) -> None:
    for piece in pieces:
        if "id" in piece:
            calls.append(json.loads(json.dumps({name: piece[name] for name in ("id", "type", "function")})))
        else:
            calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
