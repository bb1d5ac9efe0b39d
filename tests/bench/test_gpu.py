"""The benchmark for GPUs runs where there is none, so that it does not rot between machines that have one."""

from pathlib import Path

import orjson
import pytest

from tests.bench.gpu import main


@pytest.mark.processes
def test_the_gpu_benchmark_measures_random_weights_on_a_cpu(tmp_path: Path) -> None:
    told = tmp_path / "figures.json"
    status = main(["--device", "cpu", "--quick", "--architecture", "tiny", "--json", str(told)])
    assert status == 0
    figures = {figure["name"]: figure for figure in orjson.loads(told.read_bytes())["figures"]}
    assert set(figures) == {
        "gpu_embedding",
        "gpu_embedding_interactive",
        "gpu_rerank",
        "gpu_rerank_interactive",
    }
    assert all(figure["outcome"] == "measured" and figure["measured"] > 0 for figure in figures.values())
