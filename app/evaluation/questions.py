"""Reads and writes question files: one JSON object a line, with the answers and documents that are wanted."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.evaluation.lines import EvaluationRefused, read_lines


class Passage(BaseModel):
    """Where a question that was drawn up came from: characters of the document's text."""

    text: str
    start_char: int
    end_char: int


class Question(BaseModel):
    """`answers`: any of them is right. `documents`: names or ids of the files that a right answer may cite.

    Without `answerable`, a question is taken for answerable when it has an answer. Other fields are passed over.
    """

    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True)

    id: str = ""
    question: str = Field(min_length=1)
    answers: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()
    answerable: bool | None = None
    passage: Passage | None = None

    @model_validator(mode="after")
    def answers_fit(self) -> "Question":
        if self.answerable and not self.answers:
            raise ValueError("answers: an answerable question needs one at least")
        return self

    @property
    def is_answerable(self) -> bool:
        return bool(self.answers) if self.answerable is None else self.answerable


@dataclass(frozen=True)
class QuestionFile:
    """Questions by id; a line without one has its number for id."""

    name: str
    questions: dict[str, Question]
    sha256: str


def read_questions(path: Path) -> QuestionFile:
    """Raises EvaluationRefused."""
    questions: dict[str, Question] = {}
    for number, question in read_lines(path, Question):
        question_id = question.id or f"line {number}"
        if question_id in questions:
            raise EvaluationRefused(f"{path}, line {number}: the id '{question_id}' is there twice.")
        questions[question_id] = question.model_copy(update={"id": question_id})
    if not questions:
        raise EvaluationRefused(f"{path} holds no question.")
    return QuestionFile(path.stem, questions, hashlib.sha256(path.read_bytes()).hexdigest())


def as_line(question: Question) -> bytes:
    return question.model_dump_json(exclude_none=True).encode() + b"\n"
