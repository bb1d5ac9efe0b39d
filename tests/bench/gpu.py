"""Embedding and reranking on one machine's accelerator, through our batcher against the bare forward pass.

`python -m tests.bench.gpu` needs a GPU, no network and no model: without a folder it makes random weights of a real
architecture, which are as fast as trained ones. `--device cpu --quick` shows that it runs. Prints tables and JSON.
"""

import argparse
import asyncio
import itertools
import math
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from serving.batching.batcher import Batcher
from serving.batching.choice import Limits
from serving.batching.model import BatchModel, InputT
from serving.models.embedding import load_embedding_model
from serving.models.reranking import load_reranking_model
from serving.protocols import Backend, Device, Lane, Precision
from tests.bench import report
from tests.bench.corpora import SEED, paragraphs, prose
from tests.bench.figures import Bound, Figure, Samples

ARCHITECTURES = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
    "bert-base": {},
    "bge-large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
QUERY_EVERY_S = 0.05
QUERIES = 64
CANDIDATES = 20
"""Pairs of one query for the reranker."""
QUICK_REASON = "not judged: --quick"


@dataclass(frozen=True)
class Sizes:
    """How much is measured. `texts` that differ, so that none is computed once for two callers."""

    texts: int
    callers: int
    texts_a_call: int
    seconds: float


FULL = Sizes(texts=16_384, callers=16, texts_a_call=256, seconds=15.0)
QUICK = Sizes(texts=256, callers=4, texts_a_call=16, seconds=1.0)


@dataclass(frozen=True)
class Throughput:
    """What was measured of one model. Tokens are counted without padding."""

    raw_tokens_a_second: float
    tokens_a_second: float
    inputs_a_second: float
    alone_s: list[float]
    beside_bulk_s: list[float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Status 1 when a bound is missed."""
    options = _options(arguments)
    sizes = QUICK if options.quick else FULL
    loading: dict[str, Any] = {
        "device": Device(options.device),
        "precision": Precision(options.precision),
        "backend": Backend(options.backend),
        "threads": None,
        "replicas": 1,
        "allow_download": False,
    }
    texts = _texts(sizes.texts)
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as made:
        embedding_folder, reranker_folder = options.embedding, options.reranker
        if not (embedding_folder and reranker_folder):
            _make_models(Path(made), options.architecture)
        embedding = load_embedding_model(embedding_folder or f"{made}/embedding", name="embedding", **loading)
        described = _describe(embedding)
        questions = [[" ".join(text.split(" ", 12)[1:12])] for text in texts[:QUERIES]]
        embedded = asyncio.run(_measure(embedding.replicas, embedding.limits_hint, texts, questions, sizes))
        embedding.close()
        reranking = load_reranking_model(reranker_folder or f"{made}/reranker", name="reranker", **loading)
        pairs = [(f"which {number} of them", text) for number, text in enumerate(texts)]
        candidates = [[("which of these", text) for text in texts[:CANDIDATES]]] * QUERIES
        reranked = asyncio.run(_measure(reranking.replicas, reranking.limits_hint, pairs, candidates, sizes))
        reranking.close()
    figures = [*_figures("embedding", "texts", embedded), *_figures("rerank", "pairs", reranked)]
    if options.quick:
        figures = [replace(figure, is_judged=False, reason=QUICK_REASON) for figure in figures]
    report.show(Console(), described, figures)
    told = orjson.dumps({"machine": described, "figures": [figure.to_json() for figure in figures]})
    print(told.decode())
    if options.json:
        Path(options.json).write_bytes(told)
    return 1 if any(figure.is_ok is False for figure in figures) else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__)
    parser.add_argument("--embedding", default="", metavar="FOLDER", help="a sentence-transformers model")
    parser.add_argument("--reranker", default="", metavar="FOLDER", help="a cross-encoder")
    parser.add_argument(
        "--architecture",
        choices=ARCHITECTURES,
        default="bge-large",
        help="of random weights, without a folder",
    )
    parser.add_argument("--device", choices=list(Device), default=Device.AUTO.value)
    parser.add_argument("--precision", choices=list(Precision), default=Precision.AUTO.value)
    parser.add_argument("--backend", choices=list(Backend), default=Backend.AUTO.value)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, judges nothing")
    parser.add_argument("--json", default="", metavar="FILE", help="where to write the figures as well")
    return parser.parse_args(arguments)


async def _measure(
    replicas: Sequence[BatchModel[InputT]],
    batch_tokens: int | None,
    inputs: Sequence[InputT],
    queries: Sequence[Sequence[InputT]],
    sizes: Sizes,
) -> Throughput:
    limits = Limits() if batch_tokens is None else Limits(max_batch_tokens=batch_tokens)
    lengths = dict(zip(inputs, map(len, replicas[0].encode(inputs)), strict=True))
    raw = _raw_tokens_a_second(replicas[0], inputs, limits, sizes.seconds)
    async with Batcher(replicas, probe=queries[0][0], limits=limits) as batcher:
        alone_s = await _ask(batcher, queries, seconds=sizes.seconds / 5)
        done, took_s = await _load(batcher, inputs, sizes)
        beside_bulk_s, _ = await asyncio.gather(
            _ask(batcher, queries, seconds=sizes.seconds), _load(batcher, inputs, sizes)
        )
    return Throughput(
        raw_tokens_a_second=raw,
        tokens_a_second=sum(lengths[each] for each in done) / took_s,
        inputs_a_second=len(done) / took_s,
        alone_s=alone_s,
        beside_bulk_s=beside_bulk_s,
    )


def _raw_tokens_a_second(
    model: BatchModel[InputT], inputs: Sequence[InputT], limits: Limits, seconds: float
) -> float:
    """Of nothing but forward passes: tokenised, sorted by length and on the device before the clock starts."""
    tokens = sorted(model.encode(inputs), key=len)
    batches: list[tuple[int, Any]] = []
    while tokens:
        fitting = min(limits.max_batch_texts, max(1, limits.max_batch_tokens // len(tokens[-1])))
        batch, tokens = tokens[-fitting:], tokens[:-fitting]
        batches.append((sum(map(len, batch)), model.collate(batch)))
    for _, collated in batches[:: max(1, len(batches) // 8)]:
        model.forward(collated)
    # In mixed order: a run that ends in the middle has then had its share of each length.
    random.Random(SEED).shuffle(batches)
    started, done = time.perf_counter(), 0
    for count, collated in itertools.cycle(batches):
        model.forward(collated)
        done += count
        took_s = time.perf_counter() - started
        if took_s > seconds:
            return done / took_s
    return math.nan


async def _load(
    batcher: Batcher[InputT], inputs: Sequence[InputT], sizes: Sizes
) -> tuple[list[InputT], float]:
    """Bulk work from several callers at once. What was computed, and in how many seconds."""
    calls = itertools.cycle(
        inputs[start : start + sizes.texts_a_call] for start in range(0, len(inputs), sizes.texts_a_call)
    )
    done: list[InputT] = []
    started = time.perf_counter()

    async def call() -> None:
        while time.perf_counter() - started < sizes.seconds:
            now = next(calls)
            await batcher.run(now, lane=Lane.BULK, truncate=True)
            done.extend(now)

    await asyncio.gather(*(call() for _ in range(sizes.callers)))
    return done, time.perf_counter() - started


async def _ask(
    batcher: Batcher[InputT], queries: Sequence[Sequence[InputT]], *, seconds: float
) -> list[float]:
    """Queries on the interactive lane, at a constant rate. Seconds of each."""
    ends_at = time.perf_counter() + seconds

    async def one(query: Sequence[InputT]) -> float:
        started = time.perf_counter()
        await batcher.run(query, lane=Lane.INTERACTIVE, truncate=True)
        return time.perf_counter() - started

    asked: list[asyncio.Task[float]] = []
    for query in itertools.cycle(queries):
        if time.perf_counter() > ends_at:
            break
        asked.append(asyncio.create_task(one(query)))
        await asyncio.sleep(QUERY_EVERY_S)
    return list(await asyncio.gather(*asked))


def _figures(kind: str, unit: str, measured: Throughput) -> list[Figure]:
    return [
        Figure(
            f"gpu_{kind}",
            f"{kind}: tokens/s through the batcher, share of the bare forward pass",
            measured=round(measured.tokens_a_second / measured.raw_tokens_a_second, 3),
            bound=Bound(0.9, is_upper=False),
            facts={
                "tokens/s": round(measured.tokens_a_second),
                "tokens/s of the bare forward pass": round(measured.raw_tokens_a_second),
                f"{unit}/s": round(measured.inputs_a_second, 1),
            },
        ),
        Figure(
            f"gpu_{kind}_interactive",
            f"{kind}: a query beside bulk work, p95",
            unit="ms",
            measured=round(Samples.milliseconds(measured.beside_bulk_s).percentile(95), 2),
            samples={
                "alone": Samples.milliseconds(measured.alone_s),
                "beside bulk work": Samples.milliseconds(measured.beside_bulk_s),
            },
        ),
    ]


def _texts(count: int) -> list[str]:
    """Of 20 to 400 words, most of them some 110, as passages are."""
    chance = random.Random(SEED)
    words = prose(words=200_000)
    lengths = [min(400, max(20, round(chance.lognormvariate(4.6, 0.5)))) for _ in range(count)]
    whole = paragraphs(words, count=count, length=400)
    return [" ".join(text.split(" ", length)[:length]) for text, length in zip(whole, lengths, strict=True)]


def _make_models(folder: Path, architecture: str) -> None:
    """Random weights with a tokenizer trained on generated prose, as `embedding` and `reranker` in the folder."""
    torch.manual_seed(SEED)
    config = BertConfig(num_labels=1, **ARCHITECTURES[architecture])
    tokenizer = _tokenizer()
    BertModel(config).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    SentenceTransformer(str(folder / "encoder"), device="cpu").save(str(folder / "embedding"))
    BertForSequenceClassification(config).save_pretrained(folder / "reranker")
    tokenizer.save_pretrained(folder / "reranker")


def _tokenizer() -> Any:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=8_000, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(_lines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL},
    )


def _lines() -> Iterator[str]:
    words = prose(words=50_000)
    return (" ".join(words[start : start + 100]) for start in range(0, len(words), 100))


def _describe(loaded: Any) -> dict[str, Any]:
    """As tests.bench.machine does, without what a bare machine lacks."""
    has_gpu = torch.cuda.is_available()
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "accelerator": torch.cuda.get_device_name() if has_gpu else "no GPU",
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "sentence-transformers")},
        "device": loaded.device,
        "precision": loaded.precision,
        "backend": loaded.backend,
        "batch_tokens": loaded.limits_hint,
    }


if __name__ == "__main__":
    sys.exit(main())
