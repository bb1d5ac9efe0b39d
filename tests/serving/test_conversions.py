"""A model is converted for OpenVINO once: later starts take what was kept, unless it is damaged or of another kind."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serving.batching.model import Rows
from serving.models import library
from serving.models.conversions import FOLDER
from serving.models.embedding import LoadedEmbeddingModel, load_embedding_model
from serving.protocols import Backend, Device
from tests.serving.hosting import MINILM, NO_MINILM, REPOSITORY

pytestmark = [
    pytest.mark.backends,
    pytest.mark.skipif(not MINILM.is_dir(), reason=NO_MINILM),
]

TEXTS = ["The key hangs in the hall.", "Nobody enters the strongroom alone. " * 9]


@pytest.fixture
def minilm(tmp_path: Path) -> Path:
    """A model that was never converted."""
    return Path(shutil.copytree(MINILM, tmp_path / "models" / "minilm.v1"))


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the name of each model that is converted."""
    names: list[str] = []
    convert = library.convert

    def noting(*arguments: object, name: str) -> object:
        names.append(name)
        return convert(*arguments, name=name)  # type: ignore[arg-type]

    monkeypatch.setattr(library, "convert", noting)
    return names


def load(folder: Path, name: str = "minilm") -> LoadedEmbeddingModel:
    return load_embedding_model(str(folder), name=name, device=Device.CPU, backend=Backend.OPENVINO)


def vectors(model: LoadedEmbeddingModel) -> Rows:
    [replica, *_] = model.replicas
    try:
        return np.array(replica.forward(replica.collate(replica.encode(TEXTS))))
    finally:
        model.close()


def kept(model: Path) -> list[Path]:
    return list((model.parent / FOLDER).iterdir())


def test_a_model_is_converted_once_and_computes_the_same_from_then_on(
    minilm: Path, converted: list[str]
) -> None:
    first, again = load(minilm, "first"), load(minilm, "again")
    assert converted == ["first"]
    assert again.card.fingerprint == first.card.fingerprint
    assert again.card.tokenizer_json == first.card.tokenizer_json
    assert again.memory_bytes == first.memory_bytes
    np.testing.assert_allclose(vectors(again), vectors(first), atol=1e-6)


WITHOUT_TORCH = """
import sys
from serving.models.embedding import load_embedding_model
[replica, *_] = load_embedding_model(sys.argv[1], name="minilm", device="cpu").replicas
assert replica.forward(replica.collate(replica.encode(["light"]))).shape == (1, 384)
heavy = {"torch", "transformers", "sentence_transformers"} & set(sys.modules)
assert not heavy, heavy
"""


def test_a_model_that_was_converted_starts_without_torch(minilm: Path) -> None:
    load(minilm).close()
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(minilm)], cwd=REPOSITORY, check=True)


def test_a_model_with_other_files_is_converted_anew_and_its_older_conversion_goes(
    minilm: Path, converted: list[str]
) -> None:
    load(minilm).close()
    before = kept(minilm)
    pooling = minilm / "1_Pooling" / "config.json"
    changed = pooling.read_text().replace(
        '"pooling_mode_mean_tokens": true', '"pooling_mode_mean_tokens": false'
    )
    pooling.write_text(changed.replace('"pooling_mode_cls_token": false', '"pooling_mode_cls_token": true'))
    load(minilm).close()
    assert len(converted) == 2
    assert len(kept(minilm)) == 1
    assert kept(minilm) != before


def test_another_models_conversion_stays(minilm: Path, converted: list[str]) -> None:
    other = Path(shutil.copytree(minilm, minilm.parent / "minilm.v2"))
    for folder in (minilm, other, minilm, other):
        load(folder).close()
    assert len(converted) == 2


@pytest.mark.parametrize("file", ["graph.xml", "graph.bin", "model.json", "sha256"])
def test_what_is_damaged_is_converted_anew(
    minilm: Path, converted: list[str], file: str, caplog: pytest.LogCaptureFixture
) -> None:
    intact = vectors(load(minilm))
    [folder] = kept(minilm)
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)
    with caplog.at_level(logging.WARNING, "strongroom.models"):
        np.testing.assert_allclose(vectors(load(minilm)), intact, atol=1e-6)
    assert "conversion_not_used" in caplog.text
    load(minilm).close()
    assert len(converted) == 2


def test_where_nothing_can_be_kept_a_model_starts_all_the_same(
    minilm: Path, converted: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (minilm.parent / FOLDER).write_text("in the way")
    with caplog.at_level(logging.WARNING, "strongroom.models"):
        for _ in range(2):
            load(minilm).close()
    assert len(converted) == 2
    assert "conversion_not_kept" in caplog.text
