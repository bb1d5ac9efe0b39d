"""Compaction: a long conversation as a summary that the model writes, sealed for whoever goes on from it."""

import orjson

from app.answers.chat import EngineRefused
from app.answers.generation import CHAT_PATH, MESSAGE_TOKENS
from app.answers.prompt import as_prefix
from app.responses.items import Json, item_id
from app.responses.reading import Asked, again, messages_text, sealed
from app.responses.request import ResponseBody
from app.services import Services
from retrieval.scope import Scope
from serving.protocols import Lane

SUMMARY_TOKENS = 800
THRESHOLD_SHARE = 0.8
"""Of a model's context: where a request that asks for compaction names no threshold."""
SUMMARISE = (
    "Summarise our conversation so far, so that it can go on from your summary alone. Keep names, numbers, decisions, "
    "what was asked, what was answered, and what is still open. Write the summary and nothing else."
)


async def compact(
    services: Services, scope: Scope, asked: Asked, *, model: str, lane: Lane
) -> tuple[Json, Json]:
    """The item that stands for all that was asked and said, and what it took. Raises what the gateway raises."""
    messages = [*asked.messages, {"role": "user", "content": SUMMARISE}]
    body = {"model": model, "messages": messages, "temperature": 0, "max_completion_tokens": SUMMARY_TOKENS}
    async with services.gateway.send(
        CHAT_PATH,
        orjson.dumps(body),
        model=model,
        tenant=scope.tenant_id,
        lane=lane,
        prefix=as_prefix(messages),
        deadline_s=services.settings.engine.timeout_s,
    ) as reply:
        raw = await reply.read()
        if reply.status != 200:
            raise EngineRefused(reply.status, raw)
    completion = orjson.loads(raw)
    summary = completion["choices"][0]["message"].get("content") or ""
    item = {
        "type": "compaction",
        "id": item_id("compaction"),
        "encrypted_content": sealed(services, scope, summary),
    }
    return item, completion.get("usage") or {}


async def compact_if_long(
    services: Services, scope: Scope, asked: Asked, *, model: str, lane: Lane
) -> tuple[Asked, Json | None, Json]:
    """The request as it is to be answered, the item that was made if it was too long, and what that took."""
    body = asked.body
    assert isinstance(body, ResponseBody)
    if not body.context_management or not asked.past:
        return asked, None, {}
    texts = messages_text(asked.messages)
    reader = await services.generation.of(model, tenant=scope.tenant_id, sample="\n".join(texts))
    threshold = body.context_management[0].compact_threshold
    if threshold is None:
        if reader.max_tokens is None:
            return asked, None, {}
        threshold = int(THRESHOLD_SHARE * reader.max_tokens)
    if sum(reader.count_tokens(text) + MESSAGE_TOKENS for text in texts) <= threshold:
        return asked, None, {}
    item, usage = await compact(services, scope, asked, model=model, lane=lane)
    return again(services, scope, asked, past=[*asked.past, item]), item, usage
