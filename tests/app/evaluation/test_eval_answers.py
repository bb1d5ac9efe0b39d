"""`strongroom eval answers` and `draw`, through the real app, over an engine that follows a script."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from app.evaluation.answers import metrics_of, without_markers
from app.evaluation.draw import Drawn, choose_passage, parse_drawn, unfit
from app.evaluation.questions import Passage, Question, read_questions
from app.evaluation.runs import REPORT, Cited, read_run
from tests.app.evaluation.conftest import Commands
from tests.app.evaluation.test_runs import check_is_harmless

pytestmark = pytest.mark.slow

HARBOUR = "The harbour master of Vellmouth is Ondine Marsh. The harbour has 41 berths for boats."
TOWER = "The Lamp Tower of Vellmouth has 118 steps and was lit first in the spring of 1871."


def asked_of(request: dict[str, Any]) -> str:
    """The question as the engine got it."""
    return str(request["messages"][-1]["content"])


def scripted(replies: dict[str, str]) -> Callable[[dict[str, Any]], str]:
    """Answers by a word of the question."""

    def answer(request: dict[str, Any]) -> str:
        asked = asked_of(request)
        return next((reply for word, reply in replies.items() if word in asked), "I cannot say.")

    return answer


def write_questions(path: Path, *questions: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in questions))
    return path


@pytest.fixture
async def harbour(commands: Commands) -> str:
    store_id = await commands.api.store("harbour")
    await commands.api.add_document(store_id, "harbour.txt", HARBOUR)
    await commands.api.add_document(store_id, "<script>.txt", TOWER)
    return store_id


@pytest.mark.usefixtures("harbour")
async def test_answers_citations_and_refusals_are_measured(commands: Commands, tmp_path: Path) -> None:
    commands.api.engine.answer = scripted(
        {
            "master": "The harbour master of Vellmouth is Ondine Marsh [1].",
            "steps": "The Lamp Tower has 118 steps.",
            "berths": "The documents do not say.",
            "boats does": "The harbour has 41 berths for boats.",
            "mayor": "The documents do not say.",
        }
    )
    questions = write_questions(
        tmp_path / "harbour questions.jsonl",
        {
            "id": "right",
            "question": "Who is the harbour master?",
            "answers": ["Ondine Marsh"],
            "documents": ["harbour.txt"],
        },
        {
            "id": "elsewhere",
            "question": "How many steps are there?",
            "answers": ["118"],
            "documents": ["harbour.txt"],
        },
        {
            "id": "held back",
            "question": "How many berths are there?",
            "answers": ["41"],
            "documents": ["harbour.txt"],
        },
        {"id": "invented", "question": "Which boats does Ann own?", "answerable": False},
        {"id": "refused", "question": "Who is the mayor of Vellmouth?", "answerable": False},
    )
    printed = await commands.succeed("answers", questions, "--collection", "harbour", "--system", "Be brief.")
    (path,) = commands.runs
    run = read_run(path)
    by_id = run.of("answers")
    right = by_id["right"]
    assert right.found == ("The harbour master of Vellmouth is Ondine Marsh.",), (
        "markers are no words of an answer"
    )
    (cited,) = right.citations
    assert (cited.filename, cited.is_wanted, cited.is_verbatim) == ("harbour.txt", True, True)
    # 6 words but for the article, of which 2 are wanted: 2 * (2 / 7) / (2 / 7 + 1).
    assert right.metrics["F1"] == pytest.approx(2 * (2 / 7) / (2 / 7 + 1))
    assert by_id["elsewhere"].citations[0].filename == "<script>.txt"
    means: dict[str, object] = {each.metric: (each.mean, each.count) for each in run.summaries}
    assert means["exact match"] == (0.0, 3)
    assert means["contains"] == (pytest.approx(2 / 3), 3)
    assert means["answered"] == (pytest.approx(2 / 3), 3)
    assert means["quote verbatim"] == (1.0, 3)
    assert means["citation precision"] == (0.5, 2)
    assert means["citation recall"] == (pytest.approx(1 / 3), 3)
    assert means["refusal precision"] == (0.5, 2), "one of two refusals was of a question without an answer"
    assert means["refusal recall"] == (0.5, 2), "one of two questions without an answer was refused"
    assert all("Be brief." in str(request["messages"]) for request in commands.api.engine.requests)
    told = check_is_harmless((path / REPORT).read_text())
    assert "it should have been refused" in told.text
    assert "<script>.txt" in told.text
    assert "refusal recall" in printed


@pytest.mark.usefixtures("harbour")
async def test_a_judge_says_which_answers_are_right(commands: Commands, tmp_path: Path) -> None:
    verdicts = {"Answer: The harbour master": "<think>no doubt</think>Yes.", "Answer: The Lamp Tower": "No"}
    said = {
        "master?": "The harbour master is Ondine Marsh.",
        "steps": "The Lamp Tower has 99 steps.",
        "lit": "In 1871.",
    }
    questions = write_questions(
        tmp_path / "questions.jsonl",
        {"id": "1", "question": "Who is the harbour master?", "answers": ["Ondine Marsh"]},
        {"id": "2", "question": "How many steps has the Lamp Tower?", "answers": ["118"]},
        {"id": "3", "question": "When was the Lamp Tower lit?", "answers": ["1871"]},
        {"id": "4", "question": "Who is the mayor?"},
    )
    commands.api.engine.answer = scripted({**verdicts, "Answer: In 1871": "Perhaps.", **said})
    await commands.succeed("answers", questions, "--judge", "scripted", "--at-once", "1")
    run = read_run(commands.runs[0])
    judged = {key: each.metrics.get("judged right") for key, each in run.of("answers").items()}
    assert judged == {"1": 1.0, "2": 0.0, "3": None, "4": None}
    assert any("neither yes nor no to 1 answers" in note for note in run.notes)


async def test_a_run_whose_engine_goes_away_ends_and_goes_on_once_it_is_back(
    commands: Commands, harbour: str, tmp_path: Path
) -> None:
    engine = commands.api.engine
    questions = write_questions(
        tmp_path / "questions.jsonl",
        *(
            {"id": f"{each}", "question": f"Who is the harbour master of {each}?", "answers": ["Ann"]}
            for each in range(5)
        ),
    )
    answers = ("answers", questions, "--collection", harbour, "--at-once", "1")

    def third_time_is_none(request: dict[str, Any]) -> str:
        if "master of 2" in asked_of(request):
            engine.status = 503
        return "The harbour master is Ondine Marsh."

    engine.answer = third_time_is_none
    told = await commands.fail(*answers)
    (path,) = commands.runs
    assert f"--resume {path}" in told.replace("\n", "")
    kept = len(engine.requests)
    engine.status = 200
    engine.answer = lambda _: "The harbour master is Ondine Marsh."
    await commands.succeed(*answers, "--resume", path)
    run = read_run(path)
    assert len(run.of("answers")) == 5
    assert len(engine.requests) - kept in (2, 3), "what was answered before is not asked again"


@pytest.mark.usefixtures("harbour")
async def test_bad_questions_collections_and_models_are_told(commands: Commands, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "Who?", "answers": ["Ann"]}\n{"question": ""}\n')
    assert "line 2: question" in await commands.fail("answers", questions)
    write_questions(questions, {"question": "Who is the harbour master?", "answers": ["Ann"]})
    assert "no collection 'nowhere'" in await commands.fail("answers", questions, "--collection", "nowhere")
    assert "'nobody' does not exist" in await commands.fail("answers", questions, "--judge", "nobody")
    assert "cannot be read" in await commands.fail("answers", tmp_path / "none.jsonl")
    assert "no collection 'nowhere'" in await commands.fail("draw", "--collection", "nowhere")
    away = replace(commands, url="http://127.0.0.1:9")
    assert "127.0.0.1:9 does not answer" in await away.fail("answers", questions)
    assert "127.0.0.1:9 does not answer" in await away.fail("draw", "--collection", "harbour")
    commands.api.engine.status = 500
    assert "refused by the script" in await commands.fail(
        "draw", "--collection", "harbour", "--out", tmp_path / "drawn.jsonl"
    )


async def test_questions_are_drawn_up_from_documents_and_can_be_asked(
    commands: Commands, tmp_path: Path
) -> None:
    store_id = await commands.api.store("harbour")
    await commands.api.add_document(store_id, "harbour.txt", f"{HARBOUR} {HARBOUR}")
    await commands.api.add_document(store_id, "tower.txt", f"{TOWER} {TOWER}")
    await commands.api.add_document(store_id, "short.txt", "Too short to ask about.")
    of_harbour = cycle(
        [
            '{"question": "Who is the harbour master of Vellmouth?", "answer": "Ondine Marsh"}',
            '{"question": "What does the passage say of berths?", "answer": "41 berths"}',
        ]
    )
    of_tower = cycle(
        [
            'Here:\n```json\n{"question": "How many steps has the Lamp Tower?", "answer": "118 steps"}\n```',
            '{"question": "Who built the Lamp Tower of Vellmouth?", "answer": "Jonas Vey"}',
            "I would rather not.",
        ]
    )
    commands.api.engine.answer = lambda request: next(
        of_harbour if "Ondine" in asked_of(request) else of_tower
    )
    out = tmp_path / "drawn" / "questions.jsonl"
    printed = await commands.succeed(
        "draw", "--collection", "harbour", "--count", "2", "--out", out, "--seed", "1"
    )
    assert "2 of 2 questions" in printed
    drawn = read_questions(out).questions
    assert len(drawn) == 2
    async with commands.remote() as remote:
        files = {name: key for key, name in (await remote.documents(store_id)).items()}
        for question in drawn.values():
            (name,) = question.documents
            text = await remote.text(store_id, files[name])
            assert question.passage is not None
            assert text[question.passage.start_char : question.passage.end_char] == question.passage.text
            assert question.answers[0] in question.passage.text
    before = out.read_bytes()
    await commands.succeed("draw", "--collection", "harbour", "--count", "2", "--out", out)
    assert out.read_bytes() == before, "a file that holds enough is left as it is"
    short = await commands.succeed("draw", "--collection", "harbour", "--count", "3", "--out", out)
    assert "2 of 3 questions" in short
    assert "the question is there already" in short
    assert "the answer does not stand in the passage" in short
    assert "The passages ran out" in short

    commands.api.engine.answer = lambda _: "The harbour master of Vellmouth is Ondine Marsh."
    await commands.succeed("answers", out, "--collection", "harbour")
    assert len(read_run(commands.runs[0]).outcomes) == 2


PASSAGE = Passage(text="The Lamp Tower of Vellmouth has 118 steps, and no lift.", start_char=0, end_char=55)


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("How many steps has the Lamp Tower?", "118 steps", None),
        ("How many steps has the Lamp Tower?", "118 Steps.", None),
        ("How many steps has the Lamp Tower?", "18", "the answer does not stand in the passage"),
        ("How many steps has the Lamp Tower?", "?", "the answer does not stand in the passage"),
        ("How many?", "118", "the question is too short"),
        ("Are there 118 steps in the Lamp Tower?", "118 steps", "the question holds its answer"),
        ("What does this document say of lifts?", "no lift", "the question speaks of the passage"),
    ],
)
def test_a_drawn_question_is_kept_only_if_its_passage_answers_it(
    question: str, answer: str, reason: str | None
) -> None:
    assert unfit(Drawn(question=question, answer=answer), PASSAGE) == reason


def test_a_long_answer_is_none_that_could_be_compared() -> None:
    words = " ".join(f"word{each}" for each in range(40))
    passage = Passage(text=words, start_char=0, end_char=len(words))
    assert (
        unfit(Drawn(question="Which words are in there?", answer=words), passage) == "the answer is too long"
    )


@pytest.mark.parametrize("reply", ["", "none", "{", '{"question": "Who?"}', "[1]"])
def test_a_reply_that_is_not_the_json_asked_for_is_no_question(reply: str) -> None:
    assert parse_drawn(reply) is None


@pytest.mark.parametrize(
    "text",
    [
        " ".join(f"word{each}" for each in range(3_000)),
        "\n\n".join(
            f"Paragraph {each} tells of boats and berths and of the people who sail." for each in range(99)
        ),
        "\n" * 50 + "A short text, but long enough to ask something about it. " * 3 + "\n" * 50,
        "x" * 5_000,
        "字" * 5_000,
    ],
)
def test_a_passage_stands_in_its_document_where_it_says(text: str) -> None:
    for seed in range(200):
        passage = choose_passage(text, random.Random(seed))
        assert passage is not None
        assert text[passage.start_char : passage.end_char] == passage.text
        assert 70 < len(passage.text) <= 1_200


def test_an_empty_document_has_no_passage() -> None:
    assert choose_passage(" \n" * 500, random.Random(1)) is None


def test_markers_are_taken_out_where_the_annotations_say_and_other_brackets_stay() -> None:
    content = "Row [1] holds it. [2] It is so. [1]"
    places = [(18, 21), (32, 35)]
    annotations = [{"url_citation": {"start_index": start, "end_index": end}} for start, end in places]
    assert without_markers(content, annotations) == "Row [1] holds it. It is so."


def test_a_failed_question_is_no_refusal() -> None:
    question = Question(question="Who?", answerable=False)
    failed = metrics_of(question, "", [], grounded=False, failed=True)
    assert failed == {"F1 with refusals": 0.0, "refusal recall": 0.0}


def test_a_document_that_is_cited_twice_is_recalled_once() -> None:
    question = Question(question="Who?", answers=("Ann",), documents=("a.txt", "b.txt"))
    cited = Cited(filename="a.txt", quote="Ann.", wanted_as="a.txt", is_wanted=True, is_verbatim=True)
    elsewhere = Cited(filename="c.txt", quote="Bob.", wanted_as=None, is_wanted=False, is_verbatim=True)
    broken = Cited(filename="b.txt", quote="Cat.", wanted_as="b.txt", is_wanted=True, is_verbatim=False)
    metrics = metrics_of(question, "Ann", [cited, cited, elsewhere, broken], grounded=True, failed=False)
    assert (metrics["citation precision"], metrics["citation recall"]) == (0.5, 0.5)
    assert metrics["quote verbatim"] == 0.75
