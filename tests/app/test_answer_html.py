"""An answer's HTML: chips where it is cited, marks where it is not, and nothing of the model's own making."""

import re
from html.parser import HTMLParser

import pytest

from app.console.answer_html import Cited, Stretch, blocks_of
from tests.payloads import PAYLOADS


class Seen(HTMLParser):
    """The tags and attributes of HTML, as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)


def html_of(text: str, cited: list[Cited] | None = None, unsupported: list[Stretch] | None = None) -> str:
    return "".join(blocks_of(text, cited or [], unsupported or []))


def test_a_marker_becomes_a_chip_that_names_its_citation() -> None:
    text = "The key hangs in the hall. [2] It is old."
    place = text.index("[2]")
    assert (
        '<button type="button" class="chip" data-cite="0" aria-label="Source 1">1</button> It is old.'
        in html_of(text, [Cited(place, place + 3)])
    )


def test_a_citation_without_a_marker_gets_its_chip_at_its_sentences_end_and_in_a_row_within_the_last_cell() -> (
    None
):
    text = "| who | where |\n|---|---|\n| key | hall |"
    row = text.index("| key")
    found = html_of(text, [Cited(row, len(text))])
    assert re.search(r"<td>hall <button[^>]*>1</button></td>", found)


def test_brackets_that_are_no_citation_stay_what_they_are() -> None:
    assert html_of("`x[1]` and [1]") == "<p><code>x[1]</code> and [1]</p>\n"


@pytest.mark.parametrize("head", ["", "- ", "1. ", "## ", "> "])
def test_an_unsupported_sentence_is_marked_and_its_line_stays_what_it_is(head: str) -> None:
    text = f"{head}Giraffes **painted** it."
    found = html_of(text, unsupported=[Stretch(0, len(text))])
    assert '<span class="unsupported"' in found
    assert "(no document says this)" in found
    plain = html_of(text)
    assert re.match(r"<\w+>", found)[0] == re.match(r"<\w+>", plain)[0]  # type: ignore[index]


def test_a_text_that_goes_on_changes_its_last_block_only() -> None:
    before = blocks_of("First.\n\nSecond is")
    after = blocks_of("First.\n\nSecond is longer.\n\n- third")
    assert after[0] == before[0]
    assert len(after) == 3


def test_signs_of_ours_that_a_model_writes_are_nothing() -> None:
    found = html_of("\ue0000\ue003 x \ue001y\ue002")
    assert "button" not in found
    assert "span" not in found


def test_hidden_characters_are_not_shown() -> None:
    assert html_of("a\U000e0041\u200bb") == "<p>ab</p>\n"


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_becomes_markup_that_loads_runs_or_leads_anywhere(payload: str) -> None:
    seen = Seen(html_of(payload, [Cited(0, len(payload))], [Stretch(0, len(payload))]))
    assert not seen.tags & {"a", "img", "script", "svg", "style", "iframe", "link", "form", "video", "object"}
    assert seen.attributes <= {"type", "class", "data-cite", "aria-label", "title", "start"}
