"""The bare, length-sorted loop that a server's bulk throughput is held against: `python -m tests.bench.raw_loop`.

A JSON list of texts in, texts a second out: with the model, backend and replicas that the models role would choose,
from text to vectors, without lanes, queues and HTTP.
"""

import argparse
import queue
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import orjson

from app.settings import read_settings
from serving.batching.model import BatchModel, Tokens
from serving.models.embedding import load_embedding_model
from serving.protocols import Backend, Device, Precision

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, metavar="FOLDER")
    folder = parser.parse_args().model
    texts = orjson.loads(sys.stdin.buffer.read())
    settings = read_settings().models
    model = load_embedding_model(
        folder,
        name="raw",
        device=Device(settings.device),
        precision=Precision(settings.dtype),
        backend=Backend(settings.backend),
        threads=settings.threads or None,
        replicas=settings.replicas,
        allow_download=False,
    )
    _run(model.replicas, texts[: 4 * BATCH])  # warms up
    print(_run(model.replicas, texts))


def _run(replicas: Sequence[BatchModel[str]], texts: Sequence[str]) -> float:
    """Texts a second."""
    started = time.perf_counter()
    tokens = sorted(replicas[0].encode(texts), key=len)
    batches: queue.SimpleQueue[list[Tokens]] = queue.SimpleQueue()
    for start in range(0, len(tokens), BATCH):
        batches.put(tokens[start : start + BATCH])

    def work(replica: BatchModel[str]) -> None:
        with suppress(queue.Empty):
            while True:
                replica.forward(replica.collate(batches.get_nowait()))

    with ThreadPoolExecutor(len(replicas)) as pool:
        list(pool.map(work, replicas))
    return len(texts) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
