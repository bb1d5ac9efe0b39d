"""Loads embedding models: texts to unit vectors."""

from functools import partial

import numpy as np

from serving.batching.model import Rows
from serving.models.hardware import choose_computing, choose_embedding_precision
from serving.models.loading import find_model_folder
from serving.models.starting import LoadedModel, start
from serving.models.task import Task
from serving.protocols import Backend, Device, EmbeddingModel, Precision

LoadedEmbeddingModel = LoadedModel[EmbeddingModel, str]


def load_embedding_model(
    source: str,
    *,
    name: str,
    device: Device = Device.AUTO,
    precision: Precision = Precision.AUTO,
    backend: Backend = Backend.AUTO,
    threads: int | None = None,
    replicas: int = 0,
    allow_download: bool = False,
) -> LoadedEmbeddingModel:
    """Loads a sentence-transformers model from a folder or the local hub cache. Blocks for seconds.

    `threads` None and `replicas` 0 are chosen for the machine. No code of the model is run and no pickle is read.
    One load at a time in a process. Raises ModelLoadError.
    """
    folder = find_model_folder(source, allow_download=allow_download)
    computing = choose_computing(
        device,
        precision,
        backend,
        threads=threads,
        replicas=replicas,
        wants_express=True,
        choose_precision=choose_embedding_precision,
    )
    model = start(EMBEDDING, folder, computing, name=name)
    card = EmbeddingModel(
        name=name,
        fingerprint=model.fingerprint,
        dimensions=model.width,
        max_tokens=model.reading.max_tokens,
        tokenizer_json=model.reading.tokenizer_json,
    )
    return LoadedModel.of(model, EMBEDDING, computing, card=card, name=name)


def unit_rows(rows: Rows, *, width: int) -> Rows:
    """float32 (texts, `width`): the first columns, scaled to length 1. Half precision leaves .996 to 1.004.

    Raises ValueError for fewer columns, NaN, infinity, or a row of zeros.
    """
    if rows.ndim != 2 or rows.shape[1] < width:
        raise ValueError(f"the model gave an output of shape {rows.shape}, not of {width} columns")
    kept = rows[:, :width]
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not (lengths > 0).all():
        raise ValueError("the model gave a vector that is not finite or has no length")
    scaled: Rows = kept / lengths
    return scaled


EMBEDDING = Task(
    name="embedding",
    library_class="SentenceTransformer",
    output="sentence_embedding",
    example=("A key.", "The key hangs in the hall."),
    probe=(
        "The Strongroom is  built to keep documents safe. ",
        "Où est la clé? Nobody enters it alone. " * 10,
    ),
    width_of=lambda model: int(model.get_embedding_dimension()),
    finish=lambda width: partial(unit_rows, width=width),
)
