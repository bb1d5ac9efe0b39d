"""Finds the files of the embedding and reranking models and opens them; downloads nothing unasked."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from tokenizers import Tokenizer
from transformers.utils import logging as transformers_logging

from serving.protocols import ModelUnavailable, Precision

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

    float32, bfloat16 and float16 are one class on every backend: their vectors agree to a cosine above .9995,
    so that an index outlives a move to another machine. Quantised weights are another class.
    """
    digest = hashlib.sha256(precision_class.encode())
    for path in sorted(path for pattern in (WEIGHTS, *CONFIGURATIONS) for path in folder.rglob(pattern)):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"\n{path.relative_to(folder).as_posix()} {content}".encode())
    return digest.hexdigest()


def open_model(library_class: Any, folder: Path, device: str, precision: Precision) -> Any:
    """A SentenceTransformer or CrossEncoder, ready to infer. No code of the model is run and no pickle is read.

    Raises ModelLoadError.
    """
    transformers_logging.disable_progress_bar()
    try:
        model = library_class(
            str(folder),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": getattr(torch, precision.value)},
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelLoadError(f"{folder} cannot be loaded: {error}") from error
    return model.eval()


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


def bytes_of(module: Any) -> int:
    """Of its parameters and buffers in memory."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
