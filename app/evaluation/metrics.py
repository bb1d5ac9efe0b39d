"""Metrics of one query or question each: of rankings by ir_measures, of answers by SQuAD's rules."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

import ir_measures
from ir_measures import AP, RR, R, nDCG

MRR, MAP = "MRR", "MAP"


def ranking_metrics(
    rankings: Mapping[str, Sequence[str]], grades: Mapping[str, Mapping[str, int]], *, k: int
) -> dict[str, dict[str, float]]:
    """nDCG@k, recall@k, MRR and MAP of each query's ranking, best first, no document twice.

    As trec_eval computes them: nDCG with linear gain. MRR and MAP read the whole ranking. A query without a
    ranking has 0.
    """
    names = {nDCG @ k: f"nDCG@{k}", R @ k: f"recall@{k}", RR: MRR, AP: MAP}
    judged = {query_id: dict(grades[query_id]) for query_id in rankings}
    # Scores that fall with the rank: trec_eval sorts by them, and ties by name.
    scored = {
        query_id: {document_id: float(-rank) for rank, document_id in enumerate(ranking)}
        for query_id, ranking in rankings.items()
    }
    metrics: dict[str, dict[str, float]] = {
        query_id: dict.fromkeys(names.values(), 0.0) for query_id in rankings
    }
    for each in ir_measures.iter_calc(list(names), judged, scored):
        metrics[each.query_id][names[each.measure]] = float(each.value)
    return metrics


def exact_match(answer: str, wanted: Sequence[str]) -> float:
    """1 when the answer is one of those wanted, but for case, punctuation and articles. Source: SQuAD 1.1."""
    return float(any(normalised(answer) == normalised(each) for each in wanted))


def token_f1(answer: str, wanted: Sequence[str]) -> float:
    """The best overlap of words with one of the answers wanted, 0..1. Source: SQuAD 1.1."""
    return max(_f1(normalised(answer).split(), normalised(each).split()) for each in wanted)


def contains(answer: str, wanted: Sequence[str]) -> float:
    """1 when one of the answers wanted stands in the answer, word by word: long answers may be right too."""
    said = f" {normalised(answer)} "
    return float(any(f" {each} " in said for each in map(normalised, wanted) if each))


def normalised(text: str) -> str:
    """Lower case, without punctuation and English articles, single spaces. Source: SQuAD 1.1's script."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    shared = (Counter(said) & Counter(wanted)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(said), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)
