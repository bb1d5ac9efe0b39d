"""What a chat searches for, what its reply tells of that, and that its prompt fits the engine."""

import json
from typing import Any

import pytest

from tests.app.conftest import Api

HARBOUR = (
    "The harbour master of Vellmouth is Ondine Marsh. Her office is on the second floor of the Customs House."
)
BAKERY = "The bakery of Tolm belongs to Mara Lind, who opens it at six in the morning and sells rye bread."


@pytest.fixture
async def model(api: Api) -> str:
    store = await api.store("town")
    await api.add_document(store, "harbour.txt", HARBOUR)
    await api.add_document(store, "bakery.txt", BAKERY)
    return f"rag/{store}"


async def said(api: Api, model: str, *turns: str, **more: Any) -> dict[str, Any]:
    """The reply to a conversation of questions and answers in turn."""
    messages = [
        {"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate(turns)
    ]
    body = {"model": model, "messages": messages, **more}
    reply = await api.http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    told: dict[str, Any] = reply.json()
    return told


async def test_a_reply_tells_what_was_searched(api: Api, model: str) -> None:
    first = "Who is the harbour master of Vellmouth?"
    told = await said(api, model, first)
    assert (told["search_queries"], told["search_question"]) == ([first], "asked")
    told = await said(api, model, first, "Ondine Marsh.", "On which floor is her office?")
    joined = f"{first}\nOn which floor is her office?"
    assert (told["search_queries"], told["search_question"]) == ([joined], "joined")
    alone = "When does the bakery of Tolm open?"
    told = await said(api, model, first, "Ondine Marsh.", alone)
    assert (told["search_queries"], told["search_question"]) == ([alone], "asked")
    nothing = "How do I bake a chocolate cake?"
    told = await said(api, model, nothing)
    assert told["search_queries"] == [nothing]
    assert "rewrite_failed" not in told


async def test_a_streams_first_event_tells_what_was_searched(api: Api, model: str) -> None:
    for question in ("Who is the harbour master of Vellmouth?", "How do I bake a chocolate cake?"):
        reply = await api.chat(question, model=model, stream=True)
        first = json.loads(reply.text.partition("\n\n")[0].removeprefix("data: "))
        assert first["search_queries"] == [question]


async def test_each_of_several_things_asked_is_searched(api: Api, model: str) -> None:
    told = await said(
        api, model, "Who is the harbour master of Vellmouth and when does the bakery of Tolm open?"
    )
    assert told["search_queries"] == [
        "Who is the harbour master of Vellmouth",
        "when does the bakery of Tolm open?",
    ]
    prompt = api.engine.requests[0]["messages"][0]["content"]
    assert HARBOUR in prompt
    assert BAKERY in prompt


async def test_a_prompt_and_its_answer_fit_the_engines_context(api: Api, model: str) -> None:
    api.engine.max_model_len = 700
    store = model.removeprefix("rag/")
    rules = "\n\n".join(
        f"Rule {number} of the quay: no nets are dried on the rail at low tide." for number in range(120)
    )
    await api.add_document(store, "rules.txt", rules)
    await said(api, model, "Which rule of the quay is about nets?", max_tokens=100)
    sent = api.engine.requests[-1]["messages"]
    characters = sum(len(message["content"]) for message in sent)
    assert "of the quay" in sent[0]["content"]
    assert characters / 3 + 100 <= 700
