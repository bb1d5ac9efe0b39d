"""OpenAI's fields of a chat, with retrieval and without: what is honoured, passed through, and refused by name."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from app.answers.generation import GenerationModels, PartNotTaken
from ingest.sandbox import ParserPool
from tests.app.conftest import Api, opened_api
from tests.app.test_chat import HARBOUR, chunks_of, key_of
from tests.serving.hosting import MINILM

QUESTION = "Who is the harbour master?"
RING: dict[str, Any] = {
    "type": "function",
    "function": {"name": "ring", "parameters": {"type": "object", "properties": {"who": {"type": "string"}}}},
}
CALL = {"id": "call_9", "type": "function", "function": {"name": "ring", "arguments": '{"who": "Ondine"}'}}


@pytest.fixture
async def store_id(api: Api) -> str:
    store = await api.store("harbour")
    await api.add_document(store, "harbour.txt", HARBOUR)
    return store


@pytest.fixture
def openai(api: Api) -> AsyncOpenAI:
    http: Any = api.http
    return AsyncOpenAI(base_url="http://strongroom/v1", api_key=key_of(api), http_client=http, max_retries=0)


def texts_of(chunks: list[dict[str, Any]]) -> dict[int, str]:
    """What each choice of a stream says."""
    said: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            said[choice["index"]] = said.get(choice["index"], "") + (choice["delta"].get("content") or "")
    return said


@pytest.mark.parametrize("stream", [False, True])
async def test_each_of_several_choices_has_its_own_checked_citations(
    api: Api, store_id: str, stream: bool
) -> None:
    api.engine.answers = (
        "The harbour master is Ondine Marsh [1].",
        "Her office is on the second floor. The moon is made of cheese [1].",
        "The documents do not say.",
    )
    reply = await api.chat(QUESTION, model=f"rag/{store_id}", n=3, stream=stream)
    if stream:
        chunks = chunks_of(reply.text)
        said = texts_of(chunks)
        cited: dict[int, list[str]] = {0: [], 1: [], 2: []}
        told: dict[int, dict[str, Any]] = {}
        for chunk in chunks:
            ChatCompletionChunk.model_validate(chunk)
            for choice in chunk["choices"]:
                delta = choice["delta"]
                cited[choice["index"]] += [each["quote"] for each in delta.get("annotations") or []]
                if "support" in delta:
                    told[choice["index"]] = delta
    else:
        ChatCompletion.model_validate(reply.json())
        messages = {choice["index"]: choice["message"] for choice in reply.json()["choices"]}
        said = {index: message["content"] for index, message in messages.items()}
        cited = {
            index: [each["quote"] for each in message["annotations"]] for index, message in messages.items()
        }
        told = messages
    assert said == {
        0: "The harbour master is Ondine Marsh. [1]",
        1: "Her office is on the second floor. [1] The moon is made of cheese.",
        2: "The documents do not say.",
    }
    assert [len(cited[index]) for index in range(3)] == [1, 1, 0]
    assert all(quote in HARBOUR for quotes in cited.values() for quote in quotes)
    assert [told[index]["support"]["unsupported"] for index in range(3)] == [0, 1, 0]


@pytest.mark.parametrize("stream", [False, True])
async def test_probabilities_are_told_of_the_tokens_that_are_shown(
    api: Api, store_id: str, stream: bool
) -> None:
    api.engine.answer = lambda _: "The harbour master [1] is Ondine Marsh [1]. So it is [2]."
    reply = await api.chat(QUESTION, model=f"rag/{store_id}", stream=stream, logprobs=True)
    if stream:
        text, joined = "", ""
        tokens: list[dict[str, Any]] = []
        ours = 0
        for chunk in chunks_of(reply.text):
            for choice in chunk["choices"]:
                content = choice["delta"].get("content") or ""
                text += content
                ours += len(" [1]") * len(choice["delta"].get("annotations") or ())
                told = (choice["logprobs"] or {}).get("content") or []
                tokens += told
                joined += "".join(each["token"] for each in told)
                # Never ahead of the text, and behind it by less than a token.
                assert 0 <= len(text) - ours - len(joined) < 12
    else:
        choice = reply.json()["choices"][0]
        text = choice["message"]["content"]
        tokens = choice["logprobs"]["content"]
    assert text == "The harbour master is Ondine Marsh. [1] So it is."
    assert "".join(token["token"] for token in tokens) == text.replace(" [1]", "")
    assert all(bytes(token["bytes"]).decode() == token["token"] for token in tokens)
    assert [token["written"] for token in tokens if "written" in token] == ["].", "]."]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_clients_own_tool_is_called_beside_file_search_and_its_answer_is_cited(
    api: Api, store_id: str, stream: bool, openai: AsyncOpenAI
) -> None:
    api.engine.tool_calls = [CALL]
    api.engine.answer = lambda _: "The harbour master is Ondine Marsh."
    search = {"type": "file_search", "vector_store_ids": [store_id]}
    first = await api.chat(QUESTION, model="scripted", tools=[RING, search], stream=stream)
    if stream:
        deltas = [choice["delta"] for chunk in chunks_of(first.text) for choice in chunk["choices"]]
        calls = [call for delta in deltas for call in delta.get("tool_calls") or ()]
        assert "".join(call["function"]["arguments"] for call in calls) == CALL["function"]["arguments"]  # type: ignore[index]
        assert [call["id"] for call in calls if "id" in call] == ["call_9"]
    else:
        choice = first.json()["choices"][0]
        assert (choice["message"]["tool_calls"], choice["finish_reason"]) == ([CALL], "tool_calls")
        assert choice["message"]["content"] is None
    messages: Any = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_9", "content": "She did not answer."},
    ]
    tools: Any = [RING, search]
    second = await openai.chat.completions.create(model="scripted", messages=messages, tools=tools)
    message = second.choices[0].message
    assert message.content == "The harbour master is Ondine Marsh. [1]"
    assert len(message.annotations or ()) == 1
    sent = api.engine.requests[-1]["messages"]
    assert [each["role"] for each in sent] == ["system", "user", "assistant", "tool"]
    assert sent[2:] == messages[1:]
    assert HARBOUR in sent[0]["content"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_question_that_no_document_bears_on_may_still_call_a_tool(
    api: Api, store_id: str, stream: bool
) -> None:
    api.engine.tool_calls = [CALL]
    question = "How do I bake a chocolate cake?"
    asked: Any = {"model": f"rag/{store_id}", "stream": stream}
    reply = await api.chat(question, tools=[RING], **asked)
    assert '"tool_calls"' in reply.text
    assert api.engine.requests[-1]["messages"][0]["content"].startswith("No document bears on this question.")
    refused = await api.chat(question, tools=[RING], tool_choice="none", **asked)
    assert "documents do not say" in refused.text
    assert len(api.engine.requests) == 1


async def test_an_answer_in_a_schema_keeps_its_form_and_a_refusal_has_its_own_field(
    api: Api, store_id: str, openai: AsyncOpenAI
) -> None:
    api.engine.answer = lambda _: '{"name": "The harbour master is Ondine Marsh."}'
    schema: Any = {
        "type": "json_schema",
        "json_schema": {"name": "person", "schema": {"type": "object"}, "strict": True},
    }
    asked: Any = {"model": f"rag/{store_id}", "response_format": schema}
    reply = (await api.chat(QUESTION, **asked)).json()
    assert api.engine.requests[0]["response_format"] == schema
    message = reply["choices"][0]["message"]
    assert json.loads(message["content"]) == {"name": "The harbour master is Ondine Marsh."}
    assert message["annotations"][0]["quote"] in HARBOUR
    for stream in (False, True):
        body = {"messages": [{"role": "user", "content": "How do I bake a chocolate cake?"}], **asked}
        if stream:
            async with openai.chat.completions.stream(**body) as events:
                completion: Any = await events.get_final_completion()
        else:
            completion = await openai.chat.completions.create(**body)
        refused = completion.choices[0].message
        assert refused.content is None
        assert "documents do not say" in (refused.refusal or "")


@pytest.mark.parametrize("model", ["scripted", "rag/harbour"])
@pytest.mark.parametrize("stream", [False, True])
async def test_old_functions_are_called_as_tools_and_told_as_functions(
    api: Api, store_id: str, model: str, stream: bool
) -> None:
    api.engine.tool_calls = [CALL]
    functions = {"functions": [RING["function"]], "function_call": {"name": "ring"}}
    reply = await api.chat(QUESTION, model=model, stream=stream, **functions)
    (sent,) = api.engine.requests
    assert sent["tools"] == [RING]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "ring"}}
    assert "functions" not in sent
    if stream:
        choices = [choice for chunk in chunks_of(reply.text) for choice in chunk["choices"]]
        calls = [choice["delta"]["function_call"] for choice in choices if "function_call" in choice["delta"]]
        assert "".join(call.get("arguments", "") for call in calls) == CALL["function"]["arguments"]  # type: ignore[index]
        assert calls[0]["name"] == "ring"
        assert "tool_calls" not in reply.text
        reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    else:
        message = reply.json()["choices"][0]["message"]
        assert message["function_call"] == CALL["function"]
        assert "tool_calls" not in message
        reasons = [reply.json()["choices"][0]["finish_reason"]]
    assert reasons == ["function_call"]
    history = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "function_call": CALL["function"]},
        {"role": "function", "name": "ring", "content": "Nobody."},
    ]
    await api.http.post("/v1/chat/completions", json={"model": model, "messages": history, **functions})
    *_, called, told = api.engine.requests[-1]["messages"]
    assert called["tool_calls"][0]["id"] == told["tool_call_id"]
    assert told["role"] == "tool"


NOTE: dict[str, Any] = {
    "type": "custom",
    "custom": {"name": "note", "description": "Takes a note.", "format": {"type": "text"}},
}
NOTED = {"id": "call_8", "type": "function", "function": {"name": "note", "arguments": '{"input":"Calm."}'}}


@pytest.mark.parametrize("model", ["scripted", "rag/harbour"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_custom_tool_is_a_function_to_the_engine_and_its_call_comes_back_with_its_input(
    api: Api, store_id: str, model: str, stream: bool
) -> None:
    api.engine.tool_calls = [NOTED]
    choice = {"type": "custom", "custom": {"name": "note"}}
    reply = await api.chat(QUESTION, model=model, stream=stream, tools=[NOTE, RING], tool_choice=choice)
    (sent,) = api.engine.requests
    assert [tool["type"] for tool in sent["tools"]] == ["function", "function"]
    assert sent["tools"][0]["function"]["parameters"]["required"] == ["input"]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "note"}}
    if stream:
        choices = [choice for chunk in chunks_of(reply.text) for choice in chunk["choices"]]
        (call,) = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
        assert call.pop("index") == 0
    else:
        (call,) = reply.json()["choices"][0]["message"]["tool_calls"]
    assert call == {"id": "call_8", "type": "custom", "custom": {"name": "note", "input": "Calm."}}
    history = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_8", "content": "Noted."},
    ]
    reply = await api.http.post(
        "/v1/chat/completions", json={"model": model, "messages": history, "tools": [NOTE]}
    )
    assert reply.status_code == 200, reply.text
    assert api.engine.requests[-1]["messages"][-2]["tool_calls"] == [NOTED]


SQL = 'start: "select " /[a-z]+/'
QUERY: dict[str, Any] = {
    "type": "custom",
    "custom": {
        "name": "query",
        "description": "Asks the register.",
        "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": SQL}},
    },
}
NAMED_QUERY = {"type": "custom", "custom": {"name": "query"}}


@pytest.mark.parametrize("model", ["scripted", "rag/harbour"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_input_of_a_tool_with_a_grammar_is_all_that_the_engine_writes_and_by_that_grammar(
    api: Api, store_id: str, model: str, stream: bool
) -> None:
    api.engine.answer = lambda _: "select master"
    tools = [QUERY, NOTE, RING]
    reply = await api.chat(
        QUESTION,
        model=model,
        stream=stream,
        tools=tools,
        tool_choice=NAMED_QUERY,
        response_format={"type": "json_object"},
    )
    assert reply.status_code == 200, reply.text
    (sent,) = api.engine.requests
    assert sent["structured_outputs"] == {"grammar": SQL}
    assert not {"tools", "tool_choice", "response_format"} & sent.keys()
    assert "the tool query" in sent["messages"][0]["content"]
    assert "Asks the register." in sent["messages"][0]["content"]
    if stream:
        choices = [choice for chunk in chunks_of(reply.text) for choice in chunk["choices"]]
        assert not any(choice["delta"].get("content") for choice in choices)
        (call,) = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
        assert call.pop("index") == 0
        reason = choices[-1]["finish_reason"]
    else:
        message = reply.json()["choices"][0]["message"]
        assert message["content"] is None
        (call,), reason = message["tool_calls"], reply.json()["choices"][0]["finish_reason"]
    assert call.pop("id")
    assert call == {"type": "custom", "custom": {"name": "query", "input": "select master"}}
    assert reason == "tool_calls"


async def test_a_grammar_goes_to_the_engine_as_its_syntax_and_an_input_that_was_cut_says_so(
    api: Api,
) -> None:
    api.engine.answer, api.engine.finish_reason = lambda _: "12", "length"
    digits = {"type": "grammar", "grammar": {"syntax": "regex", "definition": "[0-9]+"}}
    tool = {"type": "custom", "custom": {"name": "query", "format": digits}}
    reply = await api.chat(QUESTION, "scripted", tools=[tool], tool_choice=NAMED_QUERY)
    assert api.engine.requests[-1]["structured_outputs"] == {"regex": "[0-9]+"}
    (choice,) = reply.json()["choices"]
    assert (choice["finish_reason"], choice["message"]["tool_calls"][0]["custom"]["input"]) == (
        "length",
        "12",
    )


async def test_a_tool_with_a_grammar_that_need_not_be_called_is_refused_and_one_that_cannot_be_is_not(
    api: Api,
) -> None:
    for choice in (None, "auto", "required"):
        reply = await api.chat(QUESTION, "scripted", tools=[QUERY, RING], tool_choice=choice)
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "tool_choice"
    beside = await api.chat(
        QUESTION,
        "scripted",
        tools=[QUERY],
        tool_choice=NAMED_QUERY,
        structured_outputs={"choice": ["yes", "no"]},
    )
    assert (beside.status_code, beside.json()["error"]["param"]) == (400, "structured_outputs")
    assert api.engine.requests == []
    ring: Any = {"type": "function", "function": {"name": "ring"}}
    for not_it in ("none", ring):
        reply = await api.chat(QUESTION, "scripted", tools=[QUERY, RING], tool_choice=not_it)
        assert reply.status_code == 200, reply.text
        assert "structured_outputs" not in api.engine.requests[-1]


async def test_of_several_tools_only_those_that_are_allowed_reach_the_engine(api: Api, store_id: str) -> None:
    search = {"type": "file_search", "vector_store_ids": [store_id]}

    async def ask(*allowed: dict[str, Any], mode: str = "required") -> Any:
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(allowed)}}
        return await api.chat(QUESTION, "scripted", tools=[RING, NOTE, search], tool_choice=choice)

    reply = await ask({"type": "function", "function": {"name": "ring"}})
    assert reply.status_code == 200, reply.text
    assert (api.engine.requests[-1]["tools"], api.engine.requests[-1]["tool_choice"]) == ([RING], "required")
    assert "evidence" not in reply.json()
    searched = await ask({"type": "file_search"}, mode="auto")
    assert "evidence" in searched.json()
    assert "tools" not in api.engine.requests[-1]
    unknown = await ask({"type": "function", "function": {"name": "sing"}})
    assert unknown.status_code == 400
    assert unknown.json()["error"]["param"] == "tool_choice.allowed_tools.tools"


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ([{"type": "web_search"}], None, "tools[0].type"),
        (
            [{"type": "custom", "custom": {"name": "n", "format": {"type": "grammar"}}}],
            None,
            "tools[0].custom",
        ),
        ([RING, {"type": "file_search", "vector_store_ids": []}], None, "tools[1].vector_store_ids"),
        ([RING], "sometimes", "tool_choice"),
        ([RING], {"type": "mcp"}, "tool_choice.type"),
        (
            [RING],
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": []}]}},
            "tool_choice.allowed_tools.tools",
        ),
    ],
)
async def test_tools_that_cannot_be_offered_are_refused_by_their_place(
    api: Api, tools: list[Any], choice: Any, param: str
) -> None:
    reply = await api.chat(QUESTION, "scripted", tools=tools, tool_choice=choice)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"].startswith(param)
    assert api.engine.requests == []


@pytest.mark.parametrize("model", ["scripted", "rag/harbour"])
async def test_a_file_that_a_message_shows_is_read_as_text(api: Api, store_id: str, model: str) -> None:
    listed = (await api.http.get("/v1/files")).json()["data"]
    told = base64.b64encode(b"The bell is rung at noon.").decode()
    for file, text in (
        ({"file_id": listed[0]["id"]}, "Ondine Marsh"),
        ({"file_data": f"data:text/plain;base64,{told}", "filename": "bell.txt"}, "rung at noon"),
    ):
        content = [{"type": "text", "text": QUESTION}, {"type": "file", "file": file}]
        body = {"model": model, "messages": [{"role": "user", "content": content}]}
        reply = await api.http.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        assert text in json.dumps(api.engine.requests[-1]["messages"])
        assert "file_data" not in api.engine.bodies[-1].decode()
    count = len(api.engine.requests)
    for wrong, status in (({"file_id": "file-none"}, 404), ({}, 400), ({"file_data": "%"}, 400)):
        content = [{"type": "file", "file": wrong}]
        body = {"model": model, "messages": [{"role": "user", "content": content}]}
        assert (await api.http.post("/v1/chat/completions", json=body)).status_code == status
    assert len(api.engine.requests) == count


async def test_the_ranking_options_of_a_search_are_heeded(api: Api, store_id: str) -> None:
    search: dict[str, Any] = {"type": "file_search", "vector_store_ids": [store_id]}
    await api.add_document(store_id, "lodge.txt", "The master of the harbour lives in a lodge by the sea.")
    weights = {"embedding_weight": 1, "text_weight": 0}
    for options, count in (
        (None, 2),
        ({"score_threshold": 0.0, "hybrid_search": weights, "ranker": "rrf"}, 2),
        ({"score_threshold": 1.0, "ranker": "none"}, 1),
    ):
        reply = await api.chat(QUESTION, "scripted", tools=[{**search, "ranking_options": options}])
        assert reply.status_code == 200, reply.text
        prompt = json.dumps(api.engine.requests[-1]["messages"])
        assert ("is Ondine Marsh" in prompt) + ("lives in a lodge" in prompt) == count, options


@pytest.mark.parametrize("model", ["scripted", "rag/harbour"])
async def test_chunks_are_padded_when_that_is_asked(api: Api, store_id: str, model: str) -> None:
    options = {"include_obfuscation": True, "include_usage": True}
    reply = await api.chat(QUESTION, model=model, stream=True, stream_options=options)
    chunks = chunks_of(reply.text)
    lengths = {
        sum(len(choice["delta"].get("content") or "") for choice in chunk["choices"])
        + len(chunk["obfuscation"])
        for chunk in chunks
    }
    assert lengths <= {0, 64}
    assert chunks[-1]["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("model", ["scripted", "rag/harbour"])
async def test_what_engines_know_reaches_them_and_what_has_no_effect_is_taken(
    api: Api, store_id: str, model: str
) -> None:
    passed = {
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "logit_bias": {"7": 3},
        "max_completion_tokens": 9,
        "prediction": {"type": "content", "content": "It is"},
        "reasoning_effort": "low",
        "seed": 3,
        "stop": ["END"],
        "temperature": 0,
        "top_p": 0.9,
        "verbosity": "low",
        "user": "u1",
        "safety_identifier": "s1",
        "prompt_cache_key": "k1",
        "prompt_cache_retention": "24h",
        "prompt_cache_options": {"mode": "auto"},
        "modalities": ["text"],
        "parallel_tool_calls": False,
        "service_tier": "default",
        "metadata": {"a": "b"},
        "store": False,
    }
    reply = await api.chat(QUESTION, model=model, **passed)
    assert reply.status_code == 200, reply.text
    (sent,) = api.engine.requests
    kept = {name: value for name, value in passed.items() if name not in ("metadata", "store")}
    assert {name: sent[name] for name in kept} == kept


@pytest.mark.parametrize("model", ["scripted", "rag/harbour"])
@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("n", 0, "greater than or equal to 1"),
        ("n", 129, "less than or equal to 128"),
        ("top_logprobs", 21, "less than or equal to 20"),
        ("logprobs", "many", "valid boolean"),
        ("max_tokens", 0, "greater than or equal to 1"),
        ("max_completion_tokens", 1_000_001, "less than or equal to 1000000"),
        ("temperature", 2.5, "less than or equal to 2"),
        ("audio", {"voice": "alloy", "format": "wav"}, "modalities"),
        ("audio", {"voice": "alloy", "format": "mp4"}, "'wav'"),
        ("web_search_options", {}, "nothing is searched outside"),
        ("moderation", {"model": "m"}, "no moderation model"),
        ("service_tier", "gold", "'auto'"),
        ("metadata", {"k": "v" * 513}, "at most 512"),
        ("safety_identifier", "x" * 65, "at most 64"),
        ("best_of", 2, "unknown field"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_field_and_bound(
    api: Api, store_id: str, model: str, field: str, value: Any, says: str
) -> None:
    reply = await api.chat(QUESTION, model=model, **{field: value})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"].split(".")[0] == field
    assert error["message"].startswith(field)
    assert says in error["message"]
    assert api.engine.requests == []


@pytest.mark.parametrize("model", ["scripted", "rag/harbour"])
async def test_a_million_tokens_are_refused_with_the_limit_and_the_count(
    api: Api, store_id: str, model: str
) -> None:
    reply = await api.chat("harbour " * 1_000_000, model=model)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert "maximum context length is 4096 tokens" in error["message"]
    assert "about 2666667 tokens" in error["message"]
    assert api.engine.requests == []


async def test_the_tier_says_the_lane_and_the_reply_tells_it(api: Api, store_id: str) -> None:
    api.engine.owned_by = "vllm"
    for tier, told, priority in (("flex", "flex", 10), ("priority", "default", 0), ("batch", "flex", 20)):
        reply = await api.chat(QUESTION, model="rag/harbour", service_tier=tier)
        assert reply.json()["service_tier"] == told
        assert api.engine.requests[-1]["priority"] == priority


async def test_pictures_reach_an_engine_beside_the_passages(api: Api, store_id: str) -> None:
    parts = [
        {"type": "text", "text": QUESTION},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    body = {"model": "rag/harbour", "messages": [{"role": "user", "content": parts}]}
    reply = await api.http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200
    sent = api.engine.requests[0]["messages"]
    assert HARBOUR in sent[0]["content"]
    assert sent[-1]["content"][1:] == parts


async def test_a_model_that_reads_no_pictures_is_not_sent_any(api: Api, tmp_path: Path) -> None:
    for name, config in (("blind", {"model_type": "llama"}), ("seeing", {"vision_config": {}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    models = GenerationModels(api.services.gateway, {name: tmp_path / name for name in ("blind", "seeing")})
    await models.must_take("seeing", ["image_url"])
    await models.must_take("unknown", ["image_url"])
    with pytest.raises(PartNotTaken, match=r"'blind' takes no parts of type 'image_url'"):
        await models.must_take("blind", ["image_url"])


async def test_a_spoken_answer_is_asked_of_models_that_speak_alone(
    models_url: str, parsers: ParserPool, tmp_path: Path
) -> None:
    sound = {"modalities": ["text", "audio"], "audio": {"voice": {"id": "v_1"}, "format": "wav"}}
    earlier = {"role": "assistant", "audio": {"id": "audio_1"}}
    async with opened_api(models_url, parsers, tmp_path, embedding=str(MINILM), speaking="scripted") as api:
        reply = await api.chat(QUESTION, model="scripted", **sound)
        assert reply.json()["choices"][0]["message"]["audio"]["id"] == "audio_1"
        assert {name: api.engine.requests[0][name] for name in sound} == sound
        messages = [{"role": "user", "content": "Ahoy"}, earlier, {"role": "user", "content": "Again"}]
        body = {"model": "scripted", "messages": messages}
        assert (await api.http.post("/v1/chat/completions", json=body)).status_code == 200
        assert api.engine.requests[1]["messages"][1] == earlier
        grounded = await api.chat(QUESTION, model="rag", **sound)
        assert (grounded.status_code, grounded.json()["error"]["param"]) == (400, "modalities")
        told = (await api.http.get("/v1/models/scripted")).json()
        assert "audio_output" in told["capabilities"]
    async with opened_api(models_url, parsers, tmp_path / "mute", embedding=str(MINILM)) as api:
        refused = await api.chat(QUESTION, model="scripted", **sound)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "modalities")
        assert "engine.speaking" in refused.json()["error"]["message"]
        refused = await api.http.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages[1].audio")
        assert api.engine.requests == []
