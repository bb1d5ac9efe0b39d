"""The real models: what the loaders accept, and that a batch, a precision or a padding changes no meaning."""

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer

from serving.models.embedding import load_embedding_model, unit_rows
from serving.models.loading import ModelLoadError, fingerprint_of
from serving.models.reranking import load_reranking_model
from serving.protocols import Device, Precision
from tests.serving.hosting import MINILM, NO_MINILM, NO_RERANKER, RERANKER, SCIFACT

needs_minilm = pytest.mark.skipif(not MINILM.is_dir(), reason=NO_MINILM)
needs_reranker = pytest.mark.skipif(not RERANKER.is_dir(), reason=NO_RERANKER)

TEXTS = [
    "The key hangs in the hall.",
    "A strongroom is built to keep documents safe. " * 9,
    "",
    "Ωμέγα 漢字 🙂",
    "vault " * 600,
]


def abstracts(count: int) -> list[str]:
    if not SCIFACT.is_file():
        pytest.skip("no scifact corpus in shared/data beside the repository")
    with SCIFACT.open() as lines:
        return [json.loads(line)["text"] for line, _ in zip(lines, range(count), strict=False)]


@needs_minilm
def test_a_batch_gives_what_sentence_transformers_gives() -> None:
    model = load_embedding_model(str(MINILM), name="minilm", device=Device.CPU, precision=Precision.FLOAT32)
    rows = model.forward(model.encode(TEXTS))
    expected = SentenceTransformer(str(MINILM), device="cpu", local_files_only=True).encode(TEXTS)
    np.testing.assert_allclose(rows, expected, atol=2e-6)


@needs_minilm
def test_bfloat16_agrees_with_float32_on_real_texts() -> None:
    full = load_embedding_model(str(MINILM), name="minilm", device=Device.CPU, precision=Precision.FLOAT32)
    half = load_embedding_model(str(MINILM), name="minilm", device=Device.CPU, precision=Precision.BFLOAT16)
    batch = full.encode(abstracts(12))
    cosines = (full.forward(batch) * half.forward(batch)).sum(axis=1)
    assert cosines.min() >= 0.9995
    assert full.card.fingerprint == half.card.fingerprint


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
def test_a_model_with_fewer_dimensions_is_truncated_and_scaled(tmp_path: Path) -> None:
    SentenceTransformer(str(MINILM), device="cpu", local_files_only=True, truncate_dim=256).save(
        str(tmp_path)
    )
    model = load_embedding_model(str(tmp_path), name="smaller")
    rows = model.forward(model.encode(TEXTS))
    assert model.card.dimensions == 256
    assert rows.shape == (len(TEXTS), 256)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)


@needs_minilm
def test_loading_and_running_open_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = load_embedding_model(str(MINILM), name="minilm")
    assert len(model.forward(model.encode(["offline"]))) == 1
    with pytest.raises(ModelLoadError, match="neither a folder nor in the local hub cache"):
        load_embedding_model("somebody/some-model", name="absent")


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
    rows = np.array([[3, 4], [0, 2]], np.float32)
    np.testing.assert_allclose(unit_rows(rows, shape=(2, 2)), np.array([[0.6, 0.8], [0, 1]], np.float32))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="not finite"):
            unit_rows(np.array([[1, bad]], np.float32), shape=(1, 2))
    with pytest.raises(ValueError, match="no length"):
        unit_rows(np.zeros((1, 2), np.float32), shape=(1, 2))
    with pytest.raises(ValueError, match="shape"):
        unit_rows(rows, shape=(2, 3))


@needs_reranker
def test_a_batch_of_pairs_scores_as_sentence_transformers_does() -> None:
    model = load_reranking_model(str(RERANKER), name="reranker", device=Device.CPU)
    pairs = [("Where is the key?", text) for text in TEXTS]
    scores = model.forward(model.encode(pairs))[:, 0]
    expected = CrossEncoder(str(RERANKER), device="cpu", local_files_only=True).predict(pairs)
    np.testing.assert_allclose(scores, np.asarray(expected, np.float32), atol=1e-4)


@needs_minilm
def test_an_embedding_model_is_no_reranking_model() -> None:
    with pytest.raises(ModelLoadError, match="no reranking model: it holds a BertModel"):
        load_reranking_model(str(MINILM), name="wrong")
