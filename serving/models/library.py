"""Opens models with sentence-transformers: to convert them for OpenVINO, and to run them in torch.

Its imports take 5 s of a core, so `starting` imports it only where a model was not converted before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from serving.batching.model import InputT
from serving.models.conversions import Conversion
from serving.models.hardware import Computing
from serving.models.loading import ModelLoadError, fingerprint_of
from serving.models.network import Started
from serving.models.openvino_backend import traced
from serving.models.reading import Arrays, Padding, Reading
from serving.models.task import Task
from serving.models.token_budget import find_token_budget, keep_budget, read_budget
from serving.models.torch_backend import RowsModule, TorchNetwork, bytes_of, cuda_devices, cuda_memory
from serving.protocols import Backend, Device, Precision

BUDGETS_FILE = ".token-budgets.json"
"""Beside the models' folders and in none of them: there it would change a fingerprint."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model in torch, and what is to be known of it once torch is gone."""

    module: RowsModule
    reading: Reading
    width: int


def open_model(task: Task[InputT], folder: Path, *, name: str, device: str, precision: Precision) -> Opened:
    """Ready to infer. No code of the model is run and no pickle is read. Raises ModelLoadError."""
    transformers_logging.disable_progress_bar()
    try:
        model = getattr(sentence_transformers, task.library_class)(
            str(folder),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": getattr(torch, precision.value)},
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelLoadError(f"{folder} cannot be loaded: {error}") from error
    model.eval()
    width = task.width_of(model)
    reading, constants = take_reading(model, name, probe=task.probe)
    module = RowsModule(model, names=reading.padding.names, constants=constants, output=task.output)
    return Opened(module=module, reading=reading, width=width)


def take_reading(model: Any, name: str, *, probe: Sequence[InputT]) -> tuple[Reading, Mapping[str, Any]]:
    """What the library's model does to texts before it computes, and what else it hands to its modules.

    A model that does not read `probe` as we do is refused: one with a chat template, for one, reads more than its
    tokenizer tells. Raises ModelLoadError.
    """
    reading = Reading(
        tokenizer_json=_untruncated_tokenizer(model, name),
        max_tokens=_longest_input(model, name),
        cuts_left=model.tokenizer.truncation_side == "left",
        prompt=model.prompts.get(model.default_prompt_name, ""),
        padding=Padding.of(model.tokenizer),
    )
    arrays = reading.arrays_of(probe)
    features = model.preprocess(list(probe), prompt=reading.prompt or None)
    if any(not np.array_equal(array, features[key].cpu().numpy()) for key, array in arrays.items()):
        raise ModelLoadError(f"{name} prepares its input in a way that is not supported")
    return reading, {key: value for key, value in features.items() if key not in arrays}


def convert(task: Task[InputT], folder: Path, *, name: str) -> Conversion:
    """The model as a graph for OpenVINO, which goes on using the float32 weights opened here.

    One conversion at a time in a process: tracing changes what belongs to all threads. Takes 1 s for 20 million
    parameters, 2 to 5 s for 100 million. Raises ModelLoadError, and NotConvertible of its kinds.
    """
    opened = open_model(task, folder, name=name, device="cpu", precision=Precision.FLOAT32)
    _mask_with_finite_numbers(opened.module)
    with torch.inference_mode():
        graph = traced(opened.module, _tensors(opened.reading.arrays_of(task.example)))
        rows = opened.module(*_tensors(opened.reading.arrays_of(task.probe))).numpy()
    return Conversion(
        graph=graph,
        reading=opened.reading,
        width=opened.width,
        weights_bytes=bytes_of(opened.module),
        expected=task.finish(opened.width)(rows),
    )


def start_in_torch(
    task: Task[InputT], folder: Path, computing: Computing, *, name: str
) -> tuple[Opened, Started]:
    """On the devices that `computing` names. Raises ModelLoadError."""
    if computing.device is Device.CUDA:
        return _start_on_cuda(task, folder, computing, name=name)
    opened = open_model(task, folder, name=name, device="cpu", precision=computing.precision)
    networks = [
        TorchNetwork(opened.module, "cpu", threads=computing.threads) for _ in range(computing.replicas)
    ]
    memory_bytes = bytes_of(opened.module)
    return opened, Started(backend=Backend.TORCH, device="cpu", networks=networks, memory_bytes=memory_bytes)


def _start_on_cuda(
    task: Task[InputT], folder: Path, computing: Computing, *, name: str
) -> tuple[Opened, Started]:
    placed = cuda_devices(computing.replicas)
    opened = {
        device: open_model(task, folder, name=name, device=device, precision=computing.precision)
        for device in dict.fromkeys(placed)
    }
    networks = [TorchNetwork(opened[device].module, device) for device in placed]
    fingerprint = fingerprint_of(folder)
    budgets = []
    for device, network in dict(zip(placed, networks, strict=True)).items():
        gpu, free_bytes, total_bytes = cuda_memory(device)
        budgets.append(
            _token_budget(
                network,
                opened[device].reading,
                free_bytes=free_bytes,
                path=folder.parent / BUDGETS_FILE,
                key=f"{fingerprint} {computing.precision} {gpu} {total_bytes}",
            )
        )
    return opened[placed[0]], Started(
        backend=Backend.TORCH,
        device=",".join(opened),
        networks=networks,
        memory_bytes=sum(bytes_of(each.module) for each in opened.values()),
        limits_hint=min(budgets),
    )


def _token_budget(network: TorchNetwork, reading: Reading, *, free_bytes: int, path: Path, key: str) -> int:
    """Measured, unless it was before. Raises ModelLoadError when not even one text fits."""
    budget = read_budget(path, key)
    if budget is None:
        max_tokens = reading.max_tokens
        budget = find_token_budget(
            lambda texts: network.measure_peak_bytes(reading.padding.largest(texts, max_tokens)),
            max_tokens=max_tokens,
            free_bytes=free_bytes,
        )
        if not budget:
            raise ModelLoadError(f"the CUDA device has too little free memory for {max_tokens} tokens")
        keep_budget(path, key, budget)
    return budget


def _untruncated_tokenizer(model: Any, name: str) -> str:
    """The model's tokenizer without padding or truncation: it counts whole texts. Raises ModelLoadError."""
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelLoadError(f"{name} has no tokenizer.json, which callers need to count its tokens")
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return str(tokenizer.to_str())


def _longest_input(model: Any, name: str) -> int:
    """The model's limit in tokens, special ones included. Raises ModelLoadError when it names none."""
    limit = model.max_seq_length
    # transformers writes 10**30 for "unknown".
    if limit is None or limit > 1_000_000:
        raise ModelLoadError(f"{name} names no longest input: add max_seq_length to its configuration")
    return int(limit)


def _mask_with_finite_numbers(module: RowsModule) -> None:
    """Lets a token that sees no other, as padding beyond a sliding window does, get some vector instead of NaN.

    Torch's fused attention gives it zeros, OpenVINO's conversion of that NaN, which spreads to all tokens in the next
    layer. Attention in single steps masks with the lowest finite number; OpenVINO is as fast with either.
    """
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            part.set_attn_implementation("eager")


def _tensors(arrays: Arrays) -> tuple[torch.Tensor, ...]:
    return tuple(map(torch.from_numpy, arrays.values()))
