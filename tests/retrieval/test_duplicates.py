"""Near-identical chunks: what is taken for one text, how often that is wrong, and that a search gives each once."""

import json
import random
import time
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rensa import RMinHash

from retrieval.duplicates import (
    NEAR_BITS,
    hash_distance,
    is_near_identical,
    similarity_hash,
    without_duplicates,
)
from retrieval.places import Place
from retrieval.search import FoundChunk

SQUAD = Path(__file__).parents[3] / "shared" / "data" / "squad" / "beir-v1.1" / "corpus.jsonl"
LEASE = (
    "The tenant shall keep the premises in good repair and shall return all keys to the landlord's office at the "
    "end of the term, together with the sum of 350 guilders for the cleaning of the cellar."
)

Change = Callable[[str, random.Random], str]


def chunk(
    chunk_id: int,
    text: str,
    *,
    headings: tuple[str, ...] = (),
    collection_id: str = "vs_a",
    hashed: bool = True,
) -> FoundChunk:
    return FoundChunk(
        chunk_id=chunk_id,
        document_id=chunk_id,
        collection_id=collection_id,
        file_id="file-a",
        filename="a.txt",
        attributes={},
        generation=0,
        position=0,
        text=text,
        start_char=0,
        end_char=len(text),
        headings=headings,
        places=(Place(0, len(text), None, None),),
        token_count=10,
        score=1.0,
        similarity_hash=similarity_hash(text) if hashed else None,
    )


def left(chunks: Sequence[FoundChunk]) -> list[int]:
    return [each.chunk_id for each in without_duplicates(chunks)]


@pytest.mark.parametrize(
    ("text", "other"),
    [
        pytest.param(LEASE, LEASE.replace(" ", "\n", 5).replace(" and ", "   and "), id="whitespace"),
        pytest.param(LEASE, LEASE.upper().replace(",", ";"), id="case and punctuation"),
        pytest.param(f"{LEASE}\n\n12", f"{LEASE}\n\n- 47 -", id="page number below"),
        pytest.param(f"Page 3 of 9 {LEASE}", f"Page 4 of 11 {LEASE}", id="page number in words"),
        pytest.param(f"Signed 12 March 1843. {LEASE}", f"Signed 3 May 1851. {LEASE}", id="date"),
        pytest.param(
            f"Signed March 12, 1943. {LEASE}", f"Signed July 1st, 1951. {LEASE}", id="American date"
        ),
        pytest.param(f"Stand 12. März 1943. {LEASE}", f"Stand 3. Mai 1951. {LEASE}", id="German date"),
        pytest.param(f"2024-01-31 {LEASE}", f"2025-02-28 {LEASE}", id="ISO date"),
        pytest.param(f"31/01/2024 {LEASE}", f"28.02.2025 {LEASE}", id="date in numbers"),
        pytest.param(LEASE, LEASE.replace("premises", "house").replace("good", "fair"), id="a few words"),
        pytest.param("The key hangs\nin the hall.", "The key hangs in the hall.", id="short, whitespace"),
        pytest.param(
            "金庫は午前九時に開きます。" * 4,
            "金庫は午前八時に開きます。" + "金庫は午前九時に開きます。" * 3,
            id="no spaces",
        ),
    ],
)
def test_what_says_the_same_is_one_text(text: str, other: str) -> None:
    assert is_near_identical(text, other)
    assert is_near_identical(other, text)
    assert left([chunk(1, text), chunk(2, other)]) == [1]


@pytest.mark.parametrize(
    ("text", "other"),
    [
        pytest.param(LEASE, LEASE.replace("350", "400"), id="another sum"),
        pytest.param(f"In 2022: {LEASE}", f"In 2023: {LEASE}", id="another year"),
        pytest.param(f"{LEASE}\n\n12\n\n31", f"{LEASE}\n\n14\n\n31", id="a column of numbers"),
        pytest.param("The key hangs in the hall.", "The key hangs in the attic.", id="short, another word"),
        pytest.param(LEASE, f"{LEASE} {LEASE.upper().replace('TENANT', 'GUEST')}", id="twice as long"),
        pytest.param(LEASE, " ".join(reversed(LEASE.split())), id="another order"),
        pytest.param("!", "?", id="no words"),
    ],
)
def test_what_says_another_thing_is_another_text(text: str, other: str) -> None:
    assert not is_near_identical(text, other)
    assert not is_near_identical(other, text)
    assert left([chunk(1, text), chunk(2, other)]) == [1, 2]


def test_the_best_of_each_text_is_kept_in_order() -> None:
    copies = [LEASE, "Whales feed on krill.", LEASE.replace("good", "fair"), "Whales feed on krill.", LEASE]
    assert left([chunk(number, text) for number, text in enumerate(copies)]) == [0, 1]


def test_a_copy_in_another_collection_is_left_out() -> None:
    assert left([chunk(1, LEASE), chunk(2, LEASE, collection_id="vs_b"), chunk(3, "Whales feed.")]) == [1, 3]


def test_chunks_without_a_hash_are_kept() -> None:
    assert left([chunk(1, LEASE, hashed=False), chunk(2, LEASE), chunk(3, LEASE, hashed=False)]) == [1, 2, 3]


def test_a_short_text_below_another_heading_is_kept_and_a_long_one_is_not() -> None:
    fire, water = ("Is it fireproof?",), ("Is it watertight?",)
    assert left([chunk(1, "Yes.", headings=fire), chunk(2, "Yes.", headings=water)]) == [1, 2]
    assert left([chunk(1, "Yes.", headings=fire), chunk(2, "Yes.", headings=fire)]) == [1]
    assert left([chunk(1, LEASE, headings=fire), chunk(2, LEASE, headings=water)]) == [1]


def test_a_stored_hash_is_worth_something_after_an_upgrade() -> None:
    """Another result here means that duplicates of older chunks are no longer found: hash them again."""
    assert RMinHash.ALGORITHM_VERSION == 2
    assert similarity_hash("The vault opens at nine.") == -5655609603118531597


@given(st.text())
def test_a_hash_fits_a_column_of_64_bits_and_says_the_same_each_time(text: str) -> None:
    value = similarity_hash(text)
    assert -(2**63) <= value < 2**63
    assert value == similarity_hash(text)


def test_hashes_of_either_sign_are_compared_by_their_bits() -> None:
    assert hash_distance(-1, 0) == 64
    assert hash_distance(-(2**63), 0) == 1
    assert hash_distance(-1, -2) == 1


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("1 " * 20_000, id="numbers"),
        pytest.param("\n \n" * 20_000, id="blank lines"),
        pytest.param("- " * 20_000 + "x", id="dashes"),
        pytest.param("March 1" + " " * 40_000 + "x", id="an unfinished date"),
        pytest.param("page" + " " * 40_000 + "x", id="an unfinished page"),
        pytest.param("a" * 60_000, id="one word"),
    ],
)
def test_no_text_takes_long_to_read(text: str) -> None:
    started = time.process_time()
    similarity_hash(text)
    assert time.process_time() - started < 5


@pytest.fixture(scope="module")
def paragraphs() -> list[str]:
    if not SQUAD.exists():
        pytest.skip("the paragraphs of SQuAD are not on this machine")
    with SQUAD.open() as lines:
        return [json.loads(line)["text"] for line in lines]


def dated(text: str, chance: random.Random) -> str:
    month = chance.choice(["January", "May", "Oct."])
    return f"As of {chance.randint(1, 28)} {month} {chance.randint(1950, 2049)}. {text}"


def paged(text: str, chance: random.Random) -> str:
    return f"{text}\n\n{chance.randint(1, 400)}"


def wrapped(text: str, chance: random.Random) -> str:
    return "".join(chance.choice(["\n", "  ", " "]) if letter == " " else letter for letter in text)


def reworded(text: str, chance: random.Random) -> str:
    """A word in twenty is another, or gone, or new."""
    words = text.split()
    plain = [place for place, word in enumerate(words) if word.isalpha()]
    for place in chance.sample(plain, min(len(plain), max(1, len(words) // 20))):
        words[place] = chance.choice(["otherwise", "", f"{words[place]} indeed"])
    return " ".join(words)


@pytest.mark.parametrize("change", [dated, paged, wrapped, reworded])
def test_of_changed_paragraphs_one_in_a_hundred_is_missed_at_most(
    paragraphs: list[str], change: Change
) -> None:
    chance = random.Random(7)
    pairs = [(change(text, chance), change(text, chance)) for text in paragraphs]
    missed = sum(len(without_duplicates([chunk(1, text), chunk(2, other)])) == 2 for text, other in pairs)
    assert missed <= len(pairs) * 0.01


def test_no_paragraph_is_taken_for_another_and_few_pairs_are_compared_in_vain(paragraphs: list[str]) -> None:
    some = paragraphs[::4]
    hashes = [similarity_hash(text) for text in some]
    near = [pair for pair in combinations(range(len(some)), 2) if _is_near(hashes, *pair)]
    assert len(near) <= len(some) ** 2 / 2 / 5_000
    assert not [pair for pair in near if is_near_identical(some[pair[0]], some[pair[1]])]
    for text, after in pairwise(some):
        assert not is_near_identical(text, after)


def _is_near(hashes: Sequence[int], one: int, other: int) -> bool:
    return hash_distance(hashes[one], hashes[other]) <= NEAR_BITS
