"""What fits on this machine: how a card's memory is shared out, and what the engine would do with its part.

Tokens a second are an estimate: each token of one answer reads all weights once, so memory's speed bounds them.
Source: Pope et al. 2022, Efficiently Scaling Transformer Inference.
"""

import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil

from app.running.serve import engine_share
from app.settings import Settings, model_path, weights_bytes
from serving.generation.engine import Gpu, list_gpus

GIB = 1024**3
ACTIVATIONS_BYTES = GIB
"""What vLLM takes beside weights and cache, for its batches and graphs, about."""
REACHED = 0.6
"""Of what memory can do, so much vLLM was seen to reach with one answer at a time."""
CACHE_BYTES = 2
"""A number in the key-value cache: bfloat16."""
OTHERS_BYTES = 3 * GIB
"""Without a GPU: api, worker and the system beside the engine."""
BANDWIDTHS = {
    "B200": 8.0e12,
    "H200": 4.8e12,
    "H100 PCIe": 2.0e12,
    "H100": 3.35e12,
    "A100": 1.9e12,
    "L40S": 0.86e12,
    "L40": 0.86e12,
    "L4": 0.3e12,
    "A10": 0.6e12,
    "T4": 0.32e12,
    "5090": 1.79e12,
    "4090": 1.0e12,
    "3090": 0.94e12,
}
"""Bytes a second by a part of the card's name, as their makers tell; the first that fits."""


@dataclass(frozen=True)
class ModelShape:
    """A generation model as far as its memory goes."""

    name: str
    weights_bytes: int
    layers: int
    kv_heads: int
    head_dim: int
    context: int

    @property
    def cache_bytes_a_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * CACHE_BYTES


@dataclass(frozen=True)
class Budget:
    """The memory that one engine gets. `bandwidth` in bytes a second; None where nobody knows the card."""

    device: str
    total_bytes: int
    engine_bytes: int
    bandwidth: float | None
    share: float | None = None
    """Of a card, as `engine.gpu_memory_utilization` names it."""


@dataclass(frozen=True)
class Fit:
    """`answers`: how many of the longest prompts with their answers fit at once."""

    model: ModelShape
    cache_bytes: int
    tokens: int
    answers: float
    tokens_per_s: float | None

    @property
    def fits(self) -> bool:
        return self.answers >= 1


SIZES = tuple(
    ModelShape(f"{name}, {precision}", int(parameters * bytes_each), layers, 8, head_dim, 32_768)
    for name, parameters, layers, head_dim in (
        ("1 billion", 1.2e9, 16, 64),
        ("4 billion", 4.0e9, 36, 128),
        ("8 billion", 8.2e9, 36, 128),
        ("14 billion", 14.8e9, 40, 128),
        ("32 billion", 32.8e9, 64, 128),
        ("70 billion", 70.6e9, 80, 128),
    )
    for precision, bytes_each in (("16 bit", 2.0), ("4 bit", 0.6))
)
"""Models as they are commonly built, for owners who have not chosen one."""


def budgets(settings: Settings) -> list[Budget]:
    """One for each GPU that an engine would take; without GPUs, one for the machine."""
    gpus = list_gpus()
    if gpus and settings.engine.device != "cpu":
        return [_of_card(settings, gpus, place) for place in range(len(gpus))]
    total = psutil.virtual_memory().total
    models = sum(
        2 * weights_bytes(model_path(each.source, settings.models.folder))
        for each in (*settings.models.embeddings, *settings.models.rerankers)
    )
    left = max(total - OTHERS_BYTES - models, 0)
    return [Budget("memory, no GPU", total, left, _measured_bandwidth())]


def fit(budget: Budget, model: ModelShape, *, max_model_len: int) -> Fit:
    cache = max(budget.engine_bytes - model.weights_bytes - ACTIVATIONS_BYTES, 0)
    tokens = cache // model.cache_bytes_a_token
    speed = None if budget.bandwidth is None else REACHED * budget.bandwidth / model.weights_bytes
    return Fit(model, cache, tokens, tokens / min(max_model_len, model.context), speed)


def local_models(settings: Settings) -> list[ModelShape]:
    """The generation models that the settings name and that lie on this disk, and others beside them."""
    folders = [Path(model_path(each.source, settings.models.folder)) for each in settings.engine.models]
    if settings.models.folder.is_dir():
        folders += sorted(path for path in settings.models.folder.iterdir() if path.is_dir())
    shapes = {folder.resolve(): read_shape(folder) for folder in folders if folder.is_dir()}
    return [shape for shape in shapes.values() if shape is not None]


def read_shape(folder: Path) -> ModelShape | None:
    """From a model's config.json; None for what is no generation model."""
    try:
        config: dict[str, Any] = orjson.loads((folder / "config.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    # Of a model that also reads pictures, the part that writes.
    config = {**config, **config.get("text_config", {})}
    heads, layers = config.get("num_attention_heads"), config.get("num_hidden_layers")
    if not (heads and layers) or not any(
        "CausalLM" in name or "Generation" in name for name in config.get("architectures") or ()
    ):
        return None
    return ModelShape(
        name=folder.name,
        weights_bytes=weights_bytes(str(folder)),
        layers=layers,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        context=config.get("max_position_embeddings") or 4096,
    )


def _of_card(settings: Settings, gpus: Sequence[Gpu], place: int) -> Budget:
    name = _card_names().get(gpus[place].number, "GPU")
    share = engine_share(settings, gpus, (place,), engines=1)
    bandwidth = next((speed for part, speed in BANDWIDTHS.items() if part in name), None)
    total = gpus[place].memory_bytes
    return Budget(f"GPU {gpus[place].number}, {name}", total, int(share * total), bandwidth, share)


def _card_names() -> dict[int, str]:
    tool = shutil.which("nvidia-smi")
    assert tool is not None
    listed = subprocess.run(
        [tool, "--query-gpu=index,name", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    rows = [line.partition(",") for line in listed.stdout.splitlines()]
    return {int(number): name.strip() for number, _, name in rows}


def _measured_bandwidth() -> float:
    """Bytes a second that one thread reads and writes, the best of some: what bounds a small machine's engine."""
    source = np.ones(64 * 1024**2, np.uint8)
    target = np.empty_like(source)
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - begun)
    return 2 * source.nbytes / best
