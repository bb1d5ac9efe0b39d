"""Fusion, against values computed by hand."""

import pytest

from retrieval.rankings import (
    HEARD_SHARE,
    Fusion,
    Hit,
    Ranking,
    best_first,
    fuse,
    fuse_rrf,
    fuse_weighted,
    varied,
)


def assert_ranks(found: Ranking, expected: dict[int, float]) -> None:
    """The same chunks in the same order, with these scores."""
    assert [hit.chunk_id for hit in found] == list(expected)
    assert [hit.score for hit in found] == pytest.approx(list(expected.values()), abs=1e-6)


def test_weighted_fusion_sums_scaled_scores() -> None:
    dense = (Hit(1, 0.9), Hit(2, 0.5), Hit(3, 0.1))
    words = (Hit(3, 12.0), Hit(1, 4.0))
    # dense scales to 1, 0.5, 0; words to 1 (chunk 3) and 0 (chunk 1).
    assert_ranks(fuse_weighted([dense, words], [0.6, 0.4]), {1: 0.6, 3: 0.4, 2: 0.3})


def test_a_chunk_that_leads_every_ranking_has_score_one() -> None:
    dense = (Hit(7, -0.2), Hit(8, -0.4))
    words = (Hit(7, 3.0), Hit(9, 1.0))
    assert_ranks(fuse_weighted([dense, words], [0.5, 0.5])[:1], {7: 1.0})


def test_a_ranking_of_equal_scores_counts_in_full() -> None:
    """There is no span to scale by; a single hit would otherwise vanish."""
    assert fuse_weighted([(Hit(2, 0.3), Hit(1, 0.3)), ()], [0.5, 0.5]) == (Hit(1, 0.5), Hit(2, 0.5))
    assert fuse_weighted([(Hit(5, 0.01),)], [1.0]) == (Hit(5, 1.0),)


def test_reciprocal_rank_fusion_adds_weighted_reciprocal_ranks() -> None:
    dense = (Hit(1, 0.9), Hit(2, 0.8))
    words = (Hit(2, 7.0), Hit(3, 6.0))
    # Over 1/61: chunk 2 has 0.5 * 61/62 + 0.5, chunk 1 has 0.5, chunk 3 has 0.5 * 61/62.
    assert_ranks(fuse_rrf([dense, words], [0.5, 0.5]), {2: 0.991935, 1: 0.5, 3: 0.491935})


def test_reciprocal_rank_fusion_ignores_scores_and_heeds_weights() -> None:
    dense = (Hit(1, 1000.0), Hit(2, 1.0))
    words = (Hit(2, 0.2), Hit(1, 0.1))
    assert [hit.chunk_id for hit in fuse_rrf([dense, words], [0.4, 0.6])] == [2, 1]
    assert [hit.chunk_id for hit in fuse_rrf([dense, words], [0.6, 0.4])] == [1, 2]


@pytest.mark.parametrize("method", Fusion)
def test_fusing_nothing_gives_nothing(method: Fusion) -> None:
    assert fuse(method, [(), ()], [0.5, 0.5]) == ()


@pytest.mark.parametrize("method", Fusion)
def test_a_chunk_of_both_rankings_comes_out_once(method: Fusion) -> None:
    ranking = (Hit(1, 2.0), Hit(2, 1.0))
    assert [hit.chunk_id for hit in fuse(method, [ranking, ranking], [0.5, 0.5])] == [1, 2]


def test_equal_scores_are_ordered_by_rising_id() -> None:
    assert best_first([Hit(9, 1.0), Hit(3, 1.0), Hit(5, 2.0)]) == (Hit(5, 2.0), Hit(3, 1.0), Hit(9, 1.0))


def test_what_a_page_or_section_says_besides_gives_way_to_others() -> None:
    assert HEARD_SHARE == 0.8
    ranking = (Hit(1, 1.0), Hit(2, 0.9), Hit(3, 0.8), Hit(4, 0.7), Hit(5, 0.5))
    groups = {1: ["a", 7], 2: ["a", 8], 3: ["b", 9], 4: ["c", 7], 5: ["b", 9]}
    assert_ranks(varied(ranking, groups), {1: 1.0, 3: 0.8, 2: 0.72, 4: 0.56, 5: 0.4})


def test_chunks_of_no_group_give_way_to_none() -> None:
    ranking = (Hit(1, 1.0), Hit(2, 0.9))
    assert varied(ranking, {1: [], 2: []}) == ranking
