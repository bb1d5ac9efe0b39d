"""Command line and environment of a vLLM server on GPU or CPU, for the supervisor that starts it.

Flags are those of vLLM 0.32 and 0.33. The engine is a program of an environment of its own: nothing of it is
imported here.
"""

import shutil
import subprocess
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


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
    max_in_flight: int = 256
    """Running and waiting requests; more are answered 503 at once."""
    tool_parser: str | None = None
    """Tool calls are read from the model's text by this parser; None leaves them off."""
    tensor_parallel: int = 1
    gpu_memory_share: float = 0.8
    """Of the whole GPU. vLLM's own .92 leaves no room for embedding models beside it."""
    cpu_cache_gib: int = 2
    shutdown_s: int = 5
    """What running requests get to end in after SIGTERM."""


def detect_accelerator() -> Accelerator:
    """CUDA when NVIDIA's own tool lists a GPU. torch would tell too, but takes seconds and memory to ask."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Accelerator.CPU
    try:
        listed = subprocess.run(
            [tool, "--list-gpus"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return Accelerator.CPU
    has_gpu = listed.returncode == 0 and listed.stdout.strip() != ""
    return Accelerator.CUDA if has_gpu else Accelerator.CPU


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
        *("--max-num-queued-reqs", str(config.max_in_flight)),
        *("--shutdown-timeout", str(config.shutdown_s)),
        "--enable-prefix-caching",
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
    }
    if config.api_key is not None:
        environment["VLLM_API_KEY"] = config.api_key
    if config.accelerator is Accelerator.CPU:
        environment["VLLM_TARGET_DEVICE"] = "cpu"
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(config.cpu_cache_gib)
    return environment
