"""Signals of evidence, and what they weigh together."""

import math
from dataclasses import dataclass, replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.evidence import SHIPPED, SIGNALS, Signals, nearness_of, signals_of, weigh
from retrieval.rankings import Vocabulary

TOWER = "The Lamp Tower of Vellmouth has 118 steps and no lift. It was lit first in 1871."
CAKE = "Beat the eggs with sugar. Bake the cake for forty minutes."


@dataclass(frozen=True)
class Chunk:
    text: str
    headings: tuple[str, ...] = ()


def signals(question: str, *texts: str | Chunk, vocabulary: Vocabulary | None = None) -> Signals:
    chunks = [Chunk(each) if isinstance(each, str) else each for each in texts]
    return signals_of(question, chunks, nearness=0.0, vocabulary=vocabulary or Vocabulary())


def test_a_chunk_with_all_words_of_a_question_covers_it_and_one_with_none_does_not() -> None:
    asked = "How many steps does the Lamp Tower of Vellmouth have?"
    covered, other = signals(asked, CAKE, TOWER), signals(asked, CAKE)
    assert (covered.words, covered.sentence) == (1.0, 1.0)
    assert (other.words, other.sentence) == (0.0, 0.0)


def test_words_match_in_any_inflection_and_a_rare_word_weighs_more() -> None:
    vocabulary = Vocabulary(10_000, {"steps": 4_000, "tower": 4_000, "heliotrope": 1})
    common = signals("steps tower heliotrope", "One step to the towers.", vocabulary=vocabulary)
    rare = signals("steps tower heliotrope", "Heliotropes grow here.", vocabulary=vocabulary)
    assert 0 < common.words < rare.words < 1


def test_words_that_stand_apart_cover_less_by_sentence_than_by_chunk() -> None:
    apart = "The tower is old. " + "Rain fell all day. " * 5 + "The steps are wet."
    held = signals("old tower wet steps", apart)
    assert held.words == 1.0
    assert held.sentence == pytest.approx(0.5)


def test_what_a_heading_says_holds_for_each_sentence_under_it() -> None:
    under = Chunk("It has 118 steps. The rest is rain.", headings=("Lamp Tower",))
    assert signals("steps of the Lamp Tower", under).sentence == 1.0


def test_an_identifier_must_stand_whole_and_a_number_is_none() -> None:
    asked = "What does error E-4031 mean?"
    assert signals(asked, "Error E-4031: the lamp is out.").identifiers == 1.0
    assert signals(asked, "Error E-4032: the door is open. Page 4031.").identifiers == 0.0
    assert signals("Compare E-4031 with AX-12", "E-4031 is an error.").identifiers == 0.5
    assert signals("What happened in 1871?", TOWER).identifiers == 0.0


@pytest.mark.parametrize("squeeze", [1.0, 0.375, 0.1])
def test_nearness_is_measured_from_unrelated_texts_so_that_models_compare(squeeze: float) -> None:
    """By hand: a cosine of .8, where unrelated texts have .2, is three quarters of the way to 1; and so it is for a
    model that squeezes all its cosines towards 1.
    """
    cosine, unrelated = (1 - (1 - each) * squeeze for each in (0.8, 0.2))
    assert nearness_of(cosine, unrelated) == pytest.approx(0.75)
    assert nearness_of(unrelated, unrelated) == nearness_of(-1.0, unrelated) == 0.0


def test_a_reranker_has_weights_of_its_own() -> None:
    plain = signals("steps of the tower", TOWER)
    assert "relevance" not in plain.values()
    low, high = (weigh(plain.with_relevance(score), SHIPPED) for score in (0.01, 0.99))
    assert low.score < high.score
    assert (low.threshold, weigh(plain, SHIPPED).threshold) == (
        SHIPPED.reranked.threshold,
        SHIPPED.plain.threshold,
    )


def test_the_shipped_weights_name_every_signal_and_speak_for_what_is_covered() -> None:
    assert SHIPPED.reranked.weights.keys() == SIGNALS
    assert SHIPPED.plain.weights.keys() == SIGNALS - {"relevance"}
    for weighing, relevance in ((SHIPPED.plain, None), (SHIPPED.reranked, 1.0)):
        names = [name for name in SIGNALS if name != "relevance"]
        most = Signals(**dict.fromkeys(names, 1.0), relevance=relevance)
        least = Signals(**dict.fromkeys(names, 0.0), relevance=None if relevance is None else 0.0)
        assert weighing.score(least) < weighing.threshold < weighing.score(most)


def test_a_threshold_of_the_owners_takes_the_place_of_both() -> None:
    strict = SHIPPED.with_threshold(1.0)
    assert not weigh(signals("tower", TOWER), strict).is_enough
    assert weigh(signals("tower", CAKE), SHIPPED.with_threshold(0.0)).is_enough


QUESTION = st.text() | st.sampled_from(
    ["", "?", "E-4031?", "何", "How many steps?", "\ud800", "a" * 5_000, "1,234"]
)


@settings(deadline=None)
@given(QUESTION, st.lists(st.text(), max_size=4), st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 1))
def test_signals_and_scores_are_finite_shares_and_the_same_each_time(
    question: str, texts: list[str], cosine: float, unrelated: float, relevance: float
) -> None:
    def of() -> Signals:
        return signals_of(
            question,
            [Chunk(text, headings=(text[:3],)) for text in texts],
            nearness=nearness_of(cosine, unrelated),
            vocabulary=Vocabulary(len(texts), {"steps": 1}),
        ).with_relevance(relevance)

    found = of()
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in found.values().values())
    for each in (found, replace(found, relevance=None)):
        assert 0 < weigh(each, SHIPPED).score < 1
    assert of() == found


@settings(deadline=None)
@given(st.sampled_from(sorted(SIGNALS)), st.floats(0, 1), st.floats(0, 1))
def test_more_of_any_signal_never_lowers_the_score(name: str, one: float, other: float) -> None:
    base = Signals(**dict.fromkeys(SIGNALS, 0.5))
    low, high = (SHIPPED.reranked.score(replace(base, **{name: value})) for value in sorted((one, other)))
    assert low <= high


def test_every_pair_of_a_question_and_a_text_in_another_language_is_weighed() -> None:
    texts = [TOWER, "灯塔有118级台阶。", "В башне 118 ступеней.", "في البرج 118 درجة."]
    for question, text in product(["Wie viele Stufen?", "台阶有多少级？", "Сколько ступеней?"], texts):
        assert 0 <= signals(question, text).words <= 1
    assert signals("灯塔有多少级台阶？", texts[1]).words > 0.5
    assert signals("Сколько ступеней в башне?", texts[2]).words == 1.0
