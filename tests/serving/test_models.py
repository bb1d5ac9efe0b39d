"""What the loaders accept and tell of a model; that its backends agree is in tests/contracts/test_backends.py."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from serving.batching.model import Rows
from serving.models.embedding import load_embedding_model, unit_rows
from serving.models.hardware import usable_cores
from serving.models.library import take_reading
from serving.models.loading import ModelLoadError, fingerprint_of
from serving.models.network import Replica
from serving.models.openvino_backend import BULK_NICENESS
from serving.models.reranking import load_reranking_model, scores_of
from serving.protocols import Backend, Device, Precision
from tests.serving.hosting import MINILM, NO_MINILM, NO_RERANKER, REPOSITORY, RERANKER

pytestmark = pytest.mark.backends

needs_minilm = pytest.mark.skipif(not MINILM.is_dir(), reason=NO_MINILM)
needs_reranker = pytest.mark.skipif(not RERANKER.is_dir(), reason=NO_RERANKER)

TEXTS = [
    "The key hangs in the hall.",
    "A strongroom is built to keep documents safe. " * 9,
    "",
    "Ωμέγα 漢字 🙂",
    "vault " * 600,
]


@needs_minilm
def test_the_card_tells_what_the_model_is() -> None:
    card = load_embedding_model(str(MINILM), name="minilm").card
    assert (card.name, card.dimensions, card.max_tokens) == ("minilm", 384, 256)


@needs_minilm
def test_the_fingerprint_follows_weights_and_pooling_but_not_the_readme(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(MINILM, copy)
    before = fingerprint_of(copy)
    (copy / "README.md").write_text("Another description.")
    assert fingerprint_of(copy) == before == fingerprint_of(MINILM)
    pooling = copy / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace("true", "false"))
    assert fingerprint_of(copy) != before


@needs_minilm
def test_what_is_left_open_is_chosen_and_told() -> None:
    model = load_embedding_model(str(MINILM), name="minilm", device=Device.CPU)
    assert (model.name, model.device, model.backend) == ("minilm", "cpu", "openvino")
    assert model.precision in {"float32", "bfloat16"}
    assert model.threads * len(model.replicas) <= max(usable_cores(), len(model.replicas))
    assert model.memory_bytes > 80_000_000
    assert model.limits_hint is None


@needs_minilm
@pytest.mark.parametrize("backend", [Backend.TORCH, Backend.OPENVINO])
def test_replicas_compute_side_by_side_what_one_computes(backend: Backend) -> None:
    model = load_embedding_model(
        str(MINILM), name="minilm", device=Device.CPU, backend=backend, threads=1, replicas=3
    )
    assert (model.threads, len(model.replicas)) == (1, 3)
    tokens = model.replicas[0].encode(TEXTS)
    expected = model.replicas[0].forward(model.replicas[0].collate(tokens))

    def run_often(replica: Replica[str]) -> list[Rows]:
        return [replica.forward(replica.collate(tokens)) for _ in range(5)]

    with ThreadPoolExecutor(3) as threads:
        for several in threads.map(run_often, model.replicas):
            for rows in several:
                np.testing.assert_allclose(rows, expected, atol=1e-5)


@needs_minilm
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has threads of different niceness")
def test_the_express_replica_computes_the_same_in_threads_that_go_before_the_others() -> None:
    model = load_embedding_model(str(MINILM), name="minilm", backend=Backend.OPENVINO)
    assert model.express is not None
    rows = []
    for replica, niceness in ((model.replicas[0], BULK_NICENESS), (model.express, os.nice(0))):
        batch = replica.encode(TEXTS * 4)
        before = cpu_by_niceness()
        rows.append(replica.forward(replica.collate(batch)))
        spent = cpu_by_niceness() - before
        assert spent[niceness] > 0.9 * spent.total() > 0
    np.testing.assert_array_equal(rows[0], rows[1])


@needs_minilm
def test_only_openvino_can_let_a_replica_go_first() -> None:
    assert load_embedding_model(str(MINILM), name="minilm", backend=Backend.TORCH).express is None


def cpu_by_niceness() -> Counter[int]:
    """Ticks that the threads of this process have computed, by their niceness."""
    ticks = Counter[int]()
    for thread in Path("/proc/self/task").iterdir():
        fields = (thread / "stat").read_text().rpartition(")")[2].split()
        ticks[int(fields[16])] += int(fields[11]) + int(fields[12])
    return ticks


@needs_minilm
def test_rows_stay_as_they_were_when_the_replica_runs_again() -> None:
    [replica] = load_embedding_model(str(MINILM), name="minilm", device=Device.CPU, replicas=1).replicas
    first = replica.forward(replica.collate(replica.encode(["The key hangs in the hall."])))
    before = first.copy()
    replica.forward(replica.collate(replica.encode(["Whales feed on krill."])))
    np.testing.assert_array_equal(first, before)


@needs_minilm
@pytest.mark.parametrize("backend", [Backend.TORCH, Backend.OPENVINO])
def test_closing_lets_go_of_the_weights(backend: Backend) -> None:
    model = load_embedding_model(str(MINILM), name="minilm", device=Device.CPU, backend=backend)
    [replica, *_] = model.replicas
    model.close()
    with pytest.raises(AssertionError):
        replica.forward(replica.collate(replica.encode(["too late"])))


@needs_minilm
def test_openvino_is_refused_on_cuda() -> None:
    with pytest.raises(ModelLoadError, match="cuda"):
        load_embedding_model(str(MINILM), name="minilm", device=Device.CUDA, backend=Backend.OPENVINO)


NO_CONNECTION = """
import pathlib, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise SystemExit("a connection was tried")
sys.addaudithook(refuse)
from serving.models.embedding import load_embedding_model
from serving.models.loading import ModelLoadError
model = load_embedding_model(sys.argv[1], name="minilm", device="cpu", backend="openvino")
[replica, *_] = model.replicas
assert replica.forward(replica.collate(replica.encode(["offline"]))).shape == (1, 384)
try:
    load_embedding_model("somebody/some-model", name="absent")
except ModelLoadError as error:
    assert "neither a folder nor in the local hub cache" in str(error)
assert not [name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module]
assert sys.modules["openvino.tools.ovc.convert_impl"].tm.__name__.endswith("telemetry_stub")
assert not list(pathlib.Path.home().iterdir())
"""


@needs_minilm
def test_loading_and_running_open_no_connection_and_report_nothing(tmp_path: Path) -> None:
    # In a process of its own: openvino's telemetry, installed with it, starts at the first import.
    # A copy of the model, for what is loaded from a kept conversion passes the converter by.
    shutil.copytree(MINILM, tmp_path / "models" / "minilm")
    (home := tmp_path / "home").mkdir()
    finished = subprocess.run(
        [sys.executable, "-c", NO_CONNECTION, str(tmp_path / "models" / "minilm")],
        cwd=REPOSITORY,
        env={"HOME": str(home), "PATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ModelLoadError, match="holds no safetensors weights"):
        load_embedding_model(str(tmp_path), name="pickled")


@needs_minilm
def test_a_model_that_would_run_its_own_code_is_refused(tmp_path: Path) -> None:
    shutil.copytree(MINILM, tmp_path, dirs_exist_ok=True)
    (tmp_path / "own.py").write_text("raise SystemExit('code of the model ran')")
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[0]["type"] = "own.Transformer"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelLoadError):
        load_embedding_model(str(tmp_path), name="own")


def test_vectors_that_are_no_directions_are_refused() -> None:
    rows = np.array([[3, 4, 9], [0, 2, 9]], np.float32)
    np.testing.assert_allclose(unit_rows(rows, width=2), np.array([[0.6, 0.8], [0, 1]], np.float32))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="not finite"):
            unit_rows(np.array([[1, bad]], np.float32), width=2)
    with pytest.raises(ValueError, match="no length"):
        unit_rows(np.zeros((1, 2), np.float32), width=2)
    with pytest.raises(ValueError, match="shape"):
        unit_rows(rows, width=4)


def test_scores_follow_the_logistic_function_at_any_size() -> None:
    outputs = np.array([[0], [np.log(3)], [-1000], [1000]], np.float32)
    scores = scores_of(outputs)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, np.array([[0.5], [0.75], [0], [1]], np.float32), atol=1e-6)
    with pytest.raises(ValueError, match="not finite"):
        scores_of(np.array([[np.nan]], np.float32))
    with pytest.raises(ValueError, match="shape"):
        scores_of(np.zeros((2, 3), np.float32))


@needs_reranker
def test_the_rerankers_card_tells_what_it_reads() -> None:
    card = load_reranking_model(str(RERANKER), name="reranker").card
    assert (card.name, card.max_tokens) == ("reranker", 256)
    assert len(Tokenizer.from_str(card.tokenizer_json).encode("vault " * 5000).ids) >= 5000


@needs_minilm
def test_a_model_that_reads_more_than_its_tokenizer_tells_is_refused(tmp_path: Path) -> None:
    library = SentenceTransformer(str(MINILM), device="cpu", local_files_only=True)
    with pytest.raises(ModelLoadError, match="prepares its input in a way"):
        take_reading(Shouting(library), "shouting", probe=["A text."])


class Shouting:
    """A library's model that changes texts before it tokenises them."""

    def __init__(self, library: SentenceTransformer) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def preprocess(self, texts: list[str], *, prompt: str | None) -> Any:
        return self._library.preprocess([f"{text}!!" for text in texts], prompt=prompt)


@needs_minilm
def test_a_default_prompt_goes_before_each_text(tmp_path: Path) -> None:
    library = SentenceTransformer(
        str(MINILM),
        device="cpu",
        local_files_only=True,
        prompts={"query": "Find: "},
        default_prompt_name="query",
    )
    library[1].include_prompt = False
    library.save(str(tmp_path), create_model_card=False)
    model = load_embedding_model(
        str(tmp_path), name="prompted", device=Device.CPU, precision=Precision.FLOAT32
    )
    [replica, *_] = model.replicas
    rows = replica.forward(replica.collate(replica.encode(TEXTS[:2])))
    np.testing.assert_allclose(rows, library.encode(TEXTS[:2]), atol=1e-4)


@needs_minilm
def test_an_embedding_model_is_no_reranking_model() -> None:
    with pytest.raises(ModelLoadError, match="no reranking model: it holds a BertModel"):
        load_reranking_model(str(MINILM), name="wrong")
