"""Chooses devices, precision, replicas and threads for a model where the settings leave them to us."""

import os
from pathlib import Path

import torch

from serving.models.loading import ModelLoadError
from serving.protocols import Device, Precision

MOST_REPLICAS = 4
"""On a CPU, when nobody sets a number. More would leave each too few threads for a long text."""

CGROUP_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux tells a container how much of the machine is its own."""


def choose_device(device: Device) -> Device:
    """Raises ModelLoadError when CUDA is asked for and absent."""
    if device is Device.AUTO:
        return Device.CUDA if torch.cuda.is_available() else Device.CPU
    if device is Device.CUDA and not torch.cuda.is_available():
        raise ModelLoadError("device is cuda, but torch finds no CUDA device")
    return device


def cuda_devices(replicas: int) -> list[str]:
    """Where each replica runs: all visible devices in turn, one replica on each when `replicas` is 0."""
    visible = torch.cuda.device_count()
    return [f"cuda:{replica % visible}" for replica in range(replicas or visible)]


def choose_embedding_precision(precision: Precision, device: Device) -> Precision:
    """AUTO is bfloat16 where the hardware multiplies in it, float32 elsewhere.

    Where it does, a CPU takes half the time, and vectors keep a cosine to float32 above .9999: the figures stand in
    openvino_backend. float16 has no fast path on most CPUs: torch made 3 texts/s instead of 14.
    """
    if precision is not Precision.AUTO:
        return precision
    if device is Device.CUDA:
        return Precision.BFLOAT16 if torch.cuda.is_bf16_supported() else Precision.FLOAT16
    capabilities = torch.cpu.get_capabilities()
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return Precision.BFLOAT16 if fast else Precision.FLOAT32


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
