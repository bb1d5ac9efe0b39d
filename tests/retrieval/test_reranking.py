"""Reranking: how far the reranker is believed, how much it reads, and that it never fails in silence."""

import asyncio
import random
from collections.abc import Mapping, Sequence

import pytest

from retrieval.reranking import (
    FIRST_WAVE,
    RERANK_DEPTH,
    WAVE_TOKENS,
    Readable,
    Reading,
    agreement,
    blended,
)
from retrieval.stages import Stages
from serving.protocols import Lane, ModelUnavailable
from tests.fakes import FakeReranker

QUERY = "vault key hall lamp seal"
WORDS = QUERY.split()
A_WAVE_OF_TEN = WAVE_TOKENS // 10


def text_of(relevance: float) -> str:
    """Which the fake reranker scores so, in fifths."""
    return " ".join(WORDS[: round(5 * relevance)]) or "whale"


def candidates_of(
    first: Sequence[float], relevance: Sequence[float], *, tokens: int = A_WAVE_OF_TEN
) -> list[Readable]:
    """By falling scores of the first stage, with what the reranker will say of each."""
    return [
        Readable(number, text_of(relevant), tokens, score)
        for number, (score, relevant) in enumerate(zip(first, relevance, strict=True))
    ]


def reading_of(reranker: FakeReranker) -> Reading:
    return Reading(reranker, QUERY, lane=Lane.BULK, cache_salt="north", stages=Stages())


def order(scores: Mapping[int, float]) -> list[int]:
    return sorted(scores, key=lambda each: (-scores[each], each))


def falling(count: int) -> list[float]:
    return [1 - number / count for number in range(count)]


async def test_every_candidate_that_is_read_is_read_once_and_for_its_tenant() -> None:
    chance = random.Random(1)
    relevance = [chance.randint(0, 5) / 5 for _ in range(50)]
    reranker = FakeReranker()
    candidates = candidates_of(falling(50), relevance)
    verdict = await reading_of(reranker).judge(candidates, limit=50)
    read = [text for _, _, texts in reranker.calls for text in texts]
    assert len(read) == len(verdict.relevance) == RERANK_DEPTH
    assert [verdict.relevance[each] for each in range(RERANK_DEPTH)] == pytest.approx(
        relevance[:RERANK_DEPTH]
    )
    assert set(reranker.salts) == {"north"}
    assert set(verdict.scores) == set(range(50))
    assert all(0 <= score <= 1 for score in verdict.scores.values())


async def test_waves_after_the_first_hold_no_more_than_their_tokens_and_one_text_at_least() -> None:
    reranker = FakeReranker()
    lengths = [5] * FIRST_WAVE + [WAVE_TOKENS * 3, WAVE_TOKENS // 2, WAVE_TOKENS // 2, 1, WAVE_TOKENS]
    candidates = [
        Readable(number, text_of(1), tokens, 1 - number / 100) for number, tokens in enumerate(lengths)
    ]
    await reading_of(reranker).judge(candidates, limit=len(lengths))
    assert [len(texts) for _, _, texts in reranker.calls] == [FIRST_WAVE, 1, 2, 1, 1]


async def test_a_reranker_that_contradicts_the_first_stage_changes_nothing() -> None:
    candidates = candidates_of(falling(10), [number / 10 for number in range(10)])
    verdict = await reading_of(FakeReranker()).judge(candidates, limit=10)
    assert verdict.scores == {each.chunk_id: each.score for each in candidates}


async def test_a_reranker_that_agrees_lifts_what_it_found_relevant() -> None:
    relevance = [0.8, 1.0, 0.4, 0.4, 0.2, 0.2, 0.0, 0.0]
    first = [0.9, 0.88, 0.5, 0.45, 0.3, 0.25, 0.2, 0.1]
    verdict = await reading_of(FakeReranker()).judge(candidates_of(first, relevance), limit=8)
    assert order(verdict.scores)[:3] == [1, 0, 2]


async def test_a_reranker_that_finds_nothing_anywhere_changes_no_order() -> None:
    candidates = candidates_of(falling(10), [0.0] * 10)
    verdict = await reading_of(FakeReranker()).judge(candidates, limit=10)
    assert order(verdict.scores) == list(range(10))


async def test_what_was_not_read_stays_behind_what_was() -> None:
    chance = random.Random(2)
    for _ in range(20):
        count = RERANK_DEPTH + 20
        relevance = sorted((chance.randint(0, 5) / 5 for _ in range(count)), reverse=True)
        candidates = candidates_of(falling(count), relevance)
        verdict = await reading_of(FakeReranker()).judge(candidates, limit=count)
        assert set(order(verdict.scores)[:RERANK_DEPTH]) == set(range(RERANK_DEPTH))
        assert order(verdict.scores)[RERANK_DEPTH:] == list(range(RERANK_DEPTH, count))


async def test_a_reranker_that_is_not_trusted_reads_no_further() -> None:
    candidates = candidates_of(falling(30), [number / 29 for number in range(30)])
    reranker = FakeReranker()
    verdict = await reading_of(reranker).judge(candidates, limit=10)
    assert len(verdict.relevance) == sum(len(texts) for _, _, texts in reranker.calls) == FIRST_WAVE
    assert order(verdict.scores)[:10] == list(range(10))


async def test_reading_ends_once_the_first_ones_stand() -> None:
    """Twelve that are relevant, far above others that are not."""
    others = RERANK_DEPTH - FIRST_WAVE
    first = [1 - number / 100 for number in range(FIRST_WAVE)] + [0.2 - n / 200 for n in range(others)]
    relevance = [1.0, 1.0, 0.8, 1.0, 0.8, 0.8] + [0.6] * (FIRST_WAVE - 6) + [0.0] * others
    reranker = FakeReranker()
    stopped = await reading_of(reranker).judge(candidates_of(first, relevance), limit=5)
    assert sum(len(texts) for _, _, texts in reranker.calls) == FIRST_WAVE
    whole = await reading_of(FakeReranker()).judge(candidates_of(first, relevance), limit=RERANK_DEPTH)
    assert len(whole.relevance) == RERANK_DEPTH
    assert order(stopped.scores)[:5] == order(whole.scores)[:5]


async def test_what_could_still_come_among_the_first_is_read() -> None:
    """The first stage sees little between them, and the reranker agrees with what it sees."""
    first = [0.6 - number / 1000 for number in range(RERANK_DEPTH)]
    relevance = [0.6] * 6 + [0.2] * (RERANK_DEPTH - 6)
    last_of_second_wave = FIRST_WAVE + 3
    relevance[last_of_second_wave] = 1.0
    reranker = FakeReranker()
    candidates = candidates_of(first, relevance, tokens=WAVE_TOKENS // 4)
    verdict = await reading_of(reranker).judge(candidates, limit=10)
    assert [len(texts) for _, _, texts in reranker.calls] == [FIRST_WAVE, 4, 4]
    assert last_of_second_wave in order(verdict.scores)[:10]


@pytest.mark.parametrize("begun", [0, 3, 12])
async def test_the_verdict_is_the_same_however_many_were_begun_early(begun: int) -> None:
    chance = random.Random(3)
    relevance = [chance.randint(0, 5) / 5 for _ in range(30)]
    candidates = candidates_of(falling(30), relevance)
    expected = await reading_of(FakeReranker()).judge(candidates, limit=10)
    reranker = FakeReranker()
    reading = reading_of(reranker)
    async with asyncio.TaskGroup() as tasks:
        if begun:
            reading.begin(tasks, {each.chunk_id: each.text for each in chance.sample(candidates, begun)})
        assert await reading.judge(candidates, limit=10) == expected


async def test_a_reranker_that_fails_fails_the_reading() -> None:
    reranker = FakeReranker()
    reranker.failure = ModelUnavailable("away")
    with pytest.raises(ModelUnavailable, match="away"):
        await reading_of(reranker).judge(candidates_of([1.0, 0.5], [1.0, 0.0]), limit=2)


async def test_nothing_is_read_when_there_is_nothing_to_read() -> None:
    reranker = FakeReranker()
    verdict = await reading_of(reranker).judge([], limit=10)
    assert (verdict.relevance, verdict.scores, reranker.calls) == ({}, {}, [])
    one = await reading_of(reranker).judge(candidates_of([0.7], [0.2]), limit=10)
    assert one.scores == {0: 0.7}


def test_agreement_is_spearmans_rank_correlation() -> None:
    # Ranks 4 3 2 1 and 3 4 1 2: differences 1, so 1 - 6 x 4 / (4 x 15) = 0.6.
    assert agreement([0.9, 0.5, 0.4, 0.1], [0.3, 0.8, 0.1, 0.2]) == pytest.approx(0.6)
    assert agreement([3, 2, 1], [1, 2, 3]) == pytest.approx(-1)
    # Ties share their mean rank: 3, 1.5, 1.5 against 3, 2, 1.
    assert agreement([1, 0, 0], [3, 2, 1]) == pytest.approx(0.8660254)
    assert agreement([1, 1], [1, 0]) == agreement([1], [1]) == agreement([], []) == 0


def test_a_blend_computed_by_hand() -> None:
    candidates = candidates_of([0.8, 0.6, 0.4, 0.0], [0, 0, 0, 0])
    assert blended(candidates, {}) == {0: 0.8, 1: 0.6, 2: 0.4, 3: 0.0}
    # Ranks 4 3 2 1 and 3 4 2 1: agreement 1 - 6 x 2 / (4 x 15) = 0.8; relevance lifts by 0.8 x (0.8 - 0) = 0.64.
    told = blended(candidates, {0: 0.5, 1: 0.9, 2: 0.3, 3: 0.1})
    lifted = [(0.8 + 0.32) / 1.64, (0.6 + 0.576) / 1.64, (0.4 + 0.192) / 1.64, 0.064 / 1.64]
    assert list(told.values()) == pytest.approx(lifted)
