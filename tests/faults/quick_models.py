"""A models server whose embeddings cost nothing: `python -m tests.faults.quick_models --port PORT`.

The real server and batcher around a model that makes a vector of a text's checksum: the same text, the same vector.
"""

import argparse
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette

from app.observing.tracing import exporting
from app.running.http_server import run_http
from app.settings import TracesSettings
from serving.batching.model import Rows, Tokens
from serving.hosting import Card, DeclaredModel, ModelHost
from serving.protocols import EmbeddingModel
from serving.readiness import Kind
from serving.server import create_app
from serving.tracing import TraceRequests
from tests.fakes import word_counting_tokenizer_json

ALIAS = "quick"
DIMENSIONS = 16
MAX_TOKENS = 256
SPREAD = np.uint64(0x9E3779B97F4A7C15)


@dataclass
class ChecksumModel:
    """One replica. Each forward pass takes `delay_s`."""

    delay_s: float
    width: int = DIMENSIONS
    max_tokens: int = MAX_TOKENS

    def encode(self, inputs: Sequence[str]) -> list[Tokens]:
        """One token a text, whatever its length."""
        return [_as_token(zlib.crc32(text.encode())) for text in inputs]

    def collate(self, batch: Sequence[Tokens]) -> NDArray[np.uint64]:
        return np.array([tokens.ids[0] for tokens in batch], np.uint64)

    def forward(self, collated: NDArray[np.uint64]) -> Rows:
        time.sleep(self.delay_s)
        # Odd multipliers spread a checksum over the columns.
        odd = np.arange(1, 2 * self.width, 2, dtype=np.uint64) * SPREAD
        spread = (collated[:, None] + np.uint64(1)) * odd[None, :]
        rows = (spread >> np.uint64(40)).astype(np.float32) - np.float32(1 << 23)
        unit: Rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


@dataclass
class LoadedChecksums:
    """What the host keeps of the model."""

    replicas: tuple[ChecksumModel, ...]
    card: Card
    memory_bytes: int = 1
    device: str = "cpu"
    precision: str = "float32"
    backend: str = "checksum"
    threads: int = 1
    limits_hint: int | None = None
    express: None = None

    def close(self) -> None:
        pass


def _as_token(checksum: int) -> Tokens:
    return Tokens(ids=np.array([checksum], np.int64), type_ids=np.zeros(1, np.int64), whole_length=1)


def quick_models_app(*, delay_s: float = 0.0, dimensions: int = DIMENSIONS) -> Starlette:
    card = EmbeddingModel(ALIAS, "checksum", dimensions, MAX_TOKENS, word_counting_tokenizer_json())
    loaded = LoadedChecksums((ChecksumModel(delay_s, dimensions),), card)
    declared = DeclaredModel(alias=ALIAS, kind=Kind.EMBEDDING, load=lambda: loaded, is_default=True)
    return create_app(ModelHost([declared]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay-s", type=float, default=0.0)
    parser.add_argument("--dimensions", type=int, default=DIMENSIONS)
    parser.add_argument("--traces", default="", metavar="URL", help="a collector, as traces.endpoint")
    options = parser.parse_args()
    app = quick_models_app(delay_s=options.delay_s, dimensions=options.dimensions)
    with exporting(TracesSettings(endpoint=options.traces), "models"):
        run_http(TraceRequests(app) if options.traces else app, "127.0.0.1", options.port)


if __name__ == "__main__":
    main()
