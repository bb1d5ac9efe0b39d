"""Starts a model on the backend that fits: the part of loading that embedding and reranking models share."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from serving.batching.model import InputT
from serving.models.conversions import Conversion, conversion_folder, keep_conversion, read_conversion
from serving.models.hardware import Computing
from serving.models.loading import ModelLoadError, fingerprint_of
from serving.models.network import Network, Replica, Started
from serving.models.openvino_backend import NotConvertible, compiled, memory_bytes_of
from serving.models.reading import Reading
from serving.models.task import Task
from serving.protocols import Backend, Device

logger = logging.getLogger("strongroom.models")

CardT = TypeVar("CardT")


@dataclass(frozen=True, kw_only=True)
class StartedModel:
    """What a card tells of a model, and what runs it."""

    fingerprint: str
    reading: Reading
    width: int
    started: Started


def start(task: Task[InputT], folder: Path, computing: Computing, *, name: str) -> StartedModel:
    """A model that OpenVINO cannot compute runs in torch if the backend is AUTO, and a warning tells why.

    Raises ModelLoadError.
    """
    fingerprint = fingerprint_of(folder)
    if computing.device is Device.CPU and computing.backend is not Backend.TORCH:
        place = conversion_folder(folder, task=task.name, fingerprint=fingerprint)
        try:
            conversion, started = _start_in_openvino(task, folder, computing, name=name, place=place)
        except NotConvertible as error:
            if computing.backend is Backend.OPENVINO:
                raise ModelLoadError(f"{name} cannot run with backend openvino: {error}") from error
            logger.warning("openvino_not_used", extra={"model": name, "reason": str(error)})
        else:
            return StartedModel(
                fingerprint=fingerprint, reading=conversion.reading, width=conversion.width, started=started
            )
    from serving.models import library  # noqa: PLC0415 - takes 5 s

    opened, started = library.start_in_torch(task, folder, computing, name=name)
    return StartedModel(fingerprint=fingerprint, reading=opened.reading, width=opened.width, started=started)


def _start_in_openvino(
    task: Task[InputT], folder: Path, computing: Computing, *, name: str, place: Path
) -> tuple[Conversion, Started]:
    """The conversion kept at `place`, or a new one. Raises ModelLoadError, and NotConvertible of its kinds."""
    conversion = read_conversion(place)
    is_new = conversion is None
    if conversion is None:
        from serving.models import library  # noqa: PLC0415 - takes 5 s

        conversion = library.convert(task, folder, name=name)
    started = _compiled(task, conversion, computing)
    if is_new:
        keep_conversion(conversion, place)
    return conversion, started


def _compiled(task: Task[InputT], conversion: Conversion, computing: Computing) -> Started:
    networks = compiled(
        conversion.graph,
        probe=conversion.reading.arrays_of(task.probe),
        expected=conversion.expected,
        precision=computing.precision,
        threads=computing.threads,
        replicas=computing.replicas,
        has_express=computing.wants_express,
        finish=task.finish(conversion.width),
    )
    return Started(
        backend=Backend.OPENVINO,
        device="cpu",
        networks=networks,
        memory_bytes=memory_bytes_of(
            conversion.weights_bytes, computing.precision, has_express=computing.wants_express
        ),
        has_express=computing.wants_express,
    )


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
        model: StartedModel,
        task: Task[InputT],
        computing: Computing,
        *,
        card: CardT,
        name: str,
    ) -> "LoadedModel[CardT, InputT]":
        started, reader = model.started, model.reading.reader()
        replicas = [
            Replica(
                network, reader, model.reading.padding, width=model.width, finish=task.finish(model.width)
            )
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
