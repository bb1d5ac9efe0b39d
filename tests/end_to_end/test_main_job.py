"""Upload, ask, read the citation; delete, and it is gone: through the openai client, on the real stack."""

import json
from pathlib import Path
from typing import Any

import docx
import httpx
import pytest
from openai import APIStatusError, OpenAI

from tests.stack import Stack, eventually

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def store_id(stack: Stack, handbook: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    client = stack.client()
    store = client.vector_stores.create(name="lighthouse")
    memo = tmp_path_factory.mktemp("memo") / "memo.docx"
    written = docx.Document()
    written.add_heading("Boat rota", level=1)
    written.add_paragraph(
        "The supply boat Petrel sails to the lighthouse on Thursdays. Its skipper is Joss Amory."
    )
    written.save(str(memo))
    for path in (handbook, memo):
        file = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=path)
        assert file.status == "completed", file.last_error
    return store.id


def ask(client: OpenAI, question: str, store_id: str) -> tuple[str, list[dict[str, Any]], list[Any]]:
    """The streamed answer, its annotations, and the chunks."""
    chunks = list(
        client.chat.completions.create(
            model="rag/lighthouse",
            messages=[{"role": "user", "content": question}],
            stream=True,
            temperature=0,
            max_tokens=120,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    annotations = [
        annotation
        for chunk in chunks
        if chunk.choices
        for annotation in getattr(chunk.choices[0].delta, "annotations", None) or []
    ]
    return text, annotations, chunks


def test_a_streamed_answer_holds_the_fact_and_cites_the_page_where_it_stands(
    client: OpenAI, store_id: str
) -> None:
    text, annotations, chunks = ask(client, "How high is the tower of the Brennick lighthouse?", store_id)
    assert "47" in text
    cited = annotations[0]
    assert cited["filename"] == "lighthouse-handbook.pdf"
    assert cited["page"] == 1
    assert "47 metres high" in cited["quote"]
    assert cited["boxes"]
    marker = cited["url_citation"]
    assert text[marker["start_index"] : marker["end_index"]] == f"[{cited['number']}]"
    assert chunks[-1].usage.completion_tokens > 0


def test_each_quote_stands_verbatim_at_its_offsets_in_the_stored_text(client: OpenAI, store_id: str) -> None:
    _, annotations, _ = ask(client, "What is the range of the lamp of the Brennick lighthouse?", store_id)
    assert annotations
    for cited in annotations:
        content = client.vector_stores.files.content(cited["file_id"], vector_store_id=store_id)
        stored = content.data[0].text
        assert stored is not None
        assert stored[cited["start_char"] : cited["end_char"]] == cited["quote"]
    assert annotations[0]["page"] == 2


def test_a_citations_link_opens_the_quote_and_the_pdf_without_a_key(
    stack: Stack, client: OpenAI, store_id: str
) -> None:
    _, annotations, _ = ask(client, "What is the range of the lamp of the Brennick lighthouse?", store_id)
    url = annotations[0]["url_citation"]["url"]
    page = httpx.get(url.partition("#")[0])
    assert page.status_code == 200
    assert "<mark>" in page.text
    assert "23 nautical miles" in page.text.partition("<mark>")[2].partition("</mark>")[0]
    assert url.endswith("#page=2")
    source = httpx.get(url.partition("#")[0] + "/source")
    assert source.headers["content-type"] == "application/pdf"
    assert source.content.startswith(b"%PDF")
    forged = url.partition("#")[0][:-4] + "AAAA"
    assert httpx.get(forged).status_code == 404
    assert stack.process.poll() is None


def test_a_whole_answer_carries_annotations_and_usage(client: OpenAI, store_id: str) -> None:
    reply = client.chat.completions.create(
        model="rag",
        messages=[
            {"role": "system", "content": "You are a helpful harbour clerk."},
            {"role": "user", "content": "On which day does the supply boat Petrel sail to the lighthouse?"},
        ],
        temperature=0,
        max_tokens=60,
        extra_body={"vector_store_ids": [store_id]},
    )
    message = reply.choices[0].message
    assert "Thursday" in (message.content or "")
    assert message.annotations
    assert "Thursdays" in message.annotations[0].model_dump()["quote"]
    assert reply.usage is not None
    assert reply.usage.prompt_tokens > 40


def test_the_file_search_tool_and_n_survive(client: OpenAI, store_id: str) -> None:
    tool: Any = {"type": "file_search", "vector_store_ids": [store_id]}
    reply = client.chat.completions.create(
        model="SmolLM2-135M-Instruct",
        messages=[{"role": "user", "content": "Who is the skipper of the supply boat Petrel?"}],
        tools=[tool],
        n=2,
        temperature=0.2,
        max_tokens=40,
        stop=["\n\n"],
    )
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert any("Joss Amory" in (choice.message.content or "") for choice in reply.choices)


def test_a_json_answer_stays_json(client: OpenAI, store_id: str) -> None:
    reply = client.chat.completions.create(
        model="rag/lighthouse",
        messages=[{"role": "user", "content": "Who built the Brennick lighthouse tower, and when?"}],
        temperature=0,
        max_tokens=100,
        response_format={
            "type": "json_schema",
            "json_schema": {
                "name": "builder",
                "schema": {
                    "type": "object",
                    "properties": {"builder": {"type": "string"}, "year": {"type": "integer"}},
                    "required": ["builder", "year"],
                },
            },
        },
    )
    answered = json.loads(reply.choices[0].message.content or "")
    assert set(answered) == {"builder", "year"}
    assert isinstance(answered["year"], int)


def test_a_question_that_nothing_bears_on_is_refused_and_cites_nothing(client: OpenAI, store_id: str) -> None:
    text, annotations, chunks = ask(
        client, "Which team won the football world cup final in Berlin?", store_id
    )
    assert "documents do not say" in text
    assert annotations == []
    assert chunks[0].grounded is False


def test_a_plain_model_is_passed_through_untouched(stack: Stack, client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="SmolLM2-135M-Instruct",
        messages=[{"role": "user", "content": "Say hello."}],
        max_tokens=8,
        temperature=0,
        logprobs=True,
    )
    assert reply.choices[0].logprobs is not None
    assert not hasattr(reply, "grounded")
    completion = client.completions.create(model="SmolLM2-135M-Instruct", prompt="One, two,", max_tokens=4)
    assert completion.choices[0].text


def test_what_is_deleted_is_gone_from_search_at_once(client: OpenAI, tmp_path: Path) -> None:
    store = client.vector_stores.create(name="short-lived")
    path = tmp_path / "secret.txt"
    path.write_text("The spare key of the Brennick lighthouse hangs behind the barometer.")
    file = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=path)
    found = client.vector_stores.search(store.id, query="Where is the spare key?")
    assert "barometer" in found.data[0].content[0].text
    client.files.delete(file.id)
    assert client.vector_stores.search(store.id, query="Where is the spare key?").data == []
    for read in (
        lambda: client.files.retrieve(file.id),
        lambda: client.files.content(file.id),
        lambda: client.vector_stores.files.retrieve(file.id, vector_store_id=store.id),
        lambda: client.vector_stores.files.content(file.id, vector_store_id=store.id),
    ):
        with pytest.raises(APIStatusError) as refused:
            read()
        assert refused.value.status_code == 404
    reply = client.chat.completions.create(
        model="rag/short-lived",
        messages=[{"role": "user", "content": "Where is the spare key of the lighthouse?"}],
    )
    assert "barometer" not in (reply.choices[0].message.content or "")


def test_an_engine_stops_within_a_second_of_its_clients_departure(stack: Stack, client: OpenAI) -> None:
    with client.chat.completions.create(
        model="SmolLM2-135M-Instruct",
        messages=[{"role": "user", "content": "Tell a very long story about the sea."}],
        max_tokens=2000,
        stream=True,
        extra_body={"min_tokens": 1900},
    ) as answer:
        next(iter(answer))
    eventually(lambda: not engine_computes(stack), within_s=1.5)


def engine_computes(stack: Stack) -> bool:
    """Asks the engine itself."""
    url, key = stack.engine_address()
    metrics = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"}).text
    lines = [line for line in metrics.splitlines() if line.startswith("vllm:num_requests_running")]
    return not all(line.endswith(" 0.0") for line in lines)
