"""Responses through the openai client, on the real stack: cited answers, conversations, work in the background."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.stack import Stack

pytestmark = pytest.mark.engine

QUESTION = "How high is the tower of the Brennick lighthouse?"
MODEL = "SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def tool(stack: Stack, handbook: Path) -> Any:
    client = stack.client()
    store = client.vector_stores.create(name="lighthouse-responses")
    file = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=handbook)
    assert file.status == "completed", file.last_error
    return {"type": "file_search", "vector_store_ids": [store.id]}


def test_a_streamed_response_holds_the_fact_and_cites_the_page_where_it_stands(
    client: OpenAI, tool: Any
) -> None:
    with client.responses.stream(
        model=MODEL,
        input=QUESTION,
        tools=[tool],
        include=["file_search_call.results"],
        max_output_tokens=80,
    ) as stream:
        events: list[Any] = list(stream)
        response = stream.get_final_response()
    assert "47" in response.output_text
    (told, *_) = [
        event.annotation.model_dump()
        for event in events
        if event.type == "response.output_text.annotation.added"
    ]
    assert told["type"] == "file_citation"
    assert told["page"] == 1
    assert "47 metres high" in told["quote"]
    marker = response.output_text[told["start_index"] : told["end_index"]]
    assert marker == f"[{told['number']}]"
    assert httpx.get(told["url"].partition("#")[0]).status_code == 200
    search = response.output[0]
    assert search.type == "file_search_call"
    assert search.results
    assert response.usage is not None
    assert response.usage.output_tokens > 0
    kept = client.responses.retrieve(response.id)
    assert kept.output_text == response.output_text


def test_a_conversation_goes_on_and_its_answers_stay_cited(client: OpenAI, tool: Any) -> None:
    conversation = client.conversations.create()
    for question, fact in ((QUESTION, "47"), ("And who built it?", "Wren")):
        response = client.responses.create(
            model=MODEL,
            input=question,
            conversation=conversation.id,
            tools=[tool],
            max_output_tokens=80,
        )
        assert fact in response.output_text
        message: Any = response.output[-1]
        assert message.content[0].annotations
    items = list(client.conversations.items.list(conversation.id, order="asc"))
    kinds = ["message", "file_search_call", "message"]
    assert [item.type for item in items] == kinds * 2


def test_a_plain_response_in_the_background_survives_a_killed_api(stack: Stack, client: OpenAI) -> None:
    response = client.responses.create(
        model=MODEL, input="Tell a long story about the sea.", background=True, max_output_tokens=300
    )
    while client.responses.retrieve(response.id).status == "queued":
        time.sleep(0.05)
    stack.kill("api")
    stack.wait_ready()
    deadline = time.monotonic() + 90
    while (status := client.responses.retrieve(response.id).status) in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert status in ("completed", "incomplete")
    assert len(client.responses.retrieve(response.id).output_text) > 100


def test_input_tokens_are_counted_by_the_engine_with_the_passages_in_them(client: OpenAI, tool: Any) -> None:
    plain = client.responses.input_tokens.count(model=MODEL, input=QUESTION)
    found = client.responses.input_tokens.count(model=MODEL, input=QUESTION, tools=[tool])
    assert 10 < plain.input_tokens < 60
    assert found.input_tokens > plain.input_tokens + 50
