"""Sentences of documents: where they end, and where a full stop means something else."""

import pytest

from app.answers.sentences import sentences


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Dr. Lund paid 3.5 crowns. He left, e.g. by boat. Good.", 3),
        ('He said "Go." She went. (Slowly!) They saw.', 4),
        ("1. The key hangs.\n2. The lamp burns.", 2),
        ("No end here", 1),
        ("First\n\nSecond", 2),
        ("钥匙挂在大厅里。「好！」他说。真的吗？", 4),
        ("鍵はホールにあります。予備の鍵は三階です。", 2),
        ("दरवाज़ा बंद है। चाबी यहाँ है।", 2),
        ("Really?! Yes... Well… No.", 4),
        ("", 0),
        (" \n\n ", 0),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text: str, count: int) -> None:
    spans = sentences(text)
    assert len(spans) == count
    for span in spans:
        piece = text[span.start : span.end]
        assert piece == piece.strip() != ""
