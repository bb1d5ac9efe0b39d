"""A citation is only given for what its quote supports, wherever the stream was cut."""

import pytest

from app.citations import Citation, CitationWriter, content_words, sentences
from retrieval.passages import Passage
from retrieval.places import Box, Place


def passage(
    text: str, *, start: int = 0, headings: tuple[str, ...] = (), places: tuple[Place, ...] = ()
) -> Passage:
    return Passage(
        document_id=1,
        collection_id="vs_1",
        file_id="file-1",
        filename="tower.pdf",
        text=text,
        start_char=start,
        end_char=start + len(text),
        headings=headings,
        places=places,
        score=1.0,
    )


TOWER = passage("The strongroom is fireproof. It was built in 1932 by Jonas Vey.", start=100)
KEYS = passage("The key hangs in the hall.\nThe spare key is with Dr. Lund on floor 3.")


def written(
    text: str, passages: list[Passage], *, step: int = 1000, markers: bool = True
) -> tuple[str, list[Citation]]:
    writer = CitationWriter(passages, insert_markers=markers)
    shown = "".join(writer.feed(text[at : at + step]) for at in range(0, len(text), step))
    return shown + writer.finish(), writer.citations


def test_a_supported_sentence_gets_a_marker_and_a_verbatim_quote_with_its_offsets() -> None:
    shown, (cited,) = written("The key hangs in the hall.", [TOWER, KEYS])
    assert shown == "The key hangs in the hall. [2]"
    assert shown[cited.start_index : cited.end_index] == "[2]"
    assert cited.quote == "The key hangs in the hall."
    assert KEYS.text[cited.start_char : cited.end_char] == cited.quote


def test_offsets_index_the_document_and_not_the_passage() -> None:
    _, (cited,) = written("The strongroom is fireproof.", [TOWER])
    assert (cited.start_char, cited.end_char) == (100, 128)


@pytest.mark.parametrize(
    "claim",
    [
        "The strongroom was built in 1933 by Jonas Vey.",  # another number
        "The strongroom was built in 1932 by Anna Vey.",  # another name
        "Cats like to sleep in the afternoon.",
        "Yes.",
        "It is.",
    ],
)
def test_an_unsupported_claim_gets_no_citation_and_loses_the_models_marker(claim: str) -> None:
    shown, cited = written(claim.removesuffix(".") + " [1].", [TOWER, KEYS])
    assert cited == []
    assert shown == claim


def test_a_wrong_marker_of_the_model_is_corrected() -> None:
    shown, _ = written("The key hangs in the hall [1]. The strongroom is fireproof [7][2].", [TOWER, KEYS])
    assert shown == "The key hangs in the hall. [2] The strongroom is fireproof. [1]"


@pytest.mark.parametrize("step", [1, 2, 3, 5, 8, 13])
def test_the_answer_is_the_same_wherever_the_stream_is_cut(step: int) -> None:
    text = (
        "The key hangs in the hall [1]. The strongroom was built in 1932. [2] Dr. Lund has the spare key on floor 3!\n"
        "Use `list[1]` here.\n```\nprint(x[2])\n```\nThe strongroom is fireproof[1]"
    )
    assert written(text, [TOWER, KEYS], step=step) == written(text, [TOWER, KEYS])


def test_text_streams_at_once_and_only_a_possible_marker_is_held_back() -> None:
    writer = CitationWriter([KEYS])
    assert writer.feed("The key") == "The key"
    assert writer.feed(" [") == ""
    assert writer.feed("see") == " [see"
    assert writer.feed(" [1") == ""
    assert writer.feed("] hangs") == " hangs"


def test_code_is_left_alone() -> None:
    for code in ("Use `a[1]`.", "```\na[1] = b[2]\n```", "``a[1]``"):
        shown, cited = written(code, [KEYS])
        assert shown == code
        assert cited == []


def test_an_abbreviation_or_a_decimal_does_not_end_a_sentence() -> None:
    spans = sentences("Dr. Lund paid 3.5 crowns. He left, e.g. by boat. Good.")
    assert len(spans) == 3


def test_an_answer_that_is_json_is_cited_but_not_changed() -> None:
    text = '{"answer": "The key hangs in the hall."}'
    shown, cited = written(text, [KEYS], markers=False)
    assert shown == text
    assert [each.quote for each in cited] == ["The key hangs in the hall."]


def test_page_and_boxes_are_those_of_the_quotes_lines() -> None:
    text = "First line here. The bell weighs 900 kilograms and hangs high. Last line."
    where = text.index("The bell")
    places = (
        Place(0, where, 4, Box(1, 1, 2, 2)),
        Place(where, where + 30, 4, Box(3, 3, 4, 4)),
        Place(where + 30, len(text), 5, Box(5, 5, 6, 6)),
    )
    _, (cited,) = written("The bell weighs 900 kilograms.", [passage(text, places=places)])
    assert cited.page == 4
    assert cited.boxes == ((4, Box(3, 3, 4, 4)), (5, Box(5, 5, 6, 6)))


def test_words_are_compared_by_stem_and_numbers_exactly() -> None:
    assert content_words("Keepers keeping 1,200 keys") == content_words("keeper keep key 1200")
    assert not content_words("12") & content_words("120")


def test_a_long_table_is_quoted_by_its_row() -> None:
    rows = [f"Part number: P-{number}; Name: Pump {number}; Shelf: {number * 7}" for number in range(60)]
    _, (cited,) = written("Pump 33 has the part number P-33 on shelf 231.", [passage("\n".join(rows))])
    assert cited.quote == rows[33]
