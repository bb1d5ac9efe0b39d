"""`strongroom plan`: memory shared out, on a card that a scripted nvidia-smi tells of and on none."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.running.planning import (
    ACTIVATIONS_BYTES,
    GIB,
    REACHED,
    Budget,
    ModelShape,
    budgets,
    fit,
    local_models,
    read_shape,
)
from app.settings import read_settings
from serving.generation.engine import gpu_memory_share
from tests.stack import MODELS, ROOT


def test_a_hand_computed_model_fits_as_often_as_its_cache_allows() -> None:
    # Llama 3.1 8B: 32 layers, 8 heads of 128 for keys and as many for values, 2 bytes each: 131,072 bytes a token.
    model = ModelShape("8b", 16 * GIB, layers=32, kv_heads=8, head_dim=128, context=131_072)
    assert model.cache_bytes_a_token == 131_072
    budget = Budget("a card", 24 * GIB, 21 * GIB, bandwidth=1e12)
    found = fit(budget, model, max_model_len=4096)
    assert found.cache_bytes == 21 * GIB - 16 * GIB - ACTIVATIONS_BYTES
    assert found.tokens == 4 * GIB // 131_072 == 32_768
    assert found.answers == 8
    assert found.tokens_per_s == pytest.approx(REACHED * 1e12 / (16 * GIB))
    assert not fit(Budget("small", 16 * GIB, 15 * GIB, None), model, max_model_len=4096).fits


def test_a_models_shape_is_read_from_its_configuration(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "hidden_size": 512,
        "max_position_embeddings": 2048,
    }
    (tmp_path / "config.json").write_bytes(orjson.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"0" * 1000)
    shape = read_shape(tmp_path)
    assert shape == ModelShape(tmp_path.name, 1000, layers=4, kv_heads=8, head_dim=64, context=2048)
    (tmp_path / "config.json").write_bytes(orjson.dumps({**config, "architectures": ["BertModel"]}))
    assert read_shape(tmp_path) is None
    (tmp_path / "config.json").write_text("{")
    assert read_shape(tmp_path) is None


def test_the_demo_engines_model_is_among_those_that_are_here() -> None:
    if not MODELS.is_dir():
        pytest.skip("data/models is not there: run `python -m serving.demo_models`")
    names = [model.name for model in local_models(read_settings())]
    assert "SmolLM2-135M-Instruct" in names
    assert "all-MiniLM-L6-v2" not in names


def test_a_card_is_shared_out_as_serve_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\ncase "$1" in *uuid*) echo "0, GPU-a, 143771";; *) echo "0, NVIDIA H200";; esac\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    settings = read_settings().with_options(models={"embedding": "none"})
    (budget,) = budgets(settings)
    assert budget.device == "GPU 0, NVIDIA H200"
    share = gpu_memory_share(143_771 * 1024**2, engines_on_it=1, model_weights=[0], gpu_holds_models=True)
    assert budget.share == share
    assert budget.engine_bytes == int(share * 143_771 * 1024**2)
    assert budget.bandwidth == 4.8e12


@pytest.mark.processes
def test_a_script_reads_the_plan_as_json() -> None:
    command = [sys.executable, "-m", "app.cli", "plan", "--json"]
    told = orjson.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    assert told[0]["memory_bytes"] >= told[0]["engine_bytes"] > 0
    small = next(each for each in told[0]["models"] if each["name"] == "1 billion, 4 bit")
    assert small["fits"]
    assert small["estimated_tokens_per_s"] > 0
