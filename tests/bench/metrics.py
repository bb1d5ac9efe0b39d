"""How good a ranking is, by the judgements of a test collection."""

import math
from collections.abc import Mapping, Sequence


def ndcg(ranking: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """Normalised discounted cumulative gain of the first k, 0..1: linear gain, discount log2(rank + 1).

    The ideal ranking has every judged text, also those that could not be uploaded, so that an absent text costs.
    Source: Jarvelin and Kekalainen, 2002, in the form of trec_eval.
    """
    ideal = _dcg(sorted(grades.values(), reverse=True)[:k])
    return _dcg([grades.get(each, 0) for each in ranking[:k]]) / ideal


def recall(ranking: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """Share of the relevant texts that stand among the first k, 0..1."""
    relevant = {text_id for text_id, grade in grades.items() if grade > 0}
    return len(relevant.intersection(ranking[:k])) / len(relevant)


def _dcg(grades: Sequence[int]) -> float:
    return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades, 1))
