"""README's section on clients, example by example, as it stands there; and Open WebUI's requests."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.conftest import ROOT, Served

SECTION = (ROOT / "README.md").read_text().split("\n## Clients\n")[1].split("\n## ")[0]
EXAMPLES = re.findall(r"```(\w+)\n(.*?)```", SECTION, re.DOTALL)
VAULT = "The Icehouse keeps the seed vault at minus 18 degrees."
QUESTION = "How cold is the seed vault?"
CITED = f"{VAULT} [1]"


def example(mark: str) -> str:
    found: list[str] = [text for _, text in EXAMPLES if mark in text]
    assert len(found) == 1
    return found[0]


@pytest.fixture
async def vault(strongroom: Served) -> Served:
    """The collection that the examples ask, and a model that knows it."""
    strongroom.engine.answer = lambda _: VAULT
    strongroom.engine.tool_calls = ()
    await strongroom.api.add_document(await strongroom.api.store("manuals"), "vault.txt", VAULT)
    return strongroom


def at(vault: Served, text: str) -> str:
    assert "http://127.0.0.1:8080" in text
    return text.replace("http://127.0.0.1:8080", vault.url)


async def test_curl(vault: Served) -> None:
    (vault.home / "notes.txt").write_text("A note.")
    streamed, _, uploaded = (await vault.run("sh", "-e", "-c", at(vault, example("curl -sN")))).rpartition(
        "[DONE]"
    )
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)[:-2] == CITED[:-2]
    assert json.loads(uploaded)["filename"] == "notes.txt"


@pytest.mark.parametrize("mark", ["langchain_openai", "llama_index"])
async def test_in_python(vault: Served, python_clients: Path, mark: str) -> None:
    script = vault.home / "example.py"
    script.write_text("import os\n" + at(vault, example(mark)))
    assert (await vault.run(python_clients, script)).strip() == CITED


@pytest.mark.parametrize("mark", ["new OpenAI", "createOpenAICompatible"])
async def test_in_node(vault: Served, node_clients: str, mark: str) -> None:
    script = vault.home / "example.mjs"
    script.write_text(at(vault, example(mark)))
    assert CITED in await vault.run(node_clients, script)


async def test_llm(vault: Served, python_clients: Path) -> None:
    text = example("model_id")
    (set_key,) = re.findall(r"# (llm keys set .*)", text)
    there = {"LLM_USER_PATH": str(vault.home), "PATH": f"{python_clients.parent}:/usr/bin:/bin"}
    (vault.home / "extra-openai-models.yaml").write_text(at(vault, text))
    await vault.run("sh", "-e", "-c", set_key, **there)
    for options in ([], ["--no-stream"]):
        assert (
            await vault.run(python_clients.parent / "llm", "-m", "manuals", *options, QUESTION, **there)
        ).strip() == CITED
    assert [bool(sent.get("stream")) for sent in vault.engine.requests] == [True, False]


async def test_open_webuis_requests(vault: Served) -> None:
    """Its requests as we know them of parts of its source, not noted from the program: models, a chat, the title that
    it has made of it, its embeddings.
    """
    settings = dict(re.findall(r"(\w+)=(\S+)", at(vault, example("OPENAI_API_BASE_URL"))))
    told_by = {
        "X-OpenWebUI-User-Name": "Ada%20L",
        "X-OpenWebUI-User-Id": "7",
        "X-OpenWebUI-User-Role": "user",
    }
    headers = {"Authorization": f"Bearer {vault.key}", "Content-Type": "application/json", **told_by}
    async with httpx.AsyncClient(headers=headers) as client:
        base = settings["OPENAI_API_BASE_URL"]
        models = (await client.get(f"{base}/models")).json()["data"]
        assert {"id": "rag/manuals", "object": "model", "owned_by": "strongroom"}.items() <= next(
            each for each in models if each["id"] == "rag/manuals"
        ).items()
        chat: dict[str, Any] = {
            "stream": True,
            "model": "rag/manuals",
            "messages": [{"role": "user", "content": QUESTION}],
            "stream_options": {"include_usage": True},
            "temperature": 0.8,
            "max_tokens": 500,
        }
        text, usage = "", {"total_tokens": 0}
        async with client.stream("POST", f"{base}/chat/completions", json=chat) as reply:
            assert reply.headers["content-type"].startswith("text/event-stream")
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    usage = chunk.get("usage") or usage
                    for choice in chunk["choices"]:
                        text += choice["delta"].get("content") or ""
        assert text == CITED
        assert usage["total_tokens"] > 0
        title = {
            "model": "scripted",
            "messages": [{"role": "user", "content": "### Task:\nGenerate a concise title."}],
            "stream": False,
            "max_completion_tokens": 1000,
        }
        told = (await client.post(f"{base}/chat/completions", json=title)).json()
        assert told["choices"][0]["message"]["content"] == VAULT
        embedded = await client.post(
            f"{settings['RAG_OPENAI_API_BASE_URL']}/embeddings",
            json={"input": ["a chunk", "another"], "model": settings["RAG_EMBEDDING_MODEL"]},
        )
        assert [len(each["embedding"]) for each in embedded.json()["data"]] == [384, 384]


def test_each_example_is_tried() -> None:
    tried = (
        "curl -sN",
        "langchain_openai",
        "llama_index",
        "model_id",
        "new OpenAI",
        "createOpenAICompatible",
        "OPENAI_API_BASE_URL",
    )
    assert len(EXAMPLES) == len(tried)
    for mark in tried:
        assert len([line for line in example(mark).splitlines() if line]) <= 4
