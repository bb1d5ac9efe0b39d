"""Refusals: in the question's language, without the engine, and told apart from what a model says about documents."""

import json
from functools import partial
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from app.answers.refusal import declines, not_said_of, refusal
from retrieval.languages import LANGUAGES
from tests.app.conftest import Api
from tests.retrieval.test_languages import QUESTIONS

HARBOUR = (
    "The harbour master of Vellmouth is Ondine Marsh. Her office is on the second floor of the Customs House."
)
TOWER = "The Lamp Tower of Vellmouth has 118 steps and no lift. It was lit first in 1871."
UNCOVERED = {
    "en": "How do I bake a chocolate cake?",
    "de": "Wie backe ich einen Schokoladenkuchen?",
    "fr": "Comment faire un gâteau au chocolat ?",
    "es": "¿Cómo se hace una tarta de chocolate?",
    "ru": "Как испечь шоколадный торт?",
    "ja": "チョコレートケーキの作り方は？",
}


@pytest.fixture
async def store_id(api: Api) -> str:
    store = await api.store("harbour")
    await api.add_document(store, "harbour.txt", HARBOUR)
    await api.add_document(store, "tower.txt", TOWER)
    return store


def _say(answer: str, _: dict[str, Any]) -> str:
    return answer


def said_in(reply: str) -> tuple[str, list[dict[str, Any]]]:
    """Text and events of a stream."""
    events = [line.removeprefix("data: ") for line in reply.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas), chunks


@pytest.mark.parametrize("language", UNCOVERED)
async def test_an_uncovered_question_is_refused_in_its_language_without_the_engine(
    api: Api, store_id: str, language: str
) -> None:
    question = UNCOVERED[language]
    whole = (await api.chat(question, model=f"rag/{store_id}")).json()
    message = whole["choices"][0]["message"]
    assert message["content"] == refusal(question)
    assert message["annotations"] == []
    assert whole["grounded"] is False
    assert 0 <= whole["evidence"] < 0.5
    ChatCompletion.model_validate(whole)

    streamed = await api.chat(question, model=f"rag/{store_id}", stream=True)
    text, chunks = said_in(streamed.text)
    assert text == refusal(question)
    assert all(chunk["grounded"] is False for chunk in chunks)
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    assert api.engine.requests == []


async def test_a_covered_question_is_answered_and_tells_its_evidence(api: Api, store_id: str) -> None:
    api.engine.answer = lambda _: "The Lamp Tower has 118 steps."
    whole = (await api.chat("How many steps has the Lamp Tower?", model=f"rag/{store_id}")).json()
    assert whole["grounded"] is True
    assert whole["evidence"] > 0.5
    text, chunks = said_in(
        (await api.chat("How many steps has the Lamp Tower?", model=f"rag/{store_id}", stream=True)).text
    )
    assert "118 steps" in text
    assert chunks[0]["evidence"] == whole["evidence"]
    assert len(api.engine.requests) == 2


async def test_an_engine_that_finds_no_answer_is_not_cited(api: Api, store_id: str) -> None:
    for answer in (
        "The documents do not say who built the Lamp Tower of Vellmouth.",
        "Die Dokumente sagen dazu nichts.",
        "The passages do not mention how many steps the Lamp Tower of Vellmouth has, nor the lift.",
    ):
        api.engine.answer = partial(_say, answer)
        reply = (await api.chat("How many steps has the Lamp Tower?", model=f"rag/{store_id}")).json()
        assert reply["grounded"] is False
        assert reply["choices"][0]["message"]["annotations"] == []
        assert reply["choices"][0]["message"]["content"] == answer


async def test_of_two_questions_the_covered_one_is_answered_and_the_other_is_told(
    api: Api, store_id: str
) -> None:
    api.engine.answer = lambda _: "The Lamp Tower has 118 steps."
    asked = "How many steps has the Lamp Tower? How do I bake a chocolate cake?"
    whole = (await api.chat(asked, model=f"rag/{store_id}")).json()
    content = whole["choices"][0]["message"]["content"]
    assert content.startswith("The Lamp Tower has 118 steps. [")
    assert content.endswith("The documents do not say: How do I bake a chocolate cake?")
    assert whole["not_covered"] == ["How do I bake a chocolate cake?"]
    assert whole["grounded"] is True
    text, chunks = said_in((await api.chat(asked, model=f"rag/{store_id}", stream=True)).text)
    assert text == content
    assert chunks[0]["not_covered"] == whole["not_covered"]
    assert "chocolate" not in api.engine.requests[0]["messages"][0]["content"]


async def test_the_search_tells_evidence_beside_its_scores(api: Api, store_id: str) -> None:
    path = f"/v1/vector_stores/{store_id}/search"
    found = {}
    for query in ("How many steps has the Lamp Tower?", UNCOVERED["en"]):
        page = (await api.http.post(path, json={"query": query, "include": ["scores"]})).json()
        found[query] = page["evidence"]
        assert set(page["evidence"]) == {"score", "threshold", "signals"}
    covered, other = found.values()
    assert covered["score"] >= covered["threshold"] == other["threshold"] > other["score"]
    assert covered["signals"]["words"] == 1.0
    assert "relevance" not in covered["signals"], "no reranker read them"
    plain = (await api.http.post(path, json={"query": "steps"})).json()
    assert "evidence" not in plain


def test_there_is_a_refusal_in_every_language_that_is_told() -> None:
    refusals = {language: refusal(questions[0]) for language, questions in QUESTIONS.items()}
    assert tuple(refusals) == LANGUAGES
    assert len(set(refusals.values())) == len(LANGUAGES)
    for language, said in refusals.items():
        asked = QUESTIONS[language][0]
        assert declines(said), said
        assert not_said_of([asked]).endswith(asked)


@pytest.mark.parametrize(
    "sentence",
    [
        "The documents do not say.",
        "The documents don’t say who built it.",
        "The provided passages do not contain information about chocolate cakes.",
        "There is no information in the given context about that.",
        "None of the passages mention a mayor.",
        "I cannot find an answer in the documents.",
        "I don't know.",
        "The passage does not specify when it was built.",
        "Die Dokumente enthalten keine Angaben dazu.",
        "In den Unterlagen steht nichts über Kuchen.",
        "Les documents ne mentionnent pas cette information.",
        "Los documentos no mencionan esa fecha.",
        "I documenti non contengono questa informazione.",
        "Os documentos não mencionam essa data.",
        "De documenten bevatten geen informatie hierover.",
    ],
)
def test_a_sentence_that_says_that_nothing_was_found_declines(sentence: str) -> None:
    assert declines(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "The harbour master is Ondine Marsh.",
        "Dogs are not allowed in the Customs House.",
        "The policy does not cover floods.",
        "The contract does not mention a fee.",
        "Documents must be kept for ten years.",
        "The source of the river is not known to tourists.",
        "No lift leads up the Lamp Tower.",
        "Die Akten dürfen nicht kopiert werden.",
        "El puerto no tiene faro.",
        "",
    ],
)
def test_a_claim_with_a_negation_does_not_decline(sentence: str) -> None:
    assert not declines(sentence)
