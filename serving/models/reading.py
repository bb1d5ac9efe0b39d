"""How a model reads: texts to tokens, cut at the model's length, and tokens to padded arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from serving.batching.model import InputT, Tokens

Arrays = dict[str, NDArray[np.int64]]
"""A batch as transformers read it: arrays (texts, longest) by the name of the model's argument, in its order."""


class Reader(Generic[InputT]):
    """A model's tokenizer. May be used by several threads at once."""

    def __init__(
        self, tokenizer: Tokenizer, *, max_tokens: int, cuts_left: bool = False, prompt: str = ""
    ) -> None:
        """`tokenizer` neither pads nor truncates. `prompt` goes before each text that is no pair."""
        self.max_tokens = max_tokens
        self._tokenizer = tokenizer
        self._cuts_left = cuts_left
        self._prompt = prompt

    def read(self, inputs: Sequence[InputT]) -> list[Tokens]:
        """Each text once: cutting its tokens costs less than reading it again with truncation on."""
        texts = [self._prompt + text if isinstance(text, str) else text for text in inputs]
        return [self._tokens(encoding) for encoding in self._tokenizer.encode_batch_fast(texts)]

    def _tokens(self, encoding: Encoding) -> Tokens:
        ids = np.asarray(encoding.ids, np.int64)
        type_ids = np.asarray(encoding.type_ids, np.int64)
        if len(ids) <= self.max_tokens:
            return Tokens(ids=ids, type_ids=type_ids, whole_length=len(ids))
        # The tokenizers library calls a special token's sequence None.
        sequences = np.asarray([-1 if sequence is None else sequence for sequence in encoding.sequence_ids])
        kept = kept_positions(sequences, max_tokens=self.max_tokens, cuts_left=self._cuts_left)
        return Tokens(ids=ids[kept], type_ids=type_ids[kept], whole_length=len(ids))


def kept_positions(
    sequences: NDArray[np.int64], *, max_tokens: int, cuts_left: bool = False
) -> NDArray[np.int64]:
    """Positions that stay of a text or pair that is too long, as the tokenizers library cuts "longest first".

    `sequences` tells of each token whether it is special (-1), of the first text (0) or of the second (1).
    Special tokens all stay; the longer text is cut down to the shorter, and from there on both alike.
    """
    special = np.flatnonzero(sequences == -1)
    texts = [np.flatnonzero(sequences == number) for number in (0, 1)]
    room = max(0, max_tokens - len(special))
    shorter = 0 if len(texts[0]) <= len(texts[1]) else 1
    kept = min(len(texts[shorter]), room // 2)
    lengths = (kept, room - kept) if shorter == 0 else (room - kept, kept)
    cut = [
        positions[len(positions) - length :] if cuts_left else positions[:length]
        for positions, length in zip(texts, lengths, strict=True)
    ]
    return np.sort(np.concatenate([special, *cut]))


@dataclass(frozen=True, kw_only=True)
class Padding:
    """How a model wants texts of different lengths side by side."""

    names: tuple[str, ...]
    """The arrays that the model takes."""
    pad_id: int
    on_left: bool

    @classmethod
    def of(cls, tokenizer: Any) -> "Padding":
        """As a transformers tokenizer pads."""
        names = ["input_ids", "attention_mask"]
        if "token_type_ids" in tokenizer.model_input_names:
            names.append("token_type_ids")
        return cls(
            names=tuple(names), pad_id=tokenizer.pad_token_id or 0, on_left=tokenizer.padding_side == "left"
        )

    def pad(self, batch: Sequence[Tokens]) -> Arrays:
        """Each array has the shape (len(batch), longest)."""
        shape = (len(batch), max(len(tokens) for tokens in batch))
        ids: NDArray[np.int64] = np.full(shape, self.pad_id, np.int64)
        type_ids: NDArray[np.int64] = np.zeros(shape, np.int64)
        mask: NDArray[np.int64] = np.zeros(shape, np.int64)
        for row, tokens in enumerate(batch):
            used = slice(shape[1] - len(tokens), None) if self.on_left else slice(len(tokens))
            ids[row, used], type_ids[row, used], mask[row, used] = tokens.ids, tokens.type_ids, 1
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": type_ids}
        return {name: arrays[name] for name in self.names}

    def largest(self, texts: int, tokens: int) -> Arrays:
        """A batch without padding, as large as can be, of a token that every vocabulary has."""
        shape = (texts, tokens)
        arrays = {"attention_mask": np.ones(shape, np.int64)}
        return {name: arrays.get(name, np.zeros(shape, np.int64)) for name in self.names}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a model reads, in plain values: they outlive the library that told them."""

    tokenizer_json: str
    """Of the model's tokenizer, which neither pads nor truncates."""
    max_tokens: int
    """Special ones included."""
    cuts_left: bool
    prompt: str
    padding: Padding

    def reader(self) -> Reader[Any]:
        return Reader(
            Tokenizer.from_str(self.tokenizer_json),
            max_tokens=self.max_tokens,
            cuts_left=self.cuts_left,
            prompt=self.prompt,
        )

    def arrays_of(self, inputs: Sequence[InputT]) -> Arrays:
        """As one padded batch."""
        return self.padding.pad(self.reader().read(inputs))
