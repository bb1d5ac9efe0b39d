"""A BentoML service with adaptive batching, as its documentation writes one for sentence-transformers.

Runs in BentoML's own environment: `bentoml serve bentoml_service:Embeddings`.
"""

import os

import bentoml  # type: ignore[import-not-found]
import numpy as np
from sentence_transformers import SentenceTransformer

MODEL = os.environ["BENCH_MODEL"]  # noqa: TID251 - bentoml's command line hands on no arguments


@bentoml.service(traffic={"timeout": 60})
class Embeddings:
    """One process with one model."""

    def __init__(self) -> None:
        self.model = SentenceTransformer(MODEL, device="cpu")

    @bentoml.api(batchable=True)  # type: ignore[untyped-decorator]
    def embed(self, texts: list[str]) -> np.ndarray:
        rows: np.ndarray = self.model.encode(texts, normalize_embeddings=True)
        return rows
