"""What sets embedding and reranking apart, for the library and for us."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from serving.batching.model import InputT, Rows

Finish = Callable[[Rows], Rows]
"""Makes of a network's rows what callers get, or raises ValueError for rows it refuses."""


@dataclass(frozen=True, kw_only=True)
class Task(Generic[InputT]):
    name: str
    library_class: str
    """Of sentence_transformers."""
    output: str
    """The feature with the rows, as the library's modules name it."""
    example: Sequence[InputT]
    """A model is traced with them."""
    probe: Sequence[InputT]
    """Of other lengths than the example: on them all ways to compute a model have to agree."""
    width_of: Callable[[Any], int]
    """Columns of the library's model. Raises ModelLoadError for a model of another task."""
    finish: Callable[[int], Finish]
    """By the width."""
