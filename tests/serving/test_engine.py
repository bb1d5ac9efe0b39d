"""The engine's command line; tests/end_to_end start the real one."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from serving.generation.engine import (
    GIB,
    MIB,
    Accelerator,
    EngineConfig,
    Gpu,
    engine_command,
    engine_environment,
    gpu_memory_share,
    list_gpus,
    place_engines,
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


def test_several_engines_take_turns_over_groups_of_gpus() -> None:
    assert place_engines(3, gpus=4, tensor_parallel=1) == [(0,), (1,), (2,)]
    assert place_engines(3, gpus=5, tensor_parallel=2) == [(0, 1), (2, 3), (0, 1)]
    with pytest.raises(ValueError, match="4 GPUs does not fit on 2"):
        place_engines(1, gpus=2, tensor_parallel=4)


def test_engines_leave_the_models_beside_them_their_memory() -> None:
    # 24 GiB: .96 of it is 23.04; two CUDA processes take 1, the model 2 x 1 + .5: 19.54 are left.
    alone = gpu_memory_share(24 * GIB, engines_on_it=1, model_weights=[GIB], gpu_holds_models=True)
    assert alone == round(19.54 / 24, 3)
    assert gpu_memory_share(24 * GIB, engines_on_it=1, model_weights=[GIB], gpu_holds_models=False) > alone
    # Three processes take 1.5, and two engines share the rest.
    halves = gpu_memory_share(24 * GIB, engines_on_it=2, model_weights=[GIB], gpu_holds_models=True)
    assert halves == round(19.04 / 24 / 2, 3)


def test_an_engine_sees_its_own_gpus_and_decodes_as_configured() -> None:
    config = replace(CONFIG, accelerator=Accelerator.CUDA, gpus=(2, 3), speculative='{"method": "ngram"}')
    assert engine_environment(config)["CUDA_VISIBLE_DEVICES"] == "2,3"
    command = engine_command(config)
    assert command[command.index("--speculative-config") + 1] == '{"method": "ngram"}'
    assert "--speculative-config" not in engine_command(CONFIG)
    assert "CUDA_VISIBLE_DEVICES" not in engine_environment(CONFIG)


TWO = "printf '0, GPU-aa11, 23034\\n1, GPU-bb22, 81559\\n'"
"""What NVIDIA's tool prints on a machine with two GPUs."""


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (TWO, (Gpu(0, 23034 * MIB), Gpu(1, 81559 * MIB))),
        ("exit 0", ()),
        ("echo 'No devices were found'; exit 6", ()),
        ("echo 'Unable to determine the device handle'", ()),
        (None, ()),
    ],
)
def test_gpus_are_those_that_their_own_tool_lists(
    script: str | None, expected: tuple[Gpu, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is not None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_gpus() == expected


@pytest.mark.parametrize(
    ("visible", "numbers"), [("1", [1]), ("1,0", [1, 0]), ("GPU-aa", [0]), ("", []), ("7", [])]
)
def test_gpus_that_the_owner_hides_stay_hidden(
    visible: str, numbers: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{TWO}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [gpu.number for gpu in list_gpus(visible)] == numbers


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
    configs = [
        replace(CONFIG, accelerator=accelerator, tool_parser="hermes", speculative="{}")
        for accelerator in Accelerator
    ]
    for flag in {flag for config in configs for flag in engine_command(config) if flag.startswith("--")}:
        assert f"{flag} " in known or f"{flag}," in known, flag
