"""Which engine a prompt goes to: block hashes, what caches are thought to hold, shared heads, load."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from serving.generation.routing import (
    BLOCK_BYTES,
    MAX_BLOCKS,
    PrefixCache,
    Router,
    SharedHead,
    Standing,
    block_hashes,
)

CHANCE = random.Random(7)


def text(blocks: float) -> bytes:
    return CHANCE.randbytes(int(blocks * BLOCK_BYTES))


def pool(engines: int = 4, capacity: int = 4096) -> list[Standing]:
    return [Standing(PrefixCache(capacity)) for _ in range(engines)]


def test_a_blocks_hash_covers_all_that_is_before_it() -> None:
    shared, first, second = text(3), text(2), text(2)
    ours, theirs = block_hashes(shared + first + shared, "s"), block_hashes(shared + second + shared, "s")
    assert ours[:3] == theirs[:3]
    assert not set(ours[3:]) & set(theirs[3:])
    assert len(ours) == 8


def test_only_whole_blocks_count_and_not_more_than_are_looked_at() -> None:
    assert block_hashes(text(0.9), "s") == []
    assert len(block_hashes(text(2.9), "s")) == 2
    assert len(block_hashes(text(MAX_BLOCKS + 5), "s")) == MAX_BLOCKS


def test_tenants_share_no_block() -> None:
    prompt = text(4)
    assert not set(block_hashes(prompt, "a")) & set(block_hashes(prompt, "b"))


def test_a_cache_keeps_what_was_used_last_and_of_a_prompt_its_beginning() -> None:
    cache = PrefixCache(5)
    old, new = block_hashes(text(4), "s"), block_hashes(text(3), "s")
    cache.hold(old)
    cache.hold(new)
    assert len(cache) == 5
    assert cache.depth(new) == 3
    assert cache.depth(old) == 2
    cache.hold(old[:1])
    cache.hold(block_hashes(text(2), "s"))
    assert (cache.depth(old), cache.depth(new)) == (1, 2)


def test_what_is_held_of_any_prompt_is_always_its_beginning() -> None:
    """The search for it is binary: it needs that."""
    cache = PrefixCache(40)
    documents = [text(6) for _ in range(4)]
    for _ in range(300):
        prompt = b"".join(CHANCE.sample(documents, CHANCE.randint(1, 3))) + text(CHANCE.randint(0, 3))
        hashes = block_hashes(prompt, "s")
        held = [block in cache._held for block in hashes]
        assert held == sorted(held, reverse=True)
        assert cache.depth(hashes) == sum(held)
        cache.hold(hashes)


def test_a_follow_up_goes_to_the_engine_that_has_its_beginning() -> None:
    router, standings = Router(), pool()
    conversations = {
        router.route(block_hashes(prompt, "s"), standings).index: prompt for prompt in prompts(40)
    }
    assert set(conversations) == {0, 1, 2, 3}
    for index, prompt in conversations.items():
        route = router.route(block_hashes(prompt + text(2), "s"), standings)
        assert (route.index, route.matched) == (index, 20)
        assert route.missing == 2


def test_a_cached_beginning_does_not_hold_a_prompt_at_an_overloaded_engine() -> None:
    router, standings = Router(), pool(2)
    prompt = block_hashes(text(10), "s")
    home = router.route(prompt, standings).index
    standings[home].in_flight = 5
    assert router.route(prompt, standings).index == home
    standings[home].in_flight, standings[home].unanswered_blocks = 20, 500
    assert router.route(prompt, standings).index != home


@pytest.mark.parametrize("head_bytes", [600, 5_000, 30_000])
def test_a_head_that_all_prompts_share_sends_them_to_all_engines(head_bytes: int) -> None:
    """The same with one prompt at a time, when load cannot tell engines apart."""
    router, standings = Router(), pool()
    head = CHANCE.randbytes(head_bytes)
    chosen = Counter(
        router.route(block_hashes(head + question, "s"), standings).index
        for question in prompts(400, blocks=1)
    )
    assert max(chosen.values()) <= 1.25 * 100


def test_prompts_that_are_but_the_shared_head_go_to_all_engines() -> None:
    router, standings = Router(), pool()
    head = text(9)
    indexes = []
    for number in range(200):
        route = router.route(block_hashes(head + b"q" * (number % 100), "s"), standings)
        indexes.append(route.index)
        # Each is under way while the next three are chosen.
        standings[route.index].in_flight += 1
        if number >= 3:
            standings[indexes[number - 3]].in_flight -= 1
    assert max(Counter(indexes).values()) <= 1.25 * 50


def test_documents_behind_a_shared_head_still_decide() -> None:
    router, standings = Router(), pool()
    head = text(10)
    documents = list(prompts(40, blocks=6))
    for _ in range(3):
        homes = [router.route(block_hashes(head + each, "s"), standings).index for each in documents]
    again = [router.route(block_hashes(head + each + text(1), "s"), standings).index for each in documents]
    assert again == homes
    assert set(homes) == {0, 1, 2, 3}


def test_a_head_is_shared_only_while_many_use_it() -> None:
    shared = SharedHead()
    head, others = block_hashes(text(3), "s"), [block_hashes(each, "s") for each in prompts(300)]
    for _ in range(8):
        shared.note(head)
    assert shared.length(head, 4) == 0
    for _ in range(100):
        shared.note(head)
    assert shared.length([*head, *others[0]], 4) == 3
    for each in others:
        shared.note(each)
    assert shared.length(head, 4) == 0
    assert len(shared._counts) == 256 * 20


def test_an_engine_with_a_full_cache_or_other_callers_is_given_less() -> None:
    router, standings = Router(), pool(2)
    standings[0].cache_used = 0.95
    standings[0].in_flight = standings[1].in_flight = 3
    assert router.route(block_hashes(text(4), "s"), standings).index == 1
    standings[0].cache_used = 0.0
    standings[1].elsewhere = 10
    assert router.route(block_hashes(text(4), "s"), standings).index == 0


def test_prompts_without_a_whole_block_go_to_the_least_busy() -> None:
    router, standings = Router(), pool(3)
    standings[0].in_flight, standings[1].in_flight, standings[2].in_flight = 2, 1, 3
    assert router.route([], standings).index == 1


def prompts(count: int, *, blocks: int = 20) -> Iterator[bytes]:
    for _ in range(count):
        yield text(blocks)
