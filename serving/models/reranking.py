"""Loads reranking models (cross-encoders): a query and a text to one score."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from serving.batching.model import Rows
from serving.models.hardware import choose_computing, choose_reranking_precision
from serving.models.loading import ModelLoadError, find_model_folder
from serving.models.starting import LoadedModel, start
from serving.models.task import Task
from serving.protocols import Backend, Device, Precision, RerankingModel

LoadedRerankingModel = LoadedModel[RerankingModel, tuple[str, str]]


def load_reranking_model(
    source: str,
    *,
    name: str,
    device: Device = Device.AUTO,
    precision: Precision = Precision.AUTO,
    backend: Backend = Backend.AUTO,
    threads: int | None = None,
    replicas: int = 0,
    allow_download: bool = False,
) -> LoadedRerankingModel:
    """Loads a cross-encoder with one output from a folder or the local hub cache. Blocks for seconds.

    `threads` None and `replicas` 0 are chosen for the machine. No code of the model is run and no pickle is read.
    One load at a time in a process. Raises ModelLoadError.
    """
    folder = find_model_folder(source, allow_download=allow_download)
    _check_scores(folder)
    computing = choose_computing(
        device,
        precision,
        backend,
        threads=threads,
        replicas=replicas,
        choose_precision=choose_reranking_precision,
    )
    model = start(RERANKING, folder, computing, name=name)
    card = RerankingModel(
        name=name,
        fingerprint=model.fingerprint,
        max_tokens=model.reading.max_tokens,
        tokenizer_json=model.reading.tokenizer_json,
    )
    return LoadedModel.of(model, RERANKING, computing, card=card, name=name)


def scores_of(rows: Rows) -> Rows:
    """float32 (texts, 1), 0 to 1: the logistic function of the model's outputs, whatever its file names.

    It keeps their order and the promise of 0 to 1. Raises ValueError for another shape or outputs not finite.
    """
    if rows.ndim != 2 or rows.shape[1] != 1:
        raise ValueError(f"the model gave an output of shape {rows.shape}, not of 1 column")
    if not np.isfinite(rows).all():
        raise ValueError("the model gave a score that is not finite")
    scores: Rows = np.exp(-np.logaddexp(np.float32(0), -rows))
    return scores


def _check_scores(folder: Path) -> None:
    """The library would give an embedding model a scoring layer of random weights. Raises ModelLoadError."""
    try:
        architectures = json.loads((folder / "config.json").read_text())["architectures"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(f"{folder} has no config.json that names an architecture") from error
    if not any(name.endswith(("ForSequenceClassification", "ForCausalLM")) for name in architectures):
        raise ModelLoadError(f"{folder} is no reranking model: it holds a {', '.join(architectures)}")


def _one_output(model: Any) -> int:
    if model.num_labels != 1:
        raise ModelLoadError(f"the model has {model.num_labels} outputs; a reranking model has one")
    return 1


RERANKING = Task(
    name="reranking",
    library_class="CrossEncoder",
    output="scores",
    example=(("A key?", "A key."), ("Where is it?", "The key hangs in the hall.")),
    probe=(
        ("Where does the  Key hang? ", "The Strongroom is built to keep documents safe."),
        ("Où est la clé?", "La clé est dans le couloir. Nobody enters it alone. " * 10),
    ),
    width_of=_one_output,
    finish=lambda _: scores_of,
)
