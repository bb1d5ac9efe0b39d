"""A reranking model (cross-encoder) as the batcher runs it: query and text to tokens, tokens to scores."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer
from transformers.utils import logging as transformers_logging

from serving.batching.batcher import Tokens
from serving.models.loading import (
    ModelLoadError,
    as_tokens,
    choose_device,
    choose_reranking_precision,
    find_model_folder,
    longest_input,
    padded_features,
    untruncated_tokenizer,
    use_threads,
)
from serving.protocols import Device, Precision


def load_reranking_model(
    source: str,
    *,
    name: str,
    device: Device = Device.AUTO,
    precision: Precision = Precision.AUTO,
    threads: int = 1,
    allow_download: bool = False,
) -> "TorchRerankingModel":
    """Loads a cross-encoder with one output from a folder or the local hub cache. Blocks for seconds.

    No code of the model is run and no pickle is read. Raises ModelLoadError.
    """
    folder = find_model_folder(source, allow_download=allow_download)
    _check_scores(folder)
    chosen_device = choose_device(device)
    chosen_precision = choose_reranking_precision(precision, chosen_device)
    use_threads(threads)
    transformers_logging.disable_progress_bar()
    try:
        cross_encoder = CrossEncoder(
            str(folder),
            device=chosen_device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": getattr(torch, chosen_precision.value)},
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelLoadError(f"{folder} cannot be loaded as a reranking model: {error}") from error
    if cross_encoder.num_labels != 1:
        raise ModelLoadError(f"{folder} has {cross_encoder.num_labels} outputs; a reranking model has one")
    cross_encoder.eval()
    tokenizer = untruncated_tokenizer(cross_encoder, name)
    tokenizer.enable_truncation(longest_input(cross_encoder, name))
    return TorchRerankingModel(
        cross_encoder, tokenizer, name=name, device=chosen_device, precision=chosen_precision
    )


def _check_scores(folder: Path) -> None:
    """The library would give an embedding model a scoring layer of random weights. Raises ModelLoadError."""
    try:
        architectures = json.loads((folder / "config.json").read_text())["architectures"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(f"{folder} has no config.json that names an architecture") from error
    if not any(name.endswith(("ForSequenceClassification", "ForCausalLM")) for name in architectures):
        raise ModelLoadError(f"{folder} is no reranking model: it holds a {', '.join(architectures)}")


class TorchRerankingModel:
    """A loaded cross-encoder. `encode` and `forward` may run in different threads."""

    width = 1

    def __init__(
        self, cross_encoder: Any, tokenizer: Tokenizer, *, name: str, device: str, precision: Precision
    ) -> None:
        self.name = name
        self.device = device
        self.precision = precision.value
        self._cross_encoder = cross_encoder
        self._tokenizer = tokenizer

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[Tokens]:
        """Cuts the longer of query and text until the pair fits the model."""
        return as_tokens(self._tokenizer.encode_batch_fast(list(pairs)))

    def forward(self, batch: Sequence[Tokens]) -> NDArray[np.float32]:
        """float32 (len(batch), 1), 0 to 1. Raises ValueError for another shape or scores not finite."""
        features = padded_features(list(batch), self._cross_encoder.tokenizer, self.device)
        with torch.inference_mode():
            # Ours, whatever activation the model's file names: it keeps the order and the promise of 0 to 1.
            scores = torch.sigmoid(self._cross_encoder(features)["scores"].float())
        rows: NDArray[np.float32] = scores.cpu().numpy()
        if rows.shape != (len(batch), 1):
            raise ValueError(f"the model gave an output of shape {rows.shape}, not {(len(batch), 1)}")
        if not np.isfinite(rows).all():
            raise ValueError("the model gave a score that is not finite")
        return rows
