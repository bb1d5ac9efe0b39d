"""A citation is only given for what its quote supports, wherever the stream was cut."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.answers.citations import Citation, CitationWriter
from tests.app.citing import KEYS, TOWER, answered, cut, passage, text_of

PIECES = st.sampled_from(
    [
        *(
            "The key hangs in the hall",
            "The strongroom is fireproof",
            "Cats sleep",
            "It was built in 1932",
            "Dr. Lund",
        ),
        *(".", "!", "?", "。", "！", "…", ". ", ".\n", "\n", "\n\n", " ", "  ", '"', "”", "*", "**", "_"),
        *(
            "[1]",
            " [2]",
            "[1, 2]",
            "[1-3]",
            "[1",
            "1]",
            "[",
            "]",
            " [",
            "[passage 2]",
            "[Source",
            "[^1]",
            "【1†a】",
            "【",
        ),
        *(
            "[see",
            "[12345]",
            "[0]",
            " [1 and",
            "- ",
            "1. ",
            "| a | b |",
            "# ",
            "`",
            "```",
            "`x[1]`",
            "e.g.",
            "3.5",
        ),
        *("钥匙挂在大厅里", "鍵はホールにあります", "é", "🗝"),
    ]
)
ANSWERS = st.lists(PIECES, max_size=25).map("".join)
MODELS_MARKER = re.compile(
    r" ?[\[【]\^?(?:(?:passages?|sources?|documents?|docs?|refs?|references?|citations?) ?#?)?[1-9]\d{0,2}"
    r"(?:(?: ?[,;&–-] ?|,? and )[1-9]\d{0,2}){0,15}(?:†[^\]】\n]{0,40})?[\]】]",
    re.IGNORECASE | re.ASCII,
)

LABELS = ("passages", "sources", "documents", "docs", "refs", "references", "citations", " and")
ENDINGS = {"]", "[1]"} | {f"{label} 1]"[at:] for label in LABELS for at in range(len(label) + 2)}


def cited(
    text: str, *, step: int = 1000, question: str = "", is_prose: bool = True
) -> tuple[str, list[Citation]]:
    shown, answer = answered(cut(text, step), [TOWER, KEYS], question=question, is_prose=is_prose)
    return text_of(shown), answer.citations


def test_a_supported_sentence_gets_a_marker_and_a_verbatim_quote_with_its_offsets() -> None:
    shown, (citation,) = cited("The key hangs in the hall.")
    assert shown == "The key hangs in the hall. [2]"
    assert shown[citation.start_index : citation.end_index] == "[2]"
    assert citation.support.quote == "The key hangs in the hall."
    assert KEYS.text[citation.support.start_char : citation.support.end_char] == citation.support.quote


def test_offsets_index_the_document_and_not_the_passage() -> None:
    _, (citation,) = cited("The strongroom is fireproof.")
    assert (citation.support.start_char, citation.support.end_char) == (100, 128)


@pytest.mark.parametrize(
    "claim",
    [
        "The strongroom was built in 1933 by Jonas Vey.",
        "Cats like to sleep in the afternoon.",
        "Yes.",
        "It is.",
    ],
)
def test_an_unsupported_claim_gets_no_citation_and_loses_the_models_marker(claim: str) -> None:
    assert cited(claim.removesuffix(".") + " [1].") == (claim, [])


def test_a_wrong_marker_of_the_model_is_corrected() -> None:
    shown, _ = cited("The key hangs in the hall [1]. The strongroom is fireproof [7][2].")
    assert shown == "The key hangs in the hall. [2] The strongroom is fireproof. [1]"


def test_of_equal_quotes_the_one_that_the_model_named_is_taken() -> None:
    same = [passage("The bell rings at noon."), passage("Every day the bell rings at noon, loudly.")]
    for text, number in (
        ("The bell rings at noon.", 1),
        ("The bell rings at noon [2].", 2),
        ("The bell rings at noon. [2]", 2),
        ("[2] The bell rings at noon.", 2),
        ("The bell rings at noon 【2†source】.", 2),
        ("The bell rings at noon [Passage 2].", 2),
        ("Passage 2 says that the bell rings at noon.", 2),
        ("The bell rings at noon [1-2].", 1),
        ("The bell rings at noon [9].", 1),
    ):
        _, answer = answered([text], same)
        assert [each.support.number for each in answer.citations] == [number], text


def test_sentences_without_support_are_told_with_their_places_and_counted() -> None:
    text = "# Keys\nThe key hangs in the hall. The moon is made of cheese! Is it?\n- Cats eat moonlight\nYes."
    shown, answer = answered([text], [TOWER, KEYS])
    whole = text_of(shown)
    assert [whole[each.start : each.end] for each in answer.unsupported] == [
        "The moon is made of cheese!",
        "- Cats eat moonlight",
    ]
    assert answer.counts == {"sentences": 3, "cited": 1, "unsupported": 2, "unjudged": 0}


@pytest.mark.parametrize("step", [1, 2, 3, 5, 8, 13])
def test_the_answer_is_the_same_wherever_the_stream_is_cut(step: int) -> None:
    text = (
        "The key hangs in the hall [1]. The strongroom was built in 1932. [2] Dr. Lund has the spare key on floor 3!\n"
        "Use `list[1]` here.\n```\nprint(x[2])\n```\nThe strongroom is fireproof[1]"
    )
    assert cited(text, step=step) == cited(text)


@settings(deadline=None)
@given(text=ANSWERS, step=st.integers(1, 9))
def test_what_is_taken_at_once_is_the_same(text: str, step: int) -> None:
    shown, answer = answered(cut(text, step), [TOWER, KEYS], is_quick=True)
    as_ever, known = answered(cut(text, step), [TOWER, KEYS])
    assert text_of(shown) == text_of(as_ever)
    assert answer.citations == known.citations
    assert answer.unsupported == known.unsupported
    assert answer.counts == known.counts


@settings(deadline=None)
@given(text=ANSWERS, step=st.integers(1, 9), is_quick=st.booleans(), is_prose=st.booleans())
def test_what_is_checked_ahead_is_the_same(text: str, step: int, is_quick: bool, is_prose: bool) -> None:
    ahead, answer = answered(
        cut(text, step), [TOWER, KEYS], is_quick=is_quick, is_prose=is_prose, looks_ahead=True
    )
    as_ever, known = answered(cut(text, step), [TOWER, KEYS], is_prose=is_prose)
    assert text_of(ahead) == text_of(as_ever)
    assert answer.citations == known.citations
    assert answer.unsupported == known.unsupported
    assert answer.counts == known.counts


def test_plain_text_within_a_sentence_passes_and_nothing_else_does() -> None:
    writer = CitationWriter()
    assert not writer.passes("The")
    assert list(writer.feed("The")) == ["The"]
    assert writer.passes(" key hangs")
    for other in (" ", "x ", " [", "[1]", "a.", "\n", "`", ' "', "  x", "", "。", "x" * 1_000):
        assert not writer.passes(other)
    assert writer.passes("钥匙")
    began = time.perf_counter()
    assert not writer.passes("x" * 900 + ".")
    assert time.perf_counter() - began < 0.5


@settings(deadline=None)
@given(text=ANSWERS, data=st.data())
def test_whatever_pieces_a_text_comes_in_the_same_is_shown_and_cited(text: str, data: st.DataObject) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]
    whole, at_once = answered([text], [TOWER, KEYS])
    parts, in_pieces = answered(pieces, [TOWER, KEYS])
    assert text_of(parts) == text_of(whole)
    assert in_pieces.citations == at_once.citations
    assert in_pieces.unsupported == at_once.unsupported
    assert in_pieces.counts == at_once.counts


@settings(deadline=None)
@given(text=ANSWERS, step=st.integers(1, 9))
def test_what_is_shown_without_our_markers_is_the_models_text_without_its_own(text: str, step: int) -> None:
    shown, answer = answered(cut(text, step), [TOWER, KEYS])
    bare = text_of(shown)
    for citation in reversed(answer.citations):
        if bare[citation.start_index : citation.end_index] == f"[{citation.support.number}]":
            assert bare[citation.start_index - 1] == " "
            bare = bare[: citation.start_index - 1] + bare[citation.end_index :]
    assert bare == without_own_markers(text)


def without_own_markers(text: str) -> str:
    """By the slow way: character by character, with all of the text at hand."""
    bare, at, code, ticks = "", 0, "", 0
    while at < len(text):
        found = None if code else MODELS_MARKER.match(text, at)
        if found:
            at = found.end()
            continue
        ticks = ticks + 1 if text[at] == "`" else 0
        if text[at] == "\n" and code == "`":
            code = ""
        if ticks == 1:
            code = "" if code == "`" else code or "`"
        elif ticks == 3:
            code = "" if code == "```" else "```"
        bare += text[at]
        at += 1
    return bare


@settings(deadline=None)
@given(text=ANSWERS, step=st.integers(1, 9))
def test_places_of_sentences_and_markers_are_those_in_the_text_that_is_shown(text: str, step: int) -> None:
    shown, answer = answered(cut(text, step), [TOWER, KEYS])
    whole = text_of(shown)
    for citation in answer.citations:
        piece = whole[citation.start_index : citation.end_index]
        assert piece == f"[{citation.support.number}]" or piece.lstrip().startswith("|") or "`" in piece
    for span in answer.unsupported:
        assert whole[span.start : span.end] == whole[span.start : span.end].strip() != ""
    assert answer.counts["unsupported"] == len(answer.unsupported)
    assert answer.counts["cited"] == len(answer.citations)


@settings(deadline=None)
@given(text=ANSWERS)
def test_a_form_that_was_asked_for_is_never_changed(text: str) -> None:
    for whole in (text, f'{{"answer": {text}', "[" + text):
        shown, _ = answered(cut(whole, 3), [TOWER, KEYS], is_prose=False)
        assert text_of(shown) == whole


def test_text_streams_at_once_and_only_a_possible_marker_is_held_back() -> None:
    writer = CitationWriter()

    def fed(text: str) -> str:
        return "".join(each for each in writer.feed(text) if isinstance(each, str))

    assert fed("The key") == "The key"
    for held, released in (
        ("[", "see"),
        ("[1", "x"),
        (" [so", "it"),
        ("[passage ", "of"),
        ("[1, ", "b"),
        ("【", "注"),
    ):
        assert fed(held) == ""
        assert fed(released) == held + released
    assert fed(" [1") == ""
    assert fed("] hangs") == " hangs"
    assert fed(" ") == ""
    assert fed("high") == " high"


@settings(deadline=None)
@given(text=ANSWERS)
def test_what_is_held_back_could_still_become_a_marker_and_is_short(text: str) -> None:
    writer = CitationWriter()
    for character in text:
        list(writer.feed(character))
        assert len(writer._held) <= 60
        assert not writer._held or any(MODELS_MARKER.match(writer._held + ending) for ending in ENDINGS)


def test_a_citation_comes_as_soon_as_its_sentence_has_ended() -> None:
    shown, _ = answered(["The key hangs in the hall", ".", " Cats", " sleep."], [TOWER, KEYS])
    assert [(each.text, len(each.citations)) for each in shown] == [
        ("The key hangs in the hall", 0),
        (".", 0),
        (" [2] Cats", 1),
        (" sleep.", 0),
    ]


def test_text_before_a_sentences_end_does_not_wait_for_its_check() -> None:
    shown, _ = answered(["in no hurry. The key hangs in the hall. Cats"], [TOWER, KEYS])
    assert [each.text for each in shown] == ["in no hurry.", " The key hangs in the hall.", " [2] Cats"]


def test_code_is_left_alone_and_claims_nothing() -> None:
    for code in ("Use `a[1]`.", "```\na[1] = b[2]\n```", "``a[1]``", "```\nThe key hangs in the hall.\n```"):
        shown, answer = answered([code], [KEYS])
        assert (text_of(shown), answer.citations) == (code, [])
    shown, answer = answered(["```\nThe moon is made of cheese.\n```\nThe key hangs in the hall."], [KEYS])
    assert text_of(shown).endswith("The key hangs in the hall. [1]")
    assert answer.unsupported == []


def test_a_lists_items_are_cited_each_and_a_tables_rows_without_breaking_them() -> None:
    text = "Things:\n- The key hangs in the hall [1]\n2. The strongroom is fireproof\n\n| Built | 1932 by Jonas Vey |\n"
    shown, answer = answered([text], [TOWER, KEYS], question="When was the strongroom built?")
    assert text_of(shown) == (
        "Things:\n- The key hangs in the hall [2]\n2. The strongroom is fireproof [1]\n\n"
        "| Built | 1932 by Jonas Vey |\n"
    )
    row = answer.citations[-1]
    assert text_of(shown)[row.start_index : row.end_index] == "| Built | 1932 by Jonas Vey |"


def test_a_sentence_in_a_language_without_spaces_ends_at_its_own_full_stop() -> None:
    hall = passage("钥匙挂在大厅里。备用钥匙在三楼。保险库建于1932年！")
    shown, answer = answered(
        ["钥匙挂在大厅里。保险库建于1932年！保险库建于1933年。钥匙挂在大厅里。[1]"], [hall]
    )
    assert (
        text_of(shown) == "钥匙挂在大厅里。 [1]保险库建于1932年！ [1]保险库建于1933年。钥匙挂在大厅里。 [1]"
    )
    assert [each.support.quote for each in answer.citations] == [
        "钥匙挂在大厅里。",
        "保险库建于1932年！",
        "钥匙挂在大厅里。",
    ]


def test_an_answer_that_is_json_is_cited_by_its_values_but_not_changed() -> None:
    text = '{"The spare key": 1, "answer": "The key hangs in the hall.", "more": ["Cats\\u0020sleep a lot.", "1932"]}'
    shown, answer = answered([text], [TOWER, KEYS], is_prose=False)
    assert text_of(shown) == text
    (citation,) = answer.citations
    assert citation.support.quote == "The key hangs in the hall."
    assert text[citation.start_index : citation.end_index] == "The key hangs in the hall."
    assert [text[each.start : each.end] for each in answer.unsupported] == ["Cats\\u0020sleep a lot."]


def test_brackets_that_no_passage_has_a_number_for_stay() -> None:
    for text in ("It lies in [0, 1].", "See [a] and [2016].", "So [it] is [sic].", "x[", "[1"):
        assert cited(text)[0] == text


@pytest.mark.parametrize(
    "text",
    [
        *(letter * 200_000 for letter in "a[ .!。`\n*|1【"),
        *(
            "[1 " * 60_000,
            "a. " * 60_000,
            '"\\' * 100_000,
            "[passage " * 20_000,
            "1,1" * 60_000,
            "[1, " * 50_000,
        ),
        *("not " * 50_000, "A b " * 50_000, "\n- " * 60_000, "!a" * 100_000, "n't" * 60_000),
    ],
    ids=lambda text: repr(text[:9]),
)
@pytest.mark.slow
def test_200_000_characters_take_a_time_that_grows_with_them_and_no_faster(text: str) -> None:
    """The bound is far above what any of these takes, and far below what a square of 200,000 would."""
    for is_prose in (True, False):
        started = time.process_time()
        shown, _ = answered(cut(text, 20_000), [TOWER, KEYS], is_prose=is_prose)
        assert time.process_time() - started < 20
        assert text_of(shown) == text
