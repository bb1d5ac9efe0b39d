"""What every backend promises of a model: the rows that torch gives in float32, on any of the model's texts."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import (
    AutoModel,
    AutoTokenizer,
    BigBirdConfig,
    LongformerConfig,
    ModernBertConfig,
    Qwen3Config,
    XLMRobertaConfig,
)

from serving.batching.model import Rows
from serving.models.embedding import load_embedding_model
from serving.models.loading import ModelLoadError
from serving.models.reranking import load_reranking_model
from serving.models.starting import LoadedModel
from serving.protocols import Backend, Device, Precision
from tests.serving.hosting import MINILM, NO_MINILM, NO_RERANKER, REPOSITORY, RERANKER

SAMPLES = REPOSITORY / "data" / "samples"

pytestmark = pytest.mark.backends

needs_minilm = pytest.mark.skipif(not MINILM.is_dir(), reason=NO_MINILM)
needs_reranker = pytest.mark.skipif(not RERANKER.is_dir(), reason=NO_RERANKER)

BACKENDS = [
    pytest.param(Backend.TORCH, id="torch"),
    pytest.param(Backend.OPENVINO, id="openvino"),
    pytest.param(
        "cuda",
        id="torch on cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ),
]
PRECISIONS = [
    pytest.param(Precision.FLOAT32, 0.9995, id="float32"),
    pytest.param(Precision.BFLOAT16, 0.999, id="bfloat16"),
]

Loader = Callable[..., LoadedModel[Any, Any]]


@pytest.fixture(params=BACKENDS)
def load(request: pytest.FixtureRequest) -> Loader:
    """Loads an embedding model, or with `load=` another kind, on the backend in question."""

    def load_on_backend(
        source: Path, *, load: Loader = load_embedding_model, **how: Any
    ) -> LoadedModel[Any, Any]:
        if request.param == "cuda":
            return load(str(source), name="tested", device=Device.CUDA, **how)
        return load(str(source), name="tested", device=Device.CPU, backend=request.param, **how)

    return load_on_backend


def paragraphs(count: int) -> list[str]:
    """Real prose of 5 to 300 words, with headings and lists."""
    files = sorted([*SAMPLES.glob("*.md"), *SAMPLES.glob("*.txt")])
    found = [text.strip() for file in files for text in file.read_text().split("\n\n") if text.strip()]
    return found[:: max(1, len(found) // count)][:count]


def run(model: LoadedModel[Any, Any], inputs: list[Any], *, batch: int = 8) -> Rows:
    """Batches of neighbours in input order, so that lengths differ within each."""
    replica = model.replicas[0]
    tokens = replica.encode(inputs)
    batches = [tokens[start : start + batch] for start in range(0, len(tokens), batch)]
    return np.concatenate([replica.forward(replica.collate(each)) for each in batches])


def cosines(rows: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
    result: NDArray[np.float32] = (rows * expected).sum(axis=1) / lengths
    return result


@needs_minilm
@pytest.mark.parametrize(("precision", "least"), PRECISIONS)
def test_vectors_of_real_texts_agree_with_the_library(
    load: Loader, precision: Precision, least: float
) -> None:
    texts = paragraphs(40)
    expected = SentenceTransformer(str(MINILM), device="cpu", local_files_only=True).encode(texts)
    model = load(MINILM, precision=precision)
    rows = run(model, texts)
    assert rows.dtype == np.float32
    assert model.precision == precision.value
    assert cosines(rows, expected).min() >= least
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)


@needs_reranker
def test_scores_of_real_texts_agree_with_the_library(load: Loader) -> None:
    question = "When was the archive built, and who may enter it at night?"
    pairs = [(question, text) for text in paragraphs(40)]
    torch_model = load_reranking_model(
        str(RERANKER), name="oracle", device=Device.CPU, backend=Backend.TORCH, precision=Precision.FLOAT32
    )
    rows = run(load(RERANKER, load=load_reranking_model, precision=Precision.FLOAT32), pairs)
    np.testing.assert_allclose(rows, run(torch_model, pairs, batch=1), atol=1e-4)


@needs_minilm
@pytest.mark.parametrize(
    "text", ["", "Ωμέγα 漢字 🙂", "vault " * 600], ids=["empty", "other scripts", "too long"]
)
def test_an_unusual_text_gets_the_librarys_vector_alone_and_in_a_batch(load: Loader, text: str) -> None:
    expected = SentenceTransformer(str(MINILM), device="cpu", local_files_only=True).encode([text])
    model = load(MINILM, precision=Precision.FLOAT32)
    assert cosines(run(model, [text]), expected)[0] >= 0.9995
    assert cosines(run(model, ["The key hangs in the hall.", text])[1:], expected)[0] >= 0.9995


@needs_minilm
@pytest.mark.parametrize("pooling", ["cls", "max", "mean", "weightedmean", "lasttoken", ("cls", "mean")])
def test_every_pooling_agrees_with_the_library(
    load: Loader, pooling: str | tuple[str, ...], tmp_path: Path
) -> None:
    transformer = SentenceTransformer(str(MINILM), device="cpu", local_files_only=True)[0]
    pooled = Pooling(transformer.get_embedding_dimension(), pooling)
    torch.manual_seed(0)
    dense = Dense(pooled.get_embedding_dimension(), 96)
    library = SentenceTransformer(
        modules=[transformer, pooled, dense, Normalize()], device="cpu", truncate_dim=64
    )
    library.save(str(tmp_path), create_model_card=False)
    texts = paragraphs(12)
    model = load(tmp_path, precision=Precision.FLOAT32)
    assert model.card.dimensions == 64
    assert cosines(run(model, texts), library.encode(texts)).min() >= 0.9995


def tiny(
    folder: Path, configuration: Any, *, pooling: str, padding_side: str = "right"
) -> SentenceTransformer:
    """Random weights of a real architecture, which reads with MiniLM's tokenizer."""
    torch.manual_seed(0)
    AutoModel.from_config(configuration).save_pretrained(folder / "transformer")
    AutoTokenizer.from_pretrained(MINILM, padding_side=padding_side).save_pretrained(folder / "transformer")
    transformer = Transformer(str(folder / "transformer"), max_seq_length=128)
    library = SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_embedding_dimension(), pooling)], device="cpu"
    )
    library.save(str(folder / "model"), create_model_card=False)
    return library.eval()


SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 30_522,
}


@needs_minilm
@pytest.mark.parametrize(
    ("configuration", "pooling", "padding_side"),
    [
        pytest.param(XLMRobertaConfig(**SMALL, pad_token_id=0), "cls", "right", id="XLM-RoBERTa"),
        pytest.param(
            ModernBertConfig(**SMALL, pad_token_id=0, local_attention=16), "mean", "right", id="ModernBERT"
        ),
        pytest.param(
            Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16),
            "lasttoken",
            "left",
            id="Qwen3, padded left",
        ),
    ],
)
def test_other_architectures_agree_with_the_library(
    load: Loader, configuration: Any, pooling: str, padding_side: str, tmp_path: Path
) -> None:
    library = tiny(tmp_path, configuration, pooling=pooling, padding_side=padding_side)
    texts = paragraphs(12)
    model = load(tmp_path / "model", precision=Precision.FLOAT32)
    assert cosines(run(model, texts), library.encode(texts)).min() >= 0.9995


@needs_minilm
@pytest.mark.parametrize(
    ("configuration", "reason"),
    [
        pytest.param(BigBirdConfig(**SMALL), "cannot convert it", id="cannot be traced"),
        pytest.param(
            LongformerConfig(**SMALL, attention_window=[8, 8, 8], max_position_embeddings=200),
            "differ from torch's",
            id="traces to a graph that is wrong for other lengths",
        ),
    ],
)
def test_a_model_that_openvino_cannot_compute_runs_in_torch_only_when_that_may_be_chosen(
    configuration: Any, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library = tiny(tmp_path, configuration, pooling="mean")
    source = str(tmp_path / "model")
    with pytest.raises(ModelLoadError, match=reason):
        load_embedding_model(
            source, name="odd", device=Device.CPU, backend=Backend.OPENVINO, precision=Precision.FLOAT32
        )
    with caplog.at_level(logging.WARNING, logger="strongroom.models"):
        model = load_embedding_model(source, name="odd", device=Device.CPU, precision=Precision.FLOAT32)
    assert model.backend == "torch"
    [warning] = [record for record in caplog.records if record.name == "strongroom.models"]
    assert warning.message == "openvino_not_used"
    assert reason in warning.__dict__["reason"]
    texts = paragraphs(8)
    assert cosines(run(model, texts), library.encode(texts)).min() >= 0.9995
