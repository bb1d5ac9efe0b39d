"""What the chunker promises, on generated documents and with tokenizers of three families."""

from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ingest.chunk import ChunkDraft, split
from ingest.elements import ElementKind, ParsedPart
from ingest.parse.build import DocumentBuilder, Line
from ingest.tokens import TokenCounter
from retrieval.places import Box, Place, under_headings
from tests.parts import joined

pytestmark = pytest.mark.slow

MINILM = Path(__file__).parents[2] / "data" / "models" / "all-MiniLM-L6-v2" / "tokenizer.json"


@cache
def words_counter() -> TokenCounter:
    """One token a word or sign."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return TokenCounter(tokenizer.to_str())


@cache
def bytes_counter() -> TokenCounter:
    """Byte-level BPE, whose count of a word depends on the space before it, and of an emoji on nothing we see."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = ["The vault opens at nine. The key hangs in the hall, by the door to the cellar."]
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    return TokenCounter(tokenizer.to_str())


@cache
def pieces_counter() -> TokenCounter:
    """The word pieces of a real model, which adds two tokens of its own."""
    return TokenCounter(MINILM.read_text())


@pytest.fixture(params=["words", "bytes", "pieces"])
def count_tokens(request: pytest.FixtureRequest) -> TokenCounter:
    if request.param == "pieces" and not MINILM.exists():
        pytest.skip("data/models/all-MiniLM-L6-v2 is absent; `make setup` prepares it")
    return {"words": words_counter, "bytes": bytes_counter, "pieces": pieces_counter}[request.param]()


SAYINGS = [
    "The",
    "vault",
    "nine",
    "Key",
    "hall.",
    "cellar!",
    "Why?",
    "12,500",
    "(Ada)",
    "保管庫は九時に開く。",
    "🗝",
]
WORDS = st.one_of(
    st.sampled_from(SAYINGS),
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn", "Co"]), min_size=1, max_size=8),
    st.integers(40, 400).map(lambda length: "x" * length),
)
TEXTS = st.lists(WORDS, min_size=1, max_size=60).map(" ".join)
HEADINGS = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)
LINES = st.lists(TEXTS, min_size=1, max_size=6)
KINDS = st.sampled_from([kind for kind in ElementKind if kind is not ElementKind.HEADING])


@st.composite
def documents(draw: st.DrawFn) -> list[ParsedPart]:
    """A document in one part or in several."""
    builder = DocumentBuilder(part_chars=draw(st.sampled_from([300, 1_000_000])))
    builder.add(ElementKind.TEXT, [Line("Begin.", 1)])
    for page in range(1, draw(st.integers(1, 25))):
        if draw(st.integers(0, 2)):
            builder.add(draw(KINDS), [Line(text, page, Box(0, 0, 9, page)) for text in draw(LINES)])
        else:
            builder.add_heading([Line(draw(HEADINGS), page)], level=draw(st.integers(0, 3)))
    return list(builder.finish(page_count=99))


@pytest.mark.parametrize(("max_tokens", "overlap_tokens"), [(16, 8), (64, 0), (100, 50), (256, 32)])
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(parts=documents())
def test_every_document_is_cut_within_its_limits_and_without_loss(
    count_tokens: TokenCounter, max_tokens: int, overlap_tokens: int, parts: list[ParsedPart]
) -> None:
    chunks = split_all(parts, count_tokens, max_tokens, overlap_tokens)
    document = joined(parts)
    check_slices(document, chunks)
    check_limits(chunks, count_tokens, max_tokens)
    check_coverage(document, chunks)
    check_places(document, chunks)
    assert chunks == split_all(parts, count_tokens, max_tokens, overlap_tokens)


def split_all(
    parts: list[ParsedPart], count_tokens: TokenCounter, max_tokens: int, overlap_tokens: int
) -> list[ChunkDraft]:
    return [
        chunk
        for part in parts
        for chunk in split(
            part, count_tokens=count_tokens, max_tokens=max_tokens, overlap_tokens=overlap_tokens
        )
    ]


def check_slices(document: ParsedPart, chunks: list[ChunkDraft]) -> None:
    for chunk in chunks:
        assert chunk.text == document.text[chunk.start_char : chunk.end_char]
        assert chunk.text.strip()
        assert not chunk.text[0].isspace(), ascii(
            document.text[chunk.start_char - 30 : chunk.start_char + 10]
        )
        assert not chunk.text[-1].isspace()
    starts = [chunk.start_char for chunk in chunks]
    assert starts == sorted(set(starts))


def check_limits(chunks: list[ChunkDraft], count_tokens: TokenCounter, max_tokens: int) -> None:
    counts = count_tokens.counts([under_headings(chunk.headings, chunk.text) for chunk in chunks])
    assert [chunk.token_count for chunk in chunks] == counts
    assert max(counts) <= max_tokens


def check_coverage(document: ParsedPart, chunks: list[ChunkDraft]) -> None:
    covered = bytearray(len(document.text))
    for chunk in chunks:
        covered[chunk.start_char : chunk.end_char] = b"\1" * len(chunk.text)
    for element in document.elements:
        span = range(element.start_char, element.end_char)
        if element.kind.is_furniture:
            assert not any(covered[index] for index in span)
        elif element.kind is not ElementKind.HEADING:
            assert all(covered[index] for index in span if not document.text[index].isspace())


def check_places(document: ParsedPart, chunks: list[ChunkDraft]) -> None:
    pages = {index: place.page for e in document.elements for place in e.places for index in span_of(place)}
    for chunk in chunks:
        shown = {index: place.page for place in chunk.places for index in span_of(place)}
        inside = range(chunk.start_char, chunk.end_char)
        assert shown == {index: pages[index] for index in inside if index in pages}


def span_of(place: Place) -> range:
    return range(place.start_char, place.end_char)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(parts=documents())
def test_every_heading_is_found_in_a_path_or_a_text(parts: list[ParsedPart]) -> None:
    chunks = split_all(parts, words_counter(), 400, 40)
    document = joined(parts)
    found = " ".join(" ".join(under_headings(chunk.headings, chunk.text).split()) for chunk in chunks)
    for element in document.elements:
        if element.kind is ElementKind.HEADING:
            assert " ".join(document.text[element.start_char : element.end_char].split()) in found


def sections(*parts: tuple[int, str, str]) -> ParsedPart:
    """A document of (level, heading, text) sections."""
    builder = DocumentBuilder()
    for level, heading, text in parts:
        builder.add_heading([Line(heading)], level=level)
        builder.add(ElementKind.TEXT, [Line(text)])
    return joined(builder.finish())


def cut(document: ParsedPart, max_tokens: int, overlap_tokens: int = 0) -> list[tuple[tuple[str, ...], str]]:
    chunks = split(
        document, count_tokens=words_counter(), max_tokens=max_tokens, overlap_tokens=overlap_tokens
    )
    return [(chunk.headings, chunk.text) for chunk in chunks]


def test_a_small_document_is_one_chunk_under_the_headings_that_all_of_it_shares() -> None:
    document = sections((0, "Icehouse", "Cold."), (1, "Hours", "Nine to four."), (1, "Keys", "In the hall."))
    assert cut(document, 64) == [(("Icehouse",), "Cold.\n\nHours\n\nNine to four.\n\nKeys\n\nIn the hall.")]


def test_sections_too_long_for_one_chunk_are_cut_where_a_section_begins() -> None:
    document = sections((0, "Icehouse", "cold " * 30), (1, "Hours", "nine " * 30), (1, "Keys", "hall " * 30))
    assert cut(document, 48) == [
        (("Icehouse",), ("cold " * 30).strip()),
        (("Icehouse", "Hours"), ("nine " * 30).strip()),
        (("Icehouse", "Keys"), ("hall " * 30).strip()),
    ]


def test_a_section_of_a_line_stays_with_its_neighbour_and_shows_its_heading() -> None:
    document = sections((0, "Icehouse", "cold " * 45), (1, "Hours", "At nine."), (1, "Keys", "hall " * 30))
    assert cut(document, 48) == [
        (("Icehouse",), ("cold " * 45).strip()),
        (("Icehouse",), "Hours\n\nAt nine.\n\nKeys\n\n" + ("hall " * 30).strip()),
    ]


def test_a_long_section_is_cut_at_sentences_into_parts_of_about_equal_size() -> None:
    text = " ".join(f"Sentence {number} has exactly eight words in it." for number in range(10))
    lengths = [len(chunk.split()) for _, chunk in cut(sections((0, "Icehouse", text)), 64)]
    assert lengths == [40, 40]


def test_a_split_section_repeats_whole_sentences_and_other_sections_do_not() -> None:
    text = " ".join(f"Number {number} has seven words in it." for number in range(12))
    document = sections((0, "Hours", text), (0, "Keys", "hall " * 40))
    (_, first), *rest = cut(document, 48, 10)
    assert rest[0][1].startswith(first.rpartition(". ")[2])
    assert rest[-1] == (("Keys",), ("hall " * 40).strip())


def test_a_table_is_cut_between_rows_and_says_that_it_is_one() -> None:
    builder = DocumentBuilder()
    builder.add_heading([Line("Shelves")], level=0)
    builder.add(ElementKind.TABLE, [Line(f"Shelf: {number}; Keeper: Ada") for number in range(40)])
    chunks = split(joined(builder.finish()), count_tokens=words_counter(), max_tokens=64, overlap_tokens=32)
    assert len(chunks) > 1
    assert all(chunk.is_table for chunk in chunks)
    rows = [row for chunk in chunks for row in chunk.text.split("\n")]
    assert rows == [f"Shelf: {number}; Keeper: Ada" for number in range(40)]


def test_a_heading_with_nothing_below_it_stands_in_the_text_beside_it() -> None:
    builder = DocumentBuilder()
    builder.add(ElementKind.TEXT, [Line("cold " * 20)])
    builder.add_heading([Line("The end")], level=0)
    (chunk,) = split(joined(builder.finish()), count_tokens=words_counter(), max_tokens=64, overlap_tokens=0)
    assert chunk.text.endswith("The end")


def test_a_word_longer_than_a_chunk_is_cut_so_that_no_chunk_floods_a_prompt() -> None:
    chunks = cut(sections((0, "Icehouse", "x" * 10_000)), 64)
    assert "".join(text for _, text in chunks) == "x" * 10_000
    assert max(len(text) for _, text in chunks) <= 64 * 16


def test_a_document_cut_into_parts_keeps_its_headings_and_offsets() -> None:
    builder = DocumentBuilder(part_chars=100)
    builder.add_heading([Line("Icehouse")], level=0)
    for hour in range(10):
        builder.add(ElementKind.TEXT, [Line(f"Hour {hour} is cold, and the keys hang in the hall.")])
    parts = list(builder.finish())
    assert len(parts) > 2
    chunks = split_all(parts, words_counter(), 64, 0)
    assert {chunk.headings for chunk in chunks} == {("Icehouse",)}
    check_slices(joined(parts), chunks)


def test_a_cut_table_shows_its_header_row_above_the_rows_of_every_chunk() -> None:
    chunks = table_chunks(["Shelf | Keeper", *(f"{number} | Ada" for number in range(60))])
    assert len(chunks) > 1
    assert [chunk.headings for chunk in chunks] == [
        ("Shelves",),
        *[("Shelves", "Shelf | Keeper")] * (len(chunks) - 1),
    ]
    assert [row for chunk in chunks for row in chunk.text.split("\n")] == [
        "Shelf | Keeper",
        *(f"{number} | Ada" for number in range(60)),
    ]
    check_limits(chunks, words_counter(), 64)


@pytest.mark.parametrize(
    "header",
    [
        ["(Millions) | 2018 | 2017"],
        ["2018 | 2017"],
        ["Years ended", "2018 | 2017"],
        ["End | End", "2018 | 2017"],
    ],
)
def test_a_cut_table_of_accounts_shows_its_years_above_the_rows_of_every_chunk(header: list[str]) -> None:
    chunks = table_chunks([*header, *(f"Shelf {number} | {number} | 7" for number in range(60))])
    assert len(chunks) > 1
    assert {chunk.headings for chunk in chunks[1:]} == {("Shelves", " | ".join(header))}
    check_limits(chunks, words_counter(), 64)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([f"{number} | {number * 7}" for number in range(60)], id="figures name no columns"),
        pytest.param(
            ["Shelf | Keeper", *(f"Shelf: {number}; Keeper: Ada" for number in range(60))],
            id="rows that name their columns need no header",
        ),
        pytest.param(
            [" | ".join(["Shelf"] * 50), *(f"{number} | Ada" for number in range(60))],
            id="a long header would crowd out the rows",
        ),
    ],
)
def test_a_cut_table_without_a_short_row_of_names_repeats_nothing(rows: list[str]) -> None:
    chunks = table_chunks(rows)
    assert len(chunks) > 1
    assert {chunk.headings for chunk in chunks} == {("Shelves",)}


def table_chunks(rows: list[str]) -> list[ChunkDraft]:
    builder = DocumentBuilder()
    builder.add_heading([Line("Shelves")], level=0)
    builder.add(ElementKind.TABLE, [Line(row) for row in rows])
    return split_all(list(builder.finish()), words_counter(), 64, 32)


def test_a_part_without_text_has_no_chunks() -> None:
    assert split_all([ParsedPart("", ())], words_counter(), 64, 0) == []
