"""A document in parts is the document in one part: nothing lost, nothing twice, every offset its own."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.elements import Element, ElementKind, Parsed, ParsedPart, ParseFailed, ParseFailure, Progress
from ingest.parse.build import PART_CHARS, DocumentBuilder, Line
from retrieval.places import Box
from tests.parts import joined

TEXTS = st.lists(st.sampled_from(["Cold", "keys", "hall.", "保管庫", "  12", "-", ""]), max_size=8).map(
    " ".join
)
KINDS = [kind for kind in ElementKind if kind is not ElementKind.HEADING]
Block = tuple[ElementKind | int | None, list[str]]
"""Its kind, or the level of a heading, or None where headings are closed; and its lines."""
BLOCKS: st.SearchStrategy[list[Block]] = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(KINDS), st.lists(TEXTS, min_size=1, max_size=4)),
        st.tuples(st.integers(0, 3), st.lists(TEXTS, min_size=1, max_size=2)),
        st.tuples(st.none(), st.just([""])),
    ),
    max_size=60,
)


def build(blocks: list[Block], part_chars: int, *, asks: bool = True) -> list[Parsed]:
    """The parts of a document with one block a page, asked for after each page or only at the end."""
    builder = DocumentBuilder(part_chars=part_chars)
    parsed: list[Parsed] = []
    builder.add(ElementKind.TEXT, [Line("Begin.", 1)])
    for page, (kind, texts) in enumerate(blocks, start=2):
        lines = [Line(text, page, Box(0, row, 9, row + 1)) for row, text in enumerate(texts)]
        if isinstance(kind, ElementKind):
            builder.add(kind, lines)
        elif kind is not None:
            builder.add_heading(lines, level=kind)
        else:
            builder.close_headings()
        if asks:
            parsed += builder.ready()
    return [*parsed, *builder.finish(page_count=len(blocks) + 1)]


def parts_of(parsed: list[Parsed]) -> list[ParsedPart]:
    return [one for one in parsed if isinstance(one, ParsedPart)]


@settings(max_examples=200, deadline=None)
@given(blocks=BLOCKS, part_chars=st.integers(1, 400))
def test_the_parts_together_are_the_document(blocks: list[Block], part_chars: int) -> None:
    parts = parts_of(build(blocks, part_chars))
    check_offsets(parts)
    whole = joined(parts)
    (one_part,) = parts_of(build(blocks, 1_000_000))
    # Furniture stands at the end of each part, and so elsewhere, but all of it, in order.
    for furniture in (False, True):
        assert shown(whole, furniture=furniture) == shown(one_part, furniture=furniture)
    if not any(element.kind.is_furniture for element in one_part.elements):
        assert whole == one_part


def check_offsets(parts: list[ParsedPart]) -> None:
    end = 0
    for part in parts:
        assert part.start_char == end
        end = part.end_char
        assert part.elements
        # What stands between elements is white space, and no element's text begins or ends with a line end.
        position = part.start_char
        for element in part.elements:
            assert not part.between(position, element.start_char).strip()
            text = part.between(element.start_char, element.end_char)
            assert text.strip("\n") == text != ""
            for place in element.places:
                assert element.start_char <= place.start_char < place.end_char <= element.end_char
            position = element.end_char
        assert position == part.end_char
        assert ParsedPart.from_json(part.text, part.to_json()) == part


def shown(
    part: ParsedPart, *, furniture: bool
) -> list[tuple[str, ElementKind, tuple[str, ...], list[object]]]:
    return [
        (
            part.between(element.start_char, element.end_char),
            element.kind,
            element.headings,
            [(place.start_char - element.start_char, place.page, place.box) for place in element.places],
        )
        for element in part.elements
        if element.kind.is_furniture is furniture
    ]


@settings(max_examples=50, deadline=None)
@given(blocks=BLOCKS, part_chars=st.integers(1, 400))
def test_parts_are_cut_where_they_are_however_often_they_are_asked_for(
    blocks: list[Block], part_chars: int
) -> None:
    often, once = (parts_of(build(blocks, part_chars, asks=asks)) for asks in (True, False))
    assert [(part.text, part.elements) for part in often] == [(part.text, part.elements) for part in once]


def lines(count: int, page: int | None = None) -> list[Line]:
    return [Line(f"Line {number} of many that are cold.", page) for number in range(count)]


def test_a_part_holds_little_more_than_it_should() -> None:
    builder = DocumentBuilder(part_chars=1_000)
    for _ in range(50):
        builder.add(ElementKind.TEXT, lines(5))
    parts = list(builder.finish())
    assert all(1_000 <= len(part.text) <= 1_200 for part in parts[:-1])


def test_a_part_ends_before_a_heading_where_one_is_near() -> None:
    builder = DocumentBuilder(part_chars=1_000)
    for number in range(20):
        builder.add_heading([Line(f"Section {number}")], level=0)
        builder.add(ElementKind.TEXT, lines(3))
    parts = list(builder.finish())
    assert len(parts) > 1
    assert all(part.elements[0].kind is ElementKind.HEADING for part in parts)
    assert all(part.elements[-1].kind is ElementKind.TEXT for part in parts)


def test_a_block_longer_than_a_part_is_cut_at_its_lines_and_a_line_at_its_spaces() -> None:
    builder = DocumentBuilder()
    builder.add_heading([Line("Log")], level=0)
    builder.add(ElementKind.TEXT, lines(60_000))
    builder.add(ElementKind.TEXT, [Line("cold " * 300_000)])
    parts = list(builder.finish())
    assert len(parts) > 4
    assert all(len(part.text) <= 2 * PART_CHARS for part in parts)
    texts = [element for part in parts for element in part.elements if element.kind is ElementKind.TEXT]
    assert {element.headings for element in texts} == {("Log",)}
    words = joined(parts).text.split()
    assert words == ["Log", *" ".join(line.text for line in lines(60_000)).split(), *["cold"] * 300_000]


def test_headings_and_title_carry_over_from_part_to_part() -> None:
    builder = DocumentBuilder(part_chars=100)
    builder.add_heading([Line("Icehouse")], level=0)
    for _ in range(5):
        builder.add(ElementKind.TEXT, lines(4))
    parts = list(builder.finish())
    assert len(parts) > 2
    assert {part.title for part in parts} == {"Icehouse"}
    assert {element.headings for part in parts[1:] for element in part.elements} == {("Icehouse",)}


def test_furniture_stands_at_the_end_of_its_part_and_belongs_to_no_section() -> None:
    builder = DocumentBuilder(part_chars=100)
    builder.add_heading([Line("Icehouse", 1)], level=0)
    for page in range(1, 7):
        builder.add(ElementKind.FOOTER, [Line(f"Page {page}", page)])
        builder.add(ElementKind.TEXT, lines(2, page))
    for part in builder.finish():
        kinds = [element.kind.is_furniture for element in part.elements]
        assert kinds == sorted(kinds)
        assert all(element.headings == () for element in part.elements if element.kind.is_furniture)


def test_pages_are_counted_as_they_end_and_told_between_the_parts() -> None:
    builder = DocumentBuilder(page_count=9, part_chars=150)
    parsed: list[Parsed] = []
    for page in range(1, 8):
        builder.add(ElementKind.TEXT, lines(2, page))
        parsed += builder.ready()
    # A page without text ends as well.
    parsed += builder.ready(pages_done=8)
    parsed += builder.finish()
    assert [one.pages_done for one in parsed if isinstance(one, Progress)] == [1, 2, 3, 4, 5, 6, 8]
    assert [part.pages_done for part in parts_of(parsed)] == [2, 5, 9]
    assert {part.page_count for part in parts_of(parsed)} == {9}
    for part in parts_of(parsed)[:-1]:
        last_page = part.elements[-1].places[-1].page
        assert last_page is not None
        assert part.pages_done is not None
        assert last_page - 1 <= part.pages_done <= last_page


def test_a_document_without_pages_counts_none() -> None:
    builder = DocumentBuilder(title="Notes")
    builder.add(ElementKind.TEXT, lines(1))
    (part,) = (one for one in [*builder.ready(), *builder.finish()] if isinstance(one, ParsedPart))
    assert (part.pages_done, part.page_count, part.title) == (None, None, "Notes")


def test_a_title_is_one_line_of_what_can_be_seen() -> None:
    builder = DocumentBuilder(title=" Not\u200bes\nof the \U000e0041\U000e0042hall ")
    builder.add(ElementKind.TEXT, lines(1))
    (part,) = builder.finish(title="\u200b")
    assert part.title == "Notes of the hall"


def test_a_document_of_nothing_but_repeated_lines_is_those_lines() -> None:
    builder = DocumentBuilder()
    builder.add(ElementKind.HEADER, [Line("Icehouse")])
    (part,) = builder.finish()
    assert part.elements == (Element(ElementKind.TEXT, 0, 8, ()),)


def test_a_document_of_nothing_is_refused_unless_files_in_it_may_be_all_there_is() -> None:
    builder = DocumentBuilder()
    builder.add(ElementKind.TEXT, [Line("  ")])
    assert list(builder.finish(may_be_empty=True)) == []
    with pytest.raises(ParseFailed) as caught:
        list(builder.finish())
    assert caught.value.code is ParseFailure.EMPTY
