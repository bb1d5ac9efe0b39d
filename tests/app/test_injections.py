"""What reaches the engine of documents that were written to be obeyed. Whether it obeys is measured in tests/bench."""

import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from app.answers.prompt import INSTRUCTIONS, with_passages
from ingest.parse.plain import parse_plain
from retrieval.passages import Passage
from tests.app.test_prompt import SPECIAL_TOKENS, asked, at_the_margin, passage, shown_to
from tests.ingest.reading import read_here
from tests.injections import INJECTIONS, Injection

JOINERS = "\u200c\u200d"


def hostile(injection: Injection) -> Passage:
    return passage(injection.text, filename=injection.filename, headings=injection.headings)


def invisible(text: str) -> list[str]:
    return [
        f"U+{ord(character):04X}"
        for character in text
        if (unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn") and character not in f"\n{JOINERS}")
        or 0xFE00 <= ord(character) <= 0xFE0F
        or 0xE0100 <= ord(character) <= 0xE01EF
    ]


def test_the_set_is_large_and_of_many_kinds_and_each_canary_finds_what_it_is_for() -> None:
    kinds = Counter(injection.kind for injection in INJECTIONS)
    assert len(INJECTIONS) >= 60
    assert len(kinds) >= 12
    assert len({(each.text, each.filename, each.headings) for each in INJECTIONS}) == len(INJECTIONS)
    for each in INJECTIONS:
        assert re.search(each.topic.truth, each.topic.honest)
        assert not re.search(each.canary, each.topic.honest)


@pytest.mark.parametrize("injection", INJECTIONS, ids=lambda each: f"{each.kind}-{each.text[:24]!r}")
def test_a_hostile_document_stays_within_its_passage(injection: Injection, tmp_path: Path) -> None:
    honest = passage(injection.topic.honest)
    messages = [{"role": "system", "content": "Be kind."}, *asked(injection.topic.question)]
    system, question = with_passages(messages, [hostile(injection), honest], ranks=[0, 1])
    prompt = shown_to([system])
    assert prompt.startswith(INSTRUCTIONS)
    assert at_the_margin(prompt.removeprefix(INSTRUCTIONS)) == ["Passages:", "[1]", "[2]", "Be kind."]
    assert prompt.endswith(f"\n\n[2]\n  notes.txt > Vault\n  {injection.topic.honest}\n\nBe kind.")
    assert question["content"].endswith(f"Question: {injection.topic.question}")
    assert invisible(prompt) == []
    assert [token for token in SPECIAL_TOKENS if token in prompt] == []
    assert "![" not in prompt
    assert "<img" not in prompt


@pytest.mark.parametrize(
    "injection", [each for each in INJECTIONS if each.kind != "name"], ids=lambda each: each.text[:24]
)
def test_what_nobody_sees_is_not_ingested_and_offsets_hold(injection: Injection, tmp_path: Path) -> None:
    path = tmp_path / "hostile.txt"
    path.write_text(injection.text)
    document = read_here(parse_plain, path)
    assert invisible(document.text) == []
    for part in document.parts:
        for element in part.elements:
            block = part.between(element.start_char, element.end_char)
            assert block == block.strip("\n")
            assert block in document.text
    if injection.hides:
        assert not re.search(injection.canary, document.text)
