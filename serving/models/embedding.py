"""Loads embedding models: texts to unit vectors."""

from functools import partial

import numpy as np
from sentence_transformers import SentenceTransformer

from serving.batching.model import Rows
from serving.models.hardware import choose_embedding_precision
from serving.models.loading import find_model_folder, fingerprint_of, open_model
from serving.models.starting import LoadedModel, choose_computing, start, take_reading
from serving.protocols import Backend, Device, EmbeddingModel, Precision

LoadedEmbeddingModel = LoadedModel[EmbeddingModel, str]

EXAMPLE = ("A key.", "The key hangs in the hall.")
PROBE = ("The Strongroom is  built to keep documents safe. ", "Où est la clé? Nobody enters it alone. " * 10)


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
    open_as = partial(open_model, SentenceTransformer, folder)
    model = open_as(*computing.opening)
    reading = take_reading(model, name, example=EXAMPLE, probe=PROBE)
    width = int(model.get_embedding_dimension())
    finish = partial(unit_rows, width=width)
    started = start(
        model,
        reading,
        computing,
        name=name,
        output="sentence_embedding",
        finish=finish,
        reopen=open_as,
        folder=folder,
    )
    card = EmbeddingModel(
        name=name,
        fingerprint=fingerprint_of(folder),
        dimensions=width,
        max_tokens=reading.reader.max_tokens,
        tokenizer_json=reading.tokenizer_json,
    )
    return LoadedModel.of(started, reading, computing, card=card, name=name, width=width, finish=finish)


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
