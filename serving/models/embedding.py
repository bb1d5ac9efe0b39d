"""An embedding model as the batcher runs it: texts to tokens, tokens to unit vectors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers.utils import logging as transformers_logging

from serving.batching.batcher import Tokens
from serving.models.loading import (
    ModelLoadError,
    as_tokens,
    choose_device,
    choose_embedding_precision,
    find_model_folder,
    fingerprint_of,
    longest_input,
    padded_features,
    untruncated_tokenizer,
    use_threads,
)
from serving.protocols import Device, EmbeddingModel, Precision


def load_embedding_model(
    source: str,
    *,
    name: str,
    device: Device = Device.AUTO,
    precision: Precision = Precision.AUTO,
    threads: int = 1,
    allow_download: bool = False,
) -> "TorchEmbeddingModel":
    """Loads a sentence-transformers model from a folder or the local hub cache. Blocks for seconds.

    No code of the model is run and no pickle is read. Raises ModelLoadError.
    """
    folder = find_model_folder(source, allow_download=allow_download)
    chosen_device = choose_device(device)
    chosen_precision = choose_embedding_precision(precision, chosen_device)
    use_threads(threads)
    transformers_logging.disable_progress_bar()
    try:
        transformer = SentenceTransformer(
            str(folder),
            device=chosen_device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": getattr(torch, chosen_precision.value)},
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelLoadError(f"{folder} cannot be loaded as an embedding model: {error}") from error
    transformer.eval()
    tokenizer = untruncated_tokenizer(transformer, name)
    card = EmbeddingModel(
        name=name,
        fingerprint=fingerprint_of(folder),
        dimensions=int(transformer.get_embedding_dimension()),
        max_tokens=longest_input(transformer, name),
        tokenizer_json=tokenizer.to_str(),
    )
    return TorchEmbeddingModel(transformer, tokenizer, card, device=chosen_device, precision=chosen_precision)


class TorchEmbeddingModel:
    """A loaded sentence-transformers model. `encode` and `forward` may run in different threads."""

    def __init__(
        self,
        transformer: Any,
        tokenizer: Tokenizer,
        card: EmbeddingModel,
        *,
        device: str,
        precision: Precision,
    ) -> None:
        self.card = card
        self.name = card.name
        self.width = card.dimensions
        self.device = device
        self.precision = precision.value
        self._transformer = transformer
        self._tokenizer = tokenizer
        # The card's serialised form was taken before: truncation belongs to the model's input, not to
        # counting.
        self._tokenizer.enable_truncation(card.max_tokens, direction=transformer.tokenizer.truncation_side)
        self._prompt = transformer.prompts.get(transformer.default_prompt_name, "")

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Cuts each text at the model's longest input."""
        return as_tokens(self._tokenizer.encode_batch_fast([self._prompt + text for text in texts]))

    def forward(self, batch: Sequence[Tokens]) -> NDArray[np.float32]:
        """float32 (len(batch), dimensions), unit rows. Raises ValueError for rows not finite or all 0."""
        features = padded_features(list(batch), self._transformer.tokenizer, self.device)
        with torch.inference_mode():
            output = self._transformer(features)["sentence_embedding"]
            rows: NDArray[np.float32] = output.float().cpu().numpy()[:, : self.width]
        return unit_rows(rows, shape=(len(batch), self.width))


def unit_rows(rows: NDArray[np.float32], *, shape: tuple[int, int]) -> NDArray[np.float32]:
    """The rows scaled to length 1 in float32: bfloat16 arithmetic leaves lengths of .996 to 1.004.

    Raises ValueError for another shape, NaN, infinity, or a row of zeros.
    """
    if rows.shape != shape:
        raise ValueError(f"the model gave an output of shape {rows.shape}, not {shape}")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not (lengths > 0).all():
        raise ValueError("the model gave a vector that is not finite or has no length")
    scaled: NDArray[np.float32] = rows / lengths
    return scaled
