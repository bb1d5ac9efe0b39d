"""Starts a model on the backend that fits: the part of loading that embedding and reranking models share."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from serving.batching.model import InputT, Rows
from serving.models.hardware import choose_device, cuda_devices, share_cores, usable_cores
from serving.models.loading import (
    ModelLoadError,
    bytes_of,
    fingerprint_of,
    longest_input,
    untruncated_tokenizer,
)
from serving.models.network import Network, Replica, RowsModule
from serving.models.openvino_backend import NotConvertible, convert
from serving.models.reading import Arrays, Padding, Reader
from serving.models.token_budget import find_token_budget, keep_budget, read_budget
from serving.models.torch_backend import TorchNetwork, cuda_memory
from serving.protocols import Backend, Device, Precision

logger = logging.getLogger("strongroom.models")

CardT = TypeVar("CardT")

BUDGETS_FILE = ".token-budgets.json"
"""Beside the models' folders and in none of them: there it would change a fingerprint."""


@dataclass(frozen=True, kw_only=True)
class Computing:
    """How a model shall run, once what the settings left open is chosen."""

    device: Device
    """Never AUTO."""
    precision: Precision
    """Never AUTO."""
    backend: Backend
    """AUTO is OpenVINO and, for a model that it cannot compute, torch. Never AUTO on CUDA."""
    replicas: int
    """0 on CUDA: one on each device."""
    threads: int
    """Of one replica, on the CPU."""
    wants_express: bool
    """A replica more, for people alone, where the backend can let it go first: OpenVINO."""

    @property
    def opening(self) -> tuple[str, Precision]:
        """Device and precision to open the model with: OpenVINO converts from float32."""
        if self.device is Device.CUDA:
            return cuda_devices(self.replicas)[0], self.precision
        return "cpu", self.precision if self.backend is Backend.TORCH else Precision.FLOAT32


def choose_computing(
    device: Device,
    precision: Precision,
    backend: Backend,
    *,
    threads: int | None,
    replicas: int,
    wants_express: bool = False,
    choose_precision: Callable[[Precision, Device], Precision],
) -> Computing:
    """Raises ModelLoadError for a device that is absent, or that the backend cannot use."""
    if backend is Backend.OPENVINO and device is Device.AUTO:
        device = Device.CPU
    device = choose_device(device)
    precision = choose_precision(precision, device)
    if device is Device.CUDA:
        if backend is Backend.OPENVINO:
            raise ModelLoadError("backend is openvino, which runs on the CPU, but device is cuda")
        backend, threads = Backend.TORCH, 1
    else:
        replicas, threads = share_cores(usable_cores(), threads=threads, replicas=replicas)
    return Computing(
        device=device,
        precision=precision,
        backend=backend,
        replicas=replicas,
        threads=threads,
        wants_express=wants_express,
    )


@dataclass(frozen=True, kw_only=True)
class Reading(Generic[InputT]):
    """What the library's model does to texts before it computes, in parts of our own."""

    reader: Reader[InputT]
    padding: Padding
    constants: Mapping[str, Any]
    tokenizer_json: str
    example: Arrays
    probe: Arrays


def take_reading(
    model: Any, name: str, *, example: Sequence[InputT], probe: Sequence[InputT]
) -> Reading[InputT]:
    """Tokenizer, prompt and padding of the library's model, once it is sure that we read `probe` as it does.

    A model with a chat template, for one, reads more than its tokenizer tells. Raises ModelLoadError.
    """
    tokenizer = untruncated_tokenizer(model, name)
    prompt = model.prompts.get(model.default_prompt_name, "")
    reader: Reader[InputT] = Reader(
        tokenizer,
        max_tokens=longest_input(model, name),
        cuts_left=model.tokenizer.truncation_side == "left",
        prompt=prompt,
    )
    padding = Padding.of(model.tokenizer)
    arrays = padding.pad(reader.read(probe))
    features = model.preprocess(list(probe), prompt=prompt or None)
    if any(not np.array_equal(array, features[key].cpu().numpy()) for key, array in arrays.items()):
        raise ModelLoadError(f"{name} prepares its input in a way that is not supported")
    return Reading(
        reader=reader,
        padding=padding,
        constants={key: value for key, value in features.items() if key not in arrays},
        tokenizer_json=tokenizer.to_str(),
        example=padding.pad(reader.read(example)),
        probe=arrays,
    )


@dataclass(frozen=True, kw_only=True)
class Started:
    """A model that runs. The device is `cpu`, or the CUDA devices by commas."""

    backend: Backend
    device: str
    networks: Sequence[Network]
    memory_bytes: int
    limits_hint: int | None = None
    has_express: bool = False
    """The last network is for people alone."""


def start(
    model: Any,
    reading: Reading[InputT],
    computing: Computing,
    *,
    name: str,
    output: str,
    finish: Callable[[Rows], Rows],
    reopen: Callable[[str, Precision], Any],
    folder: Path,
) -> Started:
    """Runs `model`, which was opened as `computing.opening` tells. `output` names the feature with the rows.

    A model that OpenVINO cannot compute runs in torch if the backend is AUTO, and a warning tells why. Raises
    ModelLoadError.
    """

    def as_module(opened: Any) -> RowsModule:
        names = reading.padding.names
        return RowsModule(opened, names=names, constants=reading.constants, output=output)

    if computing.device is Device.CUDA:
        return _start_on_cuda(
            as_module(model),
            reading,
            computing,
            open_module=lambda device: as_module(reopen(device, computing.precision)),
            folder=folder,
        )
    if computing.backend is Backend.TORCH:
        return _start_torch(as_module(model), computing)
    try:
        networks, memory_bytes = convert(
            as_module(model),
            example=reading.example,
            probe=reading.probe,
            precision=computing.precision,
            threads=computing.threads,
            replicas=computing.replicas,
            has_express=computing.wants_express,
            finish=finish,
        )
    except NotConvertible as error:
        if computing.backend is Backend.OPENVINO:
            raise ModelLoadError(f"{name} cannot run with backend openvino: {error}") from error
        logger.warning("openvino_not_used", extra={"model": name, "reason": str(error)})
        return _start_torch(as_module(reopen("cpu", computing.precision)), computing)
    return Started(
        backend=Backend.OPENVINO,
        device="cpu",
        networks=networks,
        memory_bytes=memory_bytes,
        has_express=computing.wants_express,
    )


def _start_torch(module: RowsModule, computing: Computing) -> Started:
    networks = [TorchNetwork(module, "cpu", threads=computing.threads) for _ in range(computing.replicas)]
    return Started(backend=Backend.TORCH, device="cpu", networks=networks, memory_bytes=bytes_of(module))


def _start_on_cuda(
    first: RowsModule,
    reading: Reading[InputT],
    computing: Computing,
    *,
    open_module: Callable[[str], RowsModule],
    folder: Path,
) -> Started:
    placed = cuda_devices(computing.replicas)
    modules = {placed[0]: first}
    for device in placed[1:]:
        if device not in modules:
            modules[device] = open_module(device)
    networks = [TorchNetwork(modules[device], device) for device in placed]
    fingerprint = fingerprint_of(folder)
    budgets = []
    for device, network in dict(zip(placed, networks, strict=True)).items():
        name, free_bytes, total_bytes = cuda_memory(device)
        budgets.append(
            _token_budget(
                network,
                reading,
                free_bytes=free_bytes,
                path=folder.parent / BUDGETS_FILE,
                key=f"{fingerprint} {computing.precision} {name} {total_bytes}",
            )
        )
    return Started(
        backend=Backend.TORCH,
        device=",".join(modules),
        networks=networks,
        memory_bytes=sum(bytes_of(module) for module in modules.values()),
        limits_hint=min(budgets),
    )


def _token_budget(
    network: TorchNetwork,
    reading: Reading[InputT],
    *,
    free_bytes: int,
    path: Path,
    key: str,
) -> int:
    """Measured, unless it was before. Raises ModelLoadError when not even one text fits."""
    budget = read_budget(path, key)
    if budget is None:
        max_tokens = reading.reader.max_tokens
        budget = find_token_budget(
            lambda texts: network.measure_peak_bytes(reading.padding.largest(texts, max_tokens)),
            max_tokens=max_tokens,
            free_bytes=free_bytes,
        )
        if not budget:
            raise ModelLoadError(f"the CUDA device has too little free memory for {max_tokens} tokens")
        keep_budget(path, key, budget)
    return budget


@dataclass(frozen=True, kw_only=True)
class LoadedModel(Generic[CardT, InputT]):
    """A model in memory: what readiness tells of it, and its replicas for the batcher."""

    card: CardT
    name: str
    device: str
    precision: str
    backend: str
    threads: int
    """Of one replica."""
    memory_bytes: int
    """Of all replicas, without the batches that they run."""
    limits_hint: int | None
    """Tokens that a batch may have on this device; None on the CPU."""
    replicas: tuple[Replica[InputT], ...]
    express: Replica[InputT] | None
    """For people alone, beside the replicas."""
    networks: tuple[Network, ...]

    @classmethod
    def of(
        cls,
        started: Started,
        reading: Reading[InputT],
        computing: Computing,
        *,
        card: CardT,
        name: str,
        width: int,
        finish: Callable[[Rows], Rows],
    ) -> "LoadedModel[CardT, InputT]":
        """`finish` makes of a network's rows what callers get: (texts, `width`)."""
        replicas = [
            Replica(network, reading.reader, reading.padding, width=width, finish=finish)
            for network in started.networks
        ]
        express = replicas.pop() if started.has_express else None
        return cls(
            card=card,
            name=name,
            device=started.device,
            precision=computing.precision.value,
            backend=started.backend.value,
            threads=computing.threads,
            memory_bytes=started.memory_bytes,
            limits_hint=started.limits_hint,
            replicas=tuple(replicas),
            express=express,
            networks=tuple(started.networks),
        )

    def close(self) -> None:
        """Frees the memory; nothing may run any more."""
        for network in self.networks:
            network.close()
