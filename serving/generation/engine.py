"""Command line and environment of a vLLM server on GPU or CPU, for the supervisor that starts it.

Flags are those of vLLM 0.32 and 0.33. The engine is a program of an environment of its own: nothing of it is
imported here.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

MIB = 1024 * 1024
GIB = 1024 * MIB


class Accelerator(StrEnum):
    """What the engine computes on."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """One vLLM server."""

    python: Path
    """The interpreter of the environment that vLLM is installed in."""
    model: str
    """A folder, or a hub name that is in the local cache: the engine is started offline."""
    served_name: str
    accelerator: Accelerator
    port: int
    host: str = "127.0.0.1"
    api_key: str | None = field(default=None, repr=False)
    max_model_len: int | None = None
    """Tokens of prompt and answer; None is the model's own, which may need more memory than there is."""
    max_queued: int = 256
    """Waiting requests; more are answered 503 at once. The gateway keeps its own queue before this one."""
    tool_parser: str | None = None
    """Tool calls are read from the model's text by this parser; None leaves them off."""
    speculative: str | None = None
    """vLLM's `--speculative-config`, as JSON; None decodes token by token."""
    tensor_parallel: int = 1
    gpus: tuple[int, ...] = ()
    """The devices that this engine sees, by NVIDIA's numbers; none means all."""
    gpu_memory_share: float = 0.8
    """Of each whole GPU. vLLM's own .92 leaves no room for embedding models beside it."""
    cpu_cache_gib: int = 2
    shutdown_s: int = 5
    """What running requests get to end in after SIGTERM."""


@dataclass(frozen=True)
class Gpu:
    """`number` is NVIDIA's, in the order of the bus."""

    number: int
    memory_bytes: int


def list_gpus(visible: str | None = None) -> tuple[Gpu, ...]:
    """The NVIDIA GPUs; empty where there is none. `visible` is the owner's CUDA_VISIBLE_DEVICES: those alone.

    NVIDIA's own tool is asked: torch would tell too, but takes seconds and memory to.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        listed = subprocess.run(
            [tool, "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        rows = [line.split(",") for line in listed.stdout.splitlines()]
        gpus = {uuid.strip(): Gpu(int(number), int(memory) * MIB) for number, uuid, memory in rows}
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()
    if visible is None:
        return tuple(gpus.values())
    # Its entries are numbers or the beginnings of identifiers.
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return tuple(
        gpu
        for name in names
        for uuid, gpu in gpus.items()
        if (str(gpu.number) == name if name.isdigit() else uuid.startswith(name))
    )


def place_engines(engines: int, *, gpus: int, tensor_parallel: int) -> list[tuple[int, ...]]:
    """The GPUs of each engine, in turn over groups of `tensor_parallel`: engines share a group once all are taken.

    Raises ValueError when one engine wants more GPUs than there are.
    """
    groups = [
        tuple(range(first, first + tensor_parallel))
        for first in range(0, gpus - tensor_parallel + 1, tensor_parallel)
    ]
    if not groups:
        raise ValueError(f"an engine over {tensor_parallel} GPUs does not fit on {gpus}")
    return [groups[engine % len(groups)] for engine in range(engines)]


def gpu_memory_share(
    gpu_bytes: int, *, engines_on_it: int, model_weights: Sequence[int], gpu_holds_models: bool
) -> float:
    """Which share of a GPU one of its engines takes: what the models beside it leave, in equal parts.

    `model_weights` are the sizes in bytes of the embedding and reranking models. Each takes as much again for its
    batches; a process that uses CUDA takes about half a GiB for itself; and .04 of the card stays free, since
    vLLM's own measurement of what it takes is not exact.
    """
    beside = GIB // 2 * (engines_on_it + 1)
    if gpu_holds_models:
        beside += sum(2 * weights + GIB // 2 for weights in model_weights)
    left = 0.96 - beside / gpu_bytes
    return round(max(left, 0.1) / engines_on_it, 3)


def engine_command(config: EngineConfig) -> list[str]:
    """The argument list. It holds no secret: other users of the machine can read it."""
    command = [
        str(config.python),
        # Not the `vllm` command: the CPU package has another name, under which that command finds no version.
        *("-m", "vllm.entrypoints.openai.api_server"),
        *("--model", config.model),
        *("--served-model-name", config.served_name),
        *("--host", config.host),
        *("--port", str(config.port)),
        *("--max-num-queued-reqs", str(config.max_queued)),
        *("--shutdown-timeout", str(config.shutdown_s)),
        "--enable-prefix-caching",
        # So that a long prompt does not hold up the tokens of all others.
        "--enable-chunked-prefill",
        "--enable-prompt-tokens-details",
        *("--scheduling-policy", "priority"),
        # Pages that load scripts from elsewhere, and a log line for each health check.
        "--disable-fastapi-docs",
        "--disable-uvicorn-access-log",
    ]
    if config.max_model_len is not None:
        command += ["--max-model-len", str(config.max_model_len)]
    if config.tool_parser is not None:
        command += ["--enable-auto-tool-choice", "--tool-call-parser", config.tool_parser]
    if config.speculative is not None:
        command += ["--speculative-config", config.speculative]
    if config.accelerator is Accelerator.CUDA:
        command += ["--gpu-memory-utilization", str(config.gpu_memory_share)]
        command += ["--tensor-parallel-size", str(config.tensor_parallel)]
    else:
        # "auto" would be float16 for many models, which CPUs compute slowly; compiling takes minutes of
        # start-up.
        command += ["--dtype", "bfloat16", "--enforce-eager"]
    return command


def engine_environment(config: EngineConfig) -> dict[str, str]:
    """Variables to set beside the inherited ones: no usage statistics, no downloads, the API key."""
    environment = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_LOGGING_COLOR": "0",
        "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "0",
    }
    if config.api_key is not None:
        environment["VLLM_API_KEY"] = config.api_key
    if config.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, config.gpus))
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if config.accelerator is Accelerator.CPU:
        environment["VLLM_TARGET_DEVICE"] = "cpu"
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(config.cpu_cache_gib)
    return environment
