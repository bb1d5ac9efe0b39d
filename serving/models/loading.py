"""Finds the files, device and precision of the embedding and reranking models; downloads nothing unasked."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from serving.batching.batcher import Tokens
from serving.protocols import Device, ModelUnavailable, Precision

WEIGHTS = "*.safetensors"
# What else can change a vector: configurations, vocabularies, merges, sentencepiece models.
CONFIGURATIONS = ("*.json", "*.txt", "*.model")


class ModelLoadError(ModelUnavailable):
    """A model cannot be loaded; the message names it and tells why."""


def find_model_folder(source: str, *, allow_download: bool) -> Path:
    """The folder with the model's files: `source` itself, or the local cache of the hub model it names.

    Only safetensors weights and plain configurations are fetched or read, so no pickle is ever opened.
    Raises ModelLoadError.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        try:
            patterns = [WEIGHTS, *CONFIGURATIONS]
            cached = snapshot_download(source, local_files_only=not allow_download, allow_patterns=patterns)
        except (LocalEntryNotFoundError, HFValidationError) as error:
            raise ModelLoadError(f"{source} is neither a folder nor in the local hub cache") from error
        except (HfHubHTTPError, OSError) as error:
            raise ModelLoadError(f"{source} could not be downloaded: {type(error).__name__}") from error
        folder = Path(cached)
    if not any(folder.rglob(WEIGHTS)):
        raise ModelLoadError(f"{folder} holds no safetensors weights")
    return folder


def fingerprint_of(folder: Path, *, precision_class: str = "float") -> str:
    """Names the function from text to vector: sha256 over weights, configurations and precision class.

    float32, bfloat16 and float16 are one class: their vectors agree to a cosine above .9999, so that an index
    outlives a move to a machine with another precision. Quantised weights are another class.
    """
    digest = hashlib.sha256(precision_class.encode())
    for path in sorted(path for pattern in (WEIGHTS, *CONFIGURATIONS) for path in folder.rglob(pattern)):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"\n{path.relative_to(folder).as_posix()} {content}".encode())
    return digest.hexdigest()


def choose_device(device: Device) -> str:
    """Raises ModelLoadError when CUDA is asked for and absent."""
    if device is Device.AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device is Device.CUDA and not torch.cuda.is_available():
        raise ModelLoadError("device is cuda, but torch finds no CUDA device")
    return device.value


def choose_embedding_precision(precision: Precision, device: str) -> Precision:
    """AUTO is bfloat16 where the hardware multiplies in it, float32 elsewhere.

    all-MiniLM-L6-v2 on a CPU with AVX512-BF16, 200 scifact abstracts of 240 tokens, one thread: 24 texts/s
    against 14 in float32, lowest cosine between the two .99992. float16 has no fast path on CPUs: 3 texts/s.
    """
    if precision is not Precision.AUTO:
        return precision
    if device == "cuda":
        return Precision.BFLOAT16 if torch.cuda.is_bf16_supported() else Precision.FLOAT16
    capabilities = torch.cpu.get_capabilities()
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return Precision.BFLOAT16 if fast else Precision.FLOAT32


def choose_reranking_precision(precision: Precision, device: str) -> Precision:
    """AUTO keeps float32 on the CPU: bfloat16 moved a score by up to .03, which reorders near passages."""
    if precision is not Precision.AUTO:
        return precision
    return Precision.FLOAT16 if device == "cuda" else Precision.FLOAT32


def use_threads(threads: int) -> None:
    """Sets torch's threads for the whole process. With more than the idle cores, each pass waits for them."""
    torch.set_num_threads(threads)


def untruncated_tokenizer(model: Any, name: str) -> Tokenizer:
    """The model's tokenizer without padding or truncation: it counts whole texts. Raises ModelLoadError."""
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelLoadError(f"{name} has no tokenizer.json, which callers need to count its tokens")
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def longest_input(model: Any, name: str) -> int:
    """The model's limit in tokens, special ones included. Raises ModelLoadError when it names none."""
    limit = model.max_seq_length
    # transformers writes 10**30 for "unknown".
    if limit is None or limit > 1_000_000:
        raise ModelLoadError(f"{name} names no longest input: add max_seq_length to its configuration")
    return int(limit)


def as_tokens(encodings: list[Encoding]) -> list[Tokens]:
    """What the batcher holds while a text waits: two arrays without the tokenizer's offsets and strings."""
    return [
        Tokens(ids=np.asarray(encoding.ids, np.int64), type_ids=np.asarray(encoding.type_ids, np.int64))
        for encoding in encodings
    ]


def padded_features(batch: list[Tokens], tokenizer: Any, device: str) -> dict[str, Any]:
    """What a transformer reads: int64 tensors (len(batch), longest), padded on the tokenizer's side."""
    shape = (len(batch), max(len(tokens) for tokens in batch))
    ids: NDArray[np.int64] = np.full(shape, tokenizer.pad_token_id or 0, np.int64)
    type_ids: NDArray[np.int64] = np.zeros(shape, np.int64)
    mask: NDArray[np.int64] = np.zeros(shape, np.int64)
    for row, tokens in enumerate(batch):
        used = slice(-len(tokens), None) if tokenizer.padding_side == "left" else slice(len(tokens))
        ids[row, used], type_ids[row, used], mask[row, used] = tokens.ids, tokens.type_ids, 1
    features: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in tokenizer.model_input_names:
        features["token_type_ids"] = type_ids
    return {name: torch.from_numpy(array).to(device) for name, array in features.items()}
