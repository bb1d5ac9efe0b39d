"""Questions that people saved with the passages that answer them: places alone, so that they go with their documents.

Errors:
    QuestionMissing         (NotFound)
    TooManyQuestions        the tenant has as many as are kept
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from retrieval.access import readable_documents
from retrieval.catalog import NotFound, get_document
from retrieval.ledger import record
from retrieval.scope import Scope
from retrieval.tables import DeletedKind, Document, SavedQuestion, new_id

MOST_ROWS = 20_000
"""Of a tenant."""


class QuestionMissing(NotFound):
    kind = "question"


class TooManyQuestions(Exception):
    """As many questions are saved as are kept."""

    def __init__(self) -> None:
        super().__init__(f"{MOST_ROWS:,} right passages are saved already. Delete questions first.")


@dataclass(frozen=True)
class RightPlace:
    """Characters of a document's text that answer a question."""

    collection_id: str
    file_id: str
    start_char: int
    end_char: int


@dataclass(frozen=True)
class Saved:
    """A question with its right places; of one that no document answers, `rows` has one without a place."""

    rows: Sequence[SavedQuestion]
    file_ids: Sequence[str]
    """Of its documents, each once."""

    @property
    def id(self) -> str:
        return self.rows[0].question_id

    @property
    def question(self) -> str:
        return self.rows[0].question

    @property
    def answer(self) -> str | None:
        return self.rows[0].answer


def save_question(
    session: Session,
    scope: Scope,
    *,
    set_name: str,
    question: str,
    answer: str | None,
    places: Sequence[RightPlace],
    now: float,
) -> str:
    """Returns its id. Raises NotFound for a document that is not there, TooManyQuestions."""
    kept = select(func.count()).where(SavedQuestion.tenant_id == scope.tenant_id)
    if session.scalars(kept).one() + len(places) >= MOST_ROWS:
        raise TooManyQuestions
    question_id = new_id("question_")
    for place in places or (None,):
        row = SavedQuestion(
            tenant_id=scope.tenant_id,
            question_id=question_id,
            set_name=set_name,
            question=question,
            answer=answer,
            created_at=now,
        )
        if place is not None:
            row.document_id = get_document(session, scope, place.collection_id, place.file_id).id
            row.start_char, row.end_char = place.start_char, place.end_char
        session.add(row)
    return question_id


def list_saved(session: Session, scope: Scope) -> dict[str, list[Saved]]:
    """By set, in the order in which they were saved: those whose documents the scope may all read."""
    readable = dict(
        session.execute(
            select(Document.id, Document.file_id)
            .join(SavedQuestion, SavedQuestion.document_id == Document.id)
            .where(readable_documents(scope))
        ).all()
    )
    query = select(SavedQuestion).where(SavedQuestion.tenant_id == scope.tenant_id)
    by_id: dict[str, list[SavedQuestion]] = {}
    for row in session.scalars(query.order_by(SavedQuestion.set_name, SavedQuestion.id)):
        by_id.setdefault(row.question_id, []).append(row)
    sets: dict[str, list[Saved]] = {}
    for rows in by_id.values():
        documents = [row.document_id for row in rows if row.document_id is not None]
        if all(each in readable for each in documents):
            file_ids = list(dict.fromkeys(readable[each] for each in documents))
            sets.setdefault(rows[0].set_name, []).append(Saved(rows, file_ids))
    return sets


def delete_question(session: Session, scope: Scope, question_id: str) -> None:
    """Raises QuestionMissing."""
    if all(each.id != question_id for saved in list_saved(session, scope).values() for each in saved):
        raise QuestionMissing(question_id)
    session.execute(
        delete(SavedQuestion).where(
            SavedQuestion.tenant_id == scope.tenant_id, SavedQuestion.question_id == question_id
        )
    )
    record(session, DeletedKind.QUESTION, question_id, scope.tenant_id)
