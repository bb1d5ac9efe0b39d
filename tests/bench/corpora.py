"""The texts that measures use: test collections in BEIR layout, and prose made from a fixed seed."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SHARED = Path(__file__).parents[3] / "shared" / "data"
"""Beside the repository; measures that need it are skipped where it is absent."""
SEED = 20


@dataclass(frozen=True)
class RetrievalSet:
    """A corpus with its test queries. `grades`: by query id, the grade of each judged text, all above 0."""

    texts: dict[str, str]
    queries: dict[str, str]
    grades: dict[str, dict[str, int]]


def read_beir(folder: Path) -> RetrievalSet:
    """Texts are "title, blank line, text", or the text alone; only queries with a relevant text are kept."""
    rows = [json.loads(line) for line in _lines(folder / "corpus.jsonl")]
    texts = {row["_id"]: "\n\n".join(filter(None, (row.get("title"), row["text"]))) for row in rows}
    grades = _read_grades(folder / "qrels" / "test.tsv")
    queries = [json.loads(line) for line in _lines(folder / "queries.jsonl")]
    return RetrievalSet(
        texts=texts,
        queries={row["_id"]: row["text"] for row in queries if row["_id"] in grades},
        grades=grades,
    )


def sampled(whole: RetrievalSet, *, queries: int, texts: int) -> RetrievalSet:
    """Queries spread evenly over the whole, their relevant texts, and others up to `texts`."""
    kept = _spread(list(whole.queries), queries)
    needed = {text_id for query_id in kept for text_id in whole.grades[query_id]}
    others = [text_id for text_id in whole.texts if text_id not in needed]
    chosen = needed.union(_spread(others, max(0, texts - len(needed))))
    return RetrievalSet(
        texts={text_id: text for text_id, text in whole.texts.items() if text_id in chosen},
        queries={query_id: whole.queries[query_id] for query_id in kept},
        grades={query_id: whole.grades[query_id] for query_id in kept},
    )


def paragraphs(words: Sequence[str], *, count: int, length: int) -> list[str]:
    """`count` stretches of `length` words, evenly spaced: with few words they overlap, and still differ."""
    step = (len(words) - length) / max(1, count - 1)
    starts = [int(number * step) for number in range(count)]
    return [" ".join(words[start : start + length]) for start in starts]


def prose(*, words: int, seed: int = SEED) -> list[str]:
    """Invented words in sentences, some much more frequent than others, as in a language."""
    chance = random.Random(seed)
    syllables = [first + second for first in "bdfglmnprstv" for second in ("a", "e", "in", "or", "ul")]
    lexicon = ["".join(chance.choices(syllables, k=chance.randint(1, 4))) for _ in range(8_000)]
    drawn = chance.choices(lexicon, weights=[1 / rank for rank in range(1, len(lexicon) + 1)], k=words)
    return [f"{word}." if number % 12 == 11 else word for number, word in enumerate(drawn)]


def _read_grades(path: Path) -> dict[str, dict[str, int]]:
    """Lines of "query text grade", or trec_eval's "query 0 text grade", with or without a header."""
    grades: dict[str, dict[str, int]] = {}
    for line in _lines(path):
        query_id, *_, text_id, grade = line.split()
        if grade.isdigit() and int(grade) > 0:
            grades.setdefault(query_id, {})[text_id] = int(grade)
    return grades


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8").split("\n") if line.strip()]


def _spread(ids: Sequence[str], count: int) -> list[str]:
    if count >= len(ids):
        return list(ids)
    return [ids[number * len(ids) // count] for number in range(count)]
