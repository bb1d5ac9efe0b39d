"""Token probabilities beside a text from which markers are taken out."""

from typing import Any

from app.answers.sentences import Span
from app.answers.tokens_shown import ShownTokens


def tokens(*texts: str) -> list[dict[str, Any]]:
    return [
        {"token": text, "logprob": -1.0, "bytes": list(text.encode()), "top_logprobs": []} for text in texts
    ]


def told(shown: list[dict[str, Any]]) -> list[str]:
    return [each["token"] for each in shown]


def test_a_token_waits_for_its_text() -> None:
    beside = ShownTokens()
    beside.add("The key", tokens("The", " key", " hangs"))
    assert told(beside.take(3, [])) == ["The"]
    assert told(beside.take(6, [])) == []
    assert told(beside.take(7, [])) == [" key"]
    beside.add(" hangs", [])
    assert told(beside.take(13, [])) == [" hangs"]


def test_what_was_taken_out_is_cut_from_its_token() -> None:
    beside = ShownTokens()
    beside.add("so [1]. So", tokens("so", " [", "1", "].", " So"))
    shown = beside.take(10, [Span(2, 6)])
    assert told(shown) == ["so", ".", " So"]
    assert (shown[1]["written"], shown[1]["bytes"], shown[1]["logprob"]) == ("].", [46], -1.0)


def test_pieces_of_a_character_go_out_as_they_were_told() -> None:
    beside = ShownTokens()
    beside.add("a \U0001f511 b", tokens("a", "\ufffd", "\ufffd", " b"))
    assert told(beside.take(5, [], final=True)) == ["a", "\ufffd", "\ufffd", " b"]


def test_an_end_that_is_no_text_goes_out_in_the_end() -> None:
    beside = ShownTokens()
    beside.add("So.", tokens("So", ".", "<|end|>"))
    assert told(beside.take(3, [])) == ["So", "."]
    assert told(beside.take(3, [], final=True)) == ["<|end|>"]
