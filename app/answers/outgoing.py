"""What is done to a chat's reply on its way out where the request asks for it: functions, padding, a copy to keep."""

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import orjson

from app.answers.functions import CustomCalls, as_function_call
from app.answers.grammars import WrittenCall
from app.edge.streaming import DONE, as_event, event_data

PADDED_TO = 64
"""Characters: what a chunk's text and its padding make together, or a multiple of it."""
REPLACED = frozenset({"index", "type", "role"})
"""Parts of a delta that are told anew and not go on."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Outgoing:
    """The wishes of one request. `keep` stores the completion before its end is told."""

    as_functions: bool = False
    written_call: WrittenCall | None = None
    custom_calls: CustomCalls | None = None
    is_padded: bool = False
    keep: Callable[[Json], Awaitable[None]] | None = None
    completion_id: str | None = None
    """The name of what is kept: an engine's own may come twice."""

    @property
    def leaves_as_is(self) -> bool:
        return not (
            self.as_functions or self.written_call or self.custom_calls or self.is_padded or self.keep
        )

    async def whole(self, raw: bytes) -> bytes:
        completion = orjson.loads(raw)
        if self.written_call is not None:
            completion = self.written_call.whole(completion)
        if self.custom_calls is not None:
            completion = self.custom_calls.whole(completion)
        completion = self._changed(completion)
        if self.keep is not None:
            await self.keep(completion)
        return orjson.dumps(completion)

    async def stream(self, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        """A stream that is cut is not kept."""
        assembly = Assembly()
        async with aclosing(events):
            async for told in event_data(events):
                if told == DONE:
                    if self.keep is not None:
                        await self.keep(assembly.completion())
                    yield as_event(DONE)
                    continue
                chunk = orjson.loads(told)
                if "choices" in chunk:
                    if self.written_call is not None:
                        chunk = self.written_call.chunk(chunk)
                    if self.custom_calls is not None:
                        chunk = self.custom_calls.chunk(chunk)
                    chunk = self._changed(chunk)
                    assembly.add(chunk)
                    if self.is_padded:
                        chunk["obfuscation"] = _padding(chunk)
                yield as_event(orjson.dumps(chunk))

    def _changed(self, reply: Json) -> Json:
        if self.as_functions:
            reply = as_function_call(reply)
        return reply if self.completion_id is None else {**reply, "id": self.completion_id}


class Assembly:
    """Puts the chunks of a stream together to the completion that the same request gets unstreamed."""

    def __init__(self) -> None:
        self._reply: Json = {}
        self._choices: dict[int, Json] = {}

    def add(self, chunk: Json) -> None:
        told = {name: value for name, value in chunk.items() if name != "choices" and value is not None}
        if self._reply.get("grounded"):
            told.pop("grounded", None)
        self._reply |= told
        for choice in chunk["choices"]:
            kept = self._choices.setdefault(
                choice["index"], {"index": choice["index"], "message": {}, "logprobs": None}
            )
            _merge(kept["message"], choice.get("delta") or {})
            kept["finish_reason"] = choice.get("finish_reason") or kept.get("finish_reason")
            for token in (choice.get("logprobs") or {}).get("content") or ():
                kept["logprobs"] = kept["logprobs"] or {"content": [], "refusal": None}
                kept["logprobs"]["content"].append(token)

    def completion(self) -> Json:
        choices = [self._choices[index] for index in sorted(self._choices)]
        for choice in choices:
            choice["message"] = {"role": "assistant", "content": None, "refusal": None, **choice["message"]}
            for call in choice["message"].get("tool_calls") or ():
                call.pop("index", None)
        return {**self._reply, "object": "chat.completion", "choices": choices}


def _merge(kept: Json, delta: Json) -> None:
    """Strings go on, lists get longer, and what has an index in a list goes on where that stands."""
    for name, told in delta.items():
        before = kept.get(name)
        if before is None or name in REPLACED:
            kept[name] = (
                [dict(each) if isinstance(each, dict) else each for each in told]
                if isinstance(told, list)
                else dict(told)
                if isinstance(told, dict)
                else told
            )
        elif isinstance(told, str):
            kept[name] = before + told
        elif isinstance(told, dict):
            _merge(before, told)
        elif isinstance(told, list):
            for each in told:
                index = each.get("index") if isinstance(each, dict) else None
                same = next((one for one in before if index is not None and one.get("index") == index), None)
                if same is None:
                    before.append(each)
                else:
                    _merge(same, each)
        elif told is not None:
            kept[name] = told


def _padding(chunk: Json) -> str:
    """Random, so that the length of what goes over the wire does not tell that of each token."""
    length = sum(len((choice.get("delta") or {}).get("content") or "") for choice in chunk["choices"])
    wanted = -length % PADDED_TO
    return secrets.token_urlsafe(PADDED_TO)[:wanted]
