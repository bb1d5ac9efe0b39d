"""Counts text as the embedding model does, for the chunker: its own tokenizer, and where tokens begin."""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer


class TokenCounter:
    """The embedding model's own tokenizer, from the `tokenizers` library's serialised form."""

    def __init__(self, tokenizer_json: str) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        # Models ship with both set, and then a text that is cut would seem to fit.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.special_tokens: int = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        """Tokens that the model adds to every text."""
        self.adds_up = _adds_up(json.loads(tokenizer_json))
        """Whether a text has as many tokens as its words have, each on its own."""

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens included, exactly as the model counts."""
        return [len(encoding) for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def starts(self, text: str) -> list[int]:
        """Where tokens begin, ascending."""
        starts: list[int] = []
        windows = list(_windows(text))
        for group in range(0, len(windows), _WINDOWS_AT_ONCE):
            some = windows[group : group + _WINDOWS_AT_ONCE]
            encodings = self._tokenizer.encode_batch(
                [text[start:end] for start, end in some], add_special_tokens=False
            )
            for (window_start, _), encoding in zip(some, encodings, strict=True):
                starts += [window_start + start for start, _ in encoding.offsets]
        starts.sort()
        return starts


def room_positions(starts: Sequence[int], end: int) -> list[int]:
    """The starts of tokens, such that text[a:b] takes about as much room as there are of them in [a, b).

    Long tokens and gaps count once more every 16 characters. To a word-piece model a line of a million
    letters is one unknown word, but a chunk of it would fill the prompt of the model that answers.
    """
    filled = list(starts) if starts and starts[0] == 0 else [0, *starts]
    added = [
        position
        for start, next_start in pairwise([*filled, end])
        if next_start - start > _CHARS_PER_TOKEN_AT_MOST
        for position in range(start + _CHARS_PER_TOKEN_AT_MOST, next_start, _CHARS_PER_TOKEN_AT_MOST)
    ]
    return sorted([*filled, *added]) if added else filled


_WINDOW_CHARS = 8192
_WINDOWS_AT_ONCE = 64
_CHARS_PER_TOKEN_AT_MOST = 16


def _windows(text: str) -> Iterator[tuple[int, int]]:
    """Cuts a text at line ends into parts that the tokenizer takes well; tokens do not cross lines."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + _WINDOW_CHARS, start + 8 * _WINDOW_CHARS)
        if end < 0:
            end = text.rfind(" ", start + 1, start + 8 * _WINDOW_CHARS)
        if end < 0 or len(text) - start <= _WINDOW_CHARS:
            end = min(len(text), start + 8 * _WINDOW_CHARS)
        yield start, end
        start = end


def _adds_up(tokenizer: dict[str, Any]) -> bool:
    """True for the word pieces of the BERT family, which parts at white space before anything else.

    To the byte pairs of others a word with a space before it is another word.
    """
    kinds = [(tokenizer[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
    return kinds == ["BertNormalizer", "BertPreTokenizer", "WordPiece"]
