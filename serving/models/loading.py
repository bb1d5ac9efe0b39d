"""Finds the files of the embedding and reranking models; downloads nothing unasked."""

import hashlib
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from serving.protocols import ModelUnavailable

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
