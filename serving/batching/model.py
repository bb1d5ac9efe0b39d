"""What the batcher runs: a model that reads tokens and gives one row a text. For the batcher and the backends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]

Input = str | tuple[str, ...]
"""What a model reads as one: a text, or a query with a text."""

InputT = TypeVar("InputT", bound=Input)
InputT_contra = TypeVar("InputT_contra", bound=Input, contravariant=True)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as the model reads it: int64 arrays of equal length, cut to what the model reads, unpadded."""

    ids: NDArray[np.int64]
    type_ids: NDArray[np.int64]
    whole_length: int
    """Tokens before cutting: more than `len()` when the text was cut."""

    def __len__(self) -> int:
        return len(self.ids)


class BatchModel(Protocol[InputT_contra]):
    """One replica of a model."""

    width: int
    """Columns of the result."""
    max_tokens: int
    """The longest text that the model reads, special tokens included."""

    def encode(self, inputs: Sequence[InputT_contra]) -> list[Tokens]:
        """Called in the tokenising threads, by several at once, and for all replicas on the first of them."""
        ...

    def collate(self, batch: Sequence[Tokens]) -> Any:
        """What `forward` reads, padded to the longest. Never by two threads at once, but beside `forward`.

        It is called one batch ahead, and what it gave may be thrown away.
        """
        ...

    def forward(self, collated: Any) -> Rows:
        """float32 (texts, width), finite. Called in the replica's own worker thread only.

        Any exception means that at least one text cannot be processed.
        """
        ...
