"""The engine's command line; tests/end_to_end start the real one."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from serving.generation.engine import (
    Accelerator,
    EngineConfig,
    detect_accelerator,
    engine_command,
    engine_environment,
)

CONFIG = EngineConfig(
    python=Path("/venv/bin/python"),
    model="/models/smol",
    served_name="smol",
    accelerator=Accelerator.CPU,
    port=8001,
    api_key="sesame",
)


@pytest.mark.parametrize("accelerator", Accelerator)
def test_no_statistics_downloads_or_secrets_on_the_command_line(accelerator: Accelerator) -> None:
    config = replace(CONFIG, accelerator=accelerator)
    environment = engine_environment(config)
    assert environment["VLLM_NO_USAGE_STATS"] == environment["HF_HUB_OFFLINE"] == "1"
    assert environment["VLLM_API_KEY"] == "sesame"
    assert "sesame" not in " ".join(engine_command(config))
    assert "sesame" not in repr(config)
    assert ("VLLM_TARGET_DEVICE" in environment) == (accelerator is Accelerator.CPU)


def test_tool_calls_are_parsed_only_when_a_parser_is_configured() -> None:
    assert "--enable-auto-tool-choice" not in engine_command(CONFIG)
    command = engine_command(replace(CONFIG, tool_parser="hermes"))
    assert command[command.index("--tool-call-parser") + 1] == "hermes"


def test_memory_is_shared_on_a_gpu_and_bounded_on_a_cpu() -> None:
    command = engine_command(replace(CONFIG, accelerator=Accelerator.CUDA, gpu_memory_share=0.7))
    assert command[command.index("--gpu-memory-utilization") + 1] == "0.7"
    assert engine_environment(replace(CONFIG, cpu_cache_gib=3))["VLLM_CPU_KVCACHE_SPACE"] == "3"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'GPU 0: NVIDIA L4 (UUID: GPU-1)'", Accelerator.CUDA),
        ("exit 0", Accelerator.CPU),
        ("echo 'no devices were found'; exit 6", Accelerator.CPU),
        (None, Accelerator.CPU),
    ],
)
def test_a_gpu_is_there_when_its_own_tool_lists_one(
    script: str | None, expected: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is not None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert detect_accelerator() is expected


@pytest.mark.engine
def test_vllm_knows_every_flag() -> None:
    python = Path(__file__).parents[2] / ".venv-engine" / "bin" / "python"
    if not python.exists():
        pytest.skip("no .venv-engine: run `make setup`")
    inherited = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME"}}  # noqa: TID251
    known = subprocess.run(
        [str(python), "-m", "vllm.entrypoints.openai.api_server", "--help=all"],
        capture_output=True,
        text=True,
        check=True,
        env={**inherited, **engine_environment(CONFIG)},
        timeout=120,
    ).stdout
    configs = [replace(CONFIG, accelerator=accelerator, tool_parser="hermes") for accelerator in Accelerator]
    for flag in {flag for config in configs for flag in engine_command(config) if flag.startswith("--")}:
        assert f"{flag} " in known or f"{flag}," in known, flag
