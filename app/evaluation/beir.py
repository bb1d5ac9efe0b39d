"""Reads a test collection in BEIR's layout: corpus.jsonl, queries.jsonl and qrels/<split>.tsv."""

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from app.evaluation.lines import EvaluationRefused, read_lines

LONGEST_STEM = 200
"""Of a file's name; the server keeps 255 characters."""


class CorpusLine(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)

    id: str = Field(alias="_id", min_length=1)
    title: str | None = None
    text: str

    @property
    def whole(self) -> str:
        """Title, empty line, text; or the text alone."""
        return "\n\n".join(filter(None, (self.title, self.text)))


class QueryLine(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)

    id: str = Field(alias="_id", min_length=1)
    text: str


@dataclass(frozen=True)
class RetrievalSet:
    """`documents`: texts by id. `queries`: those with a relevant document. `grades`: above 0, by query and document.

    `sha256` is of the three files and the choice of queries, so that a run is only resumed over what it began with.
    """

    name: str
    documents: Mapping[str, str]
    queries: Mapping[str, str]
    grades: Mapping[str, Mapping[str, int]]
    sha256: str
    notes: tuple[str, ...] = ()

    def excerpt(self, document_id: str) -> str:
        """The beginning of a document, for people."""
        text = " ".join(self.documents.get(document_id, "(not in the corpus)")[:400].split())
        return text if len(text) <= 200 else f"{text[:200]}…"


def read_beir(folder: Path, *, split: str = "test", only: Set[str] | None = None) -> RetrievalSet:
    """`only`: ids of the queries to keep. Raises EvaluationRefused."""
    folder = folder.resolve()
    corpus, queries, qrels = (
        folder / "corpus.jsonl",
        folder / "queries.jsonl",
        folder / "qrels" / f"{split}.tsv",
    )
    for path in (corpus, queries, qrels):
        if not path.is_file():
            raise EvaluationRefused(
                f"{path} is missing: a BEIR folder has corpus.jsonl, queries.jsonl and qrels/{split}.tsv."
            )
    documents: dict[str, str] = {}
    for number, line in read_lines(corpus, CorpusLine):
        if line.id in documents:
            raise EvaluationRefused(f"{corpus}, line {number}: the id '{line.id}' is there twice.")
        documents[line.id] = line.whole
    grades = _read_grades(qrels)
    asked = {
        line.id: line.text
        for _, line in read_lines(queries, QueryLine)
        if line.id in grades and (only is None or line.id in only)
    }
    if not asked:
        raise EvaluationRefused(
            f"No query of {queries} has a relevant document in {qrels}, or none was chosen."
        )
    return RetrievalSet(
        name=folder.parent.name if folder.name.startswith("beir") else folder.name,
        documents=documents,
        queries=asked,
        grades={query_id: grades[query_id] for query_id in asked},
        sha256=_sha256((corpus, queries, qrels), asked),
        notes=tuple(_notes(documents, asked, grades, chosen=only)),
    )


def file_name(document_id: str) -> str:
    """The name of the file that holds a document. Different ids have different names, whatever stands in them."""
    stem = quote(document_id, safe=" ")
    if len(stem) > LONGEST_STEM or stem != stem.strip():
        stem = f"sha256-{hashlib.sha256(document_id.encode()).hexdigest()}"
    return f"{stem}.txt"


def _read_grades(path: Path) -> dict[str, dict[str, int]]:
    """Lines of "query document grade", or trec_eval's "query 0 document grade", with or without a header."""
    grades: dict[str, dict[str, int]] = {}
    for number, raw in enumerate(path.read_bytes().split(b"\n"), 1):
        if not raw.strip():
            continue
        try:
            query_id, document_id, grade = _graded(raw.decode())
        except ValueError:
            if number == 1:
                continue  # The header.
            raise EvaluationRefused(
                f"{path}, line {number}: it must be a query's id, a document's id and a whole number, with tabs "
                "between them."
            ) from None
        if grade > 0:
            grades.setdefault(query_id, {})[document_id] = grade
    return grades


def _graded(line: str) -> tuple[str, str, int]:
    """Ids may hold spaces where tabs separate. Sets made from trec_eval's have its 0 before the document's id, after
    a tab or a space. Raises ValueError.
    """
    query_id, *middle, grade = [each.strip() for each in (line.split("\t") if "\t" in line else line.split())]
    document_id = " ".join(middle).removeprefix("0 ").strip()
    if not query_id or not document_id:
        raise ValueError
    return query_id, document_id, int(grade)


def _sha256(paths: tuple[Path, ...], queries: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    digest.update("\0".join(queries).encode())
    return digest.hexdigest()


def _notes(
    documents: Mapping[str, str],
    queries: Mapping[str, str],
    grades: Mapping[str, Mapping[str, int]],
    *,
    chosen: Set[str] | None,
) -> list[str]:
    notes = []
    if absent := (chosen or set()) - set(queries):
        notes.append(f"{len(absent)} of the chosen queries are not there, or have no relevant document.")
    if chosen is None and (absent := set(grades) - set(queries)):
        notes.append(f"{len(absent)} judged queries are not in queries.jsonl.")
    wanted = {document_id for query_id in queries for document_id in grades[query_id]}
    if absent := wanted - set(documents):
        notes.append(f"{len(absent)} relevant documents are not in the corpus: they count as not found.")
    return notes
