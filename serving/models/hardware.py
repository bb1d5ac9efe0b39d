"""Chooses devices, precision, replicas and threads for a model where the settings leave them to us.

Imports torch, which takes a second, only where a driver for CUDA is found.
"""

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.models.loading import ModelLoadError
from serving.protocols import Backend, Device, Precision

MOST_REPLICAS = 4
"""On a CPU, when nobody sets a number. More would leave each too few threads for a long text."""

CGROUP_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux tells a container how much of the machine is its own."""
CPU_INFO = Path("/proc/cpuinfo")


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


def choose_device(device: Device) -> Device:
    """Raises ModelLoadError when CUDA is asked for and absent."""
    if device is Device.CPU:
        return device
    if _has_cuda():
        return Device.CUDA
    if device is Device.CUDA:
        raise ModelLoadError("device is cuda, but torch finds no CUDA device")
    return Device.CPU


def _has_cuda() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    from serving.models import torch_backend  # noqa: PLC0415 - see above

    return torch_backend.has_cuda()


def choose_embedding_precision(precision: Precision, device: Device) -> Precision:
    """AUTO is bfloat16 where the hardware multiplies in it, float32 elsewhere.

    Where it does, a CPU takes half the time, and vectors keep a cosine to float32 above .9999: the figures stand in
    openvino_backend. float16 has no fast path on most CPUs: torch made 3 texts/s instead of 14.
    """
    if precision is not Precision.AUTO:
        return precision
    if device is Device.CUDA:
        from serving.models import torch_backend  # noqa: PLC0415 - see above

        return Precision.BFLOAT16 if torch_backend.cuda_multiplies_bfloat16() else Precision.FLOAT16
    return Precision.BFLOAT16 if cpu_multiplies_bfloat16() else Precision.FLOAT32


def cpu_multiplies_bfloat16() -> bool:
    """As torch would tell, for the x86 of Linux; False elsewhere."""
    try:
        told = CPU_INFO.read_text()
    except OSError:
        return False
    flags = next((line.split() for line in told.splitlines() if line.startswith("flags")), [])
    return "avx512_bf16" in flags or "amx_bf16" in flags


def choose_reranking_precision(precision: Precision, device: Device) -> Precision:
    """AUTO keeps float32 on the CPU: bfloat16 moved scores by up to .03, which reorders near passages.

    That was torch; on other pairs torch moved them by .004 and OpenVINO by .003, at 1.8 times the speed.
    """
    if precision is not Precision.AUTO:
        return precision
    return Precision.FLOAT16 if device is Device.CUDA else Precision.FLOAT32


def share_cores(cores: int, *, threads: int | None, replicas: int) -> tuple[int, int]:
    """(replicas, threads of each) on a CPU. `threads` None and `replicas` 0 are ours to choose.

    As many replicas with as few threads as MOST_REPLICAS allows: threads that compute one batch wait for each
    other at every layer, so that one busy core stops all of them. Two cores, all-MiniLM-L6-v2, SQuAD paragraphs
    in batches of 8, OpenVINO in bfloat16, texts/s idle and with another process on one of the cores: one replica
    of two threads 88 and 43, a query p95 7 ms beside that process; two replicas of one thread 87 and 59, 3.6 ms.
    torch: 63 and 22, 144 ms; 68 and 52, 9 ms. Not measured on more cores.
    """
    chosen_replicas = replicas or max(1, min(MOST_REPLICAS, cores // (threads or 1)))
    return chosen_replicas, threads or max(1, cores // chosen_replicas)


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the share its container was given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit = whole_cores(CGROUP_CPU_LIMIT.read_text())
    except (OSError, ValueError):
        limit = None
    return cores if limit is None else min(cores, limit)


def whole_cores(cpu_max: str) -> int | None:
    """What a cgroup's cpu.max grants ("200000 100000": microseconds in each period), or None for no limit."""
    quota, period = cpu_max.split()
    return None if quota == "max" else max(1, int(quota) // int(period))
