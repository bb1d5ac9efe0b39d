"""Test collections and question files as people write them: read whole, or refused with the line."""

from pathlib import Path

import pytest

from app.evaluation.beir import file_name, read_beir
from app.evaluation.lines import EvaluationRefused
from app.evaluation.questions import read_questions
from tests.app.evaluation.beir_folder import JUDGED, write_beir


def test_a_folder_is_read_with_its_judged_queries_only(tmp_path: Path) -> None:
    asked = read_beir(write_beir(tmp_path))
    assert asked.name == "harbour"
    assert set(asked.queries) == set(JUDGED)
    assert asked.grades["q1"] == {"lamp": 2, "Lamp": 1}, "grade 0 is not relevant"
    assert asked.documents["ferry"].startswith("Ferry\n\nThe ferry")
    assert asked.documents["vault"].startswith("The Icehouse")


def test_some_queries_can_be_chosen_and_those_that_are_not_there_are_noted(tmp_path: Path) -> None:
    folder = write_beir(tmp_path)
    asked = read_beir(folder, only={"q2", "q9"})
    assert list(asked.queries) == ["q2"]
    assert "1 of the chosen queries" in asked.notes[0]
    assert asked.sha256 != read_beir(folder).sha256


@pytest.mark.parametrize(
    "line",
    [b"q1\tlamp\t1", b"q1\tlamp\t1\r", b"q1\t0\tlamp\t1", b"q1\t 0 lamp\t1", b"q1 0 lamp 1", b"q1 lamp 1"],
)
def test_judgements_are_read_in_every_form_that_is_about(tmp_path: Path, line: bytes) -> None:
    folder = write_beir(tmp_path)
    (folder / "qrels" / "test.tsv").write_bytes(line + b"\nq2\ta/b c\t2\n")
    assert read_beir(folder).grades == {"q1": {"lamp": 1}, "q2": {"a/b c": 2}}


def test_different_ids_have_different_names_of_files_that_hold_no_folder() -> None:
    ids = ["a/b", "a%2Fb", "a b", " a b", "ä", "a" * 300, "a" * 301, "..", "x\ny", "C:\\x"]
    names = [file_name(each) for each in ids]
    assert len(set(names)) == len(ids)
    for name in names:
        assert "/" not in name
        assert "\\" not in name
        assert name.isprintable()
        assert len(name) <= 255


@pytest.mark.parametrize("missing", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_folder_that_lacks_a_file_is_refused_by_its_name(tmp_path: Path, missing: str) -> None:
    folder = write_beir(tmp_path)
    (folder / missing).unlink()
    with pytest.raises(EvaluationRefused, match=f"{missing} is missing"):
        read_beir(folder)


@pytest.mark.parametrize(
    ("name", "line", "told"),
    [
        ("corpus.jsonl", b'{"_id": "x", "text": ', "corpus.jsonl, line 11"),
        ("corpus.jsonl", b'{"_id": "x"}', "line 11: text: Field required"),
        ("corpus.jsonl", b'{"_id": "lamp", "text": "Again."}', "line 11: the id 'lamp' is there twice"),
        ("corpus.jsonl", b'{"_id": "x", "text": "\xff"}', "corpus.jsonl, line 11"),
        ("queries.jsonl", b"[1, 2]", "queries.jsonl, line 6"),
        ("qrels/test.tsv", b"q1 lamp", "test.tsv, line 8: it must be"),
        ("qrels/test.tsv", b"q1\tlamp\thigh", "test.tsv, line 8: it must be"),
    ],
)
def test_a_malformed_line_is_refused_by_its_number(tmp_path: Path, name: str, line: bytes, told: str) -> None:
    folder = write_beir(tmp_path)
    with (folder / name).open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(EvaluationRefused) as refused:
        read_beir(folder)
    assert told in str(refused.value)


def test_a_line_separator_of_unicode_ends_no_line(tmp_path: Path) -> None:
    folder = write_beir(tmp_path)
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": 7, "text": "one\u2028two\u0085three"}\n')
    assert read_beir(folder).documents["7"] == "one\u2028two\u0085three"


def test_questions_are_answerable_when_they_have_answers_unless_they_say_so(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(
        '{"question": "Who?", "answers": ["Ann"]}\n\n'
        '{"question": "Why?"}\n'
        '{"id": "w", "question": "When?", "answers": ["1932"], "answerable": false, "more": 1}\n'
    )
    read = read_questions(path).questions
    assert {key: each.is_answerable for key, each in read.items()} == {
        "line 1": True,
        "line 3": False,
        "w": False,
    }


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"answers": ["x"]}', "line 2: question: Field required"),
        ('{"question": "Who?", "answerable": true}', "line 2: Value error, answers: an answerable question"),
        ('{"question": "Who?", "answers": "Ann"}', "line 2: answers"),
        ('{"id": "line 1", "question": "Who?"}', "the id 'line 1' is there twice"),
        ("nonsense", "line 2: Invalid JSON"),
    ],
)
def test_a_malformed_question_is_refused_by_its_line(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(f'{{"question": "Who?", "answers": ["Ann"]}}\n{line}\n')
    with pytest.raises(EvaluationRefused) as refused:
        read_questions(path)
    assert told in str(refused.value)
    path.write_text("\n")
    with pytest.raises(EvaluationRefused, match="holds no question"):
        read_questions(path)
