"""Embedder and Reranker over a batcher of the same process, for callers without a models server."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serving.batching.batcher import Batcher
from serving.protocols import EmbeddingModel, Lane, RerankingModel


class BatchedEmbedder:
    """An Embedder whose model runs here."""

    def __init__(self, batcher: Batcher[str], card: EmbeddingModel) -> None:
        self._batcher = batcher
        self._card = card

    async def describe(self) -> EmbeddingModel:
        return self._card

    async def embed(
        self,
        texts: Sequence[str],
        *,
        lane: Lane,
        deadline_s: float | None = None,
        cache_salt: str = "",
        truncate: bool = False,
    ) -> NDArray[np.float32]:
        return await self._batcher.run(
            texts, lane=lane, deadline_s=deadline_s, cache_salt=cache_salt, truncate=truncate
        )


class BatchedReranker:
    """A Reranker whose model runs here."""

    def __init__(self, batcher: Batcher[tuple[str, str]], card: RerankingModel) -> None:
        self._batcher = batcher
        self._card = card

    async def describe(self) -> RerankingModel:
        return self._card

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
        pairs = [(query, text) for text in texts]
        rows = await self._batcher.run(
            pairs, lane=lane, deadline_s=deadline_s, cache_salt=cache_salt, truncate=truncate
        )
        return rows[:, 0]
