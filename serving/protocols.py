"""What the rest of Strongroom asks of a model: the seams Embedder and Reranker, lanes, and their errors.

Errors:
    ServingError
    ├── Overloaded          the request cannot be done in time: try again after `retry_after_s`
    ├── TextRefused         one text cannot be processed; `index` names it
    │   └── TextTooLong     it has more tokens than the model reads, and was not to be cut
    ├── ModelUnavailable    the models server is away or still loading
    ├── ModelUnknown        no model has this alias
    └── EngineUnavailable   no generation engine can take the request now
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Lane(StrEnum):
    """Who waits for the result. A person goes before a machine."""

    INTERACTIVE = "interactive"
    BULK = "bulk"
    BACKGROUND = "background"


class Device(StrEnum):
    """Where a model runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Precision(StrEnum):
    """The number format of a model's weights and arithmetic."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Backend(StrEnum):
    """What computes a model. Vectors of all backends agree, so that an index outlives a change."""

    AUTO = "auto"
    TORCH = "torch"
    OPENVINO = "openvino"


@dataclass(frozen=True)
class EmbeddingModel:
    """What a caller must know of an embedding model to chunk for it and to keep its vectors apart."""

    name: str
    """Its alias in the settings."""
    fingerprint: str
    """Changes whenever the same text could get another vector: weights, pooling, precision class."""
    dimensions: int
    max_tokens: int
    """The longest text the model reads, special tokens included."""
    tokenizer_json: str
    """The `tokenizers` library's serialised form, so that callers count exactly as the model does."""


@dataclass(frozen=True)
class RerankingModel:
    """What a caller must know of a reranking model to count what it reads."""

    name: str
    """Its alias in the settings."""
    fingerprint: str
    """Changes whenever the same query and text could get another score."""
    max_tokens: int
    """The longest query and text together, special tokens included."""
    tokenizer_json: str


class Embedder(Protocol):
    """Texts in, unit vectors out. One model.

    In both protocols `deadline_s` counts from the call. `cache_salt` names who may share computed work, the
    tenant: equal texts are computed once, and remembered, only among calls with the same salt, so that time
    tells nobody what others have asked. A text longer than the model reads is cut with `truncate`, else refused.
    """

    async def describe(self) -> EmbeddingModel:
        """Raises ModelUnavailable until the model is loaded."""
        ...

    async def embed(
        self,
        texts: Sequence[str],
        *,
        lane: Lane,
        deadline_s: float | None = None,
        cache_salt: str = "",
        truncate: bool = False,
    ) -> NDArray[np.float32]:
        """float32 (len(texts), dimensions), unit rows, in input order.

        Raises Overloaded, TextRefused, ModelUnavailable.
        """
        ...


class Reranker(Protocol):
    """Scores how well each text answers a query. One model."""

    async def describe(self) -> RerankingModel:
        """Raises ModelUnavailable until the model is loaded."""
        ...

    async def score(
        self,
        query: str,
        texts: Sequence[str],
        *,
        lane: Lane,
        deadline_s: float | None = None,
        cache_salt: str = "",
        truncate: bool = False,
    ) -> NDArray[np.float32]:
        """float32 (len(texts),) in input order, 0 to 1, higher is better.

        Raises Overloaded, TextRefused, ModelUnavailable.
        """
        ...


class ServingError(Exception):
    """A model could not do what was asked."""


class Overloaded(ServingError):
    """The models are busy and cannot finish this request before its deadline."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"The models are busy. Try again in {retry_after_s:.0f} s.")
        self.retry_after_s = retry_after_s


class TextRefused(ServingError):
    """A text cannot be processed by the model; the others of its batch are not affected."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"Text {index} cannot be processed: {reason}")
        self.index = index
        self.reason = reason


class TextTooLong(TextRefused):
    """A text has more tokens than the model reads, and was not to be cut."""

    def __init__(self, index: int, *, tokens: int, max_tokens: int) -> None:
        super().__init__(index, f"it has {tokens} tokens; the model reads at most {max_tokens}")
        self.tokens = tokens
        self.max_tokens = max_tokens


class ModelUnavailable(ServingError):
    """The models server is not reachable or has not loaded this model."""


class ModelUnknown(ServingError):
    """No model of this kind has the alias; `available` lists those that there are."""

    def __init__(self, alias: str, available: Sequence[str]) -> None:
        super().__init__(f"There is no model {alias!r}. Available: {', '.join(available) or 'none'}.")
        self.alias = alias
        self.available = tuple(available)


class EngineUnavailable(ServingError):
    """No generation engine can take the request now."""
