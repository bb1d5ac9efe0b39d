"""A model for tests of the batcher: its rows tell which text they belong to, and the test says when a batch ends."""

import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from serving.batching.batcher import Rows, Tokens


def length_of(text: str) -> int:
    """A text is read as the number of tokens that it begins with: `30`, or `30#a`, to have several of a length."""
    return int(text.partition("#")[0])


def rows_of(texts: Sequence[str]) -> list[list[float]]:
    """What the model answers: each text's length and a number made from all of it."""
    return [[float(length_of(text)), float(_code(text))] for text in texts]


@dataclass
class LengthModel:
    """One replica."""

    width: int = 2
    max_tokens: int = 10_000
    batches: list[list[int]] = field(default_factory=list)
    """The lengths of each batch's texts."""
    collated: list[list[int]] = field(default_factory=list)
    on_forward: Callable[[list[int]], None] = lambda _: None
    """Called with the batch's lengths; what it raises, the batch fails with."""
    on_collate: Callable[[list[int]], None] = lambda _: None
    on_encode: Callable[[Sequence[str]], None] = lambda _: None
    spoil: Callable[[Rows], Rows] = lambda rows: rows
    """Changes what forward gives."""

    def encode(self, inputs: Sequence[str]) -> list[Tokens]:
        self.on_encode(inputs)
        return [self._encode(text) for text in inputs]

    def _encode(self, text: str) -> Tokens:
        if text == "untokenisable":
            raise UnicodeError
        ids = np.full(min(length_of(text), self.max_tokens), _code(text), np.int64)
        return Tokens(ids, np.zeros_like(ids), whole_length=length_of(text))

    def collate(self, batch: Sequence[Tokens]) -> list[tuple[int, int]]:
        lengths = [len(tokens) for tokens in batch]
        self.collated.append(lengths)
        self.on_collate(lengths)
        return [(len(tokens), int(tokens.ids[0])) for tokens in batch]

    def forward(self, collated: list[tuple[int, int]]) -> Rows:
        lengths = [length for length, _ in collated]
        self.batches.append(lengths)
        self.on_forward(lengths)
        return self.spoil(np.array(collated, np.float32))


class Gate:
    """Holds batches until it is opened, so that a test can fill the queue behind them."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()

    def __call__(self, _: list[int]) -> None:
        self.reached.set()
        assert self._open.wait(10)

    def open(self) -> None:
        self._open.set()


def _code(text: str) -> int:
    return zlib.crc32(text.encode()) % 2**20
