"""What encryption at rest costs: uploads, ingestion, searches and downloads with it and without, side by side.

`python -m tests.bench.encryption`: the api in this process, paragraphs as parser, bags of words as embeddings, so that
storage is as large a part of the time as it can be. The two take turns, so that a busy machine is busy for both.
"""

import asyncio
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from tests.app.alone import Alone, api_alone

ROUNDS = 3
FILES = 60
PARAGRAPHS = 12
LARGE_BYTES = 64 << 20
SEARCHES = 100
WORDS = [f"word{number}" for number in range(5_000)]


async def main() -> None:
    took: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    async with AsyncExitStack() as stack:
        pairs: dict[str, Alone] = {}
        for name, enabled in (("off", False), ("on", True)):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            pairs[name] = await stack.enter_async_context(api_alone(folder, enabled=enabled))
        for number in range(ROUNDS):
            for name in ("off", "on") if number % 2 else ("on", "off"):
                for what, seconds in (await _round(pairs[name], number)).items():
                    took[what][name].append(seconds)
    print(f"{'':34}{'off':>10}{'on':>10}{'added':>9}")
    for what, by_name in took.items():
        off, on = (statistics.median(by_name[name]) for name in ("off", "on"))
        print(f"{what:34}{off:>10.4f}{on:>10.4f}{on / off - 1:>9.1%}")


async def _round(alone: Alone, number: int) -> dict[str, float]:
    """Median seconds of each kind of work."""
    chance = random.Random(number)
    store = await alone.client.vector_stores.create(name="letters")
    texts = [
        "\n\n".join(" ".join(chance.choices(WORDS, k=120)) for _ in range(PARAGRAPHS)).encode()
        for _ in range(FILES)
    ]
    uploads, ids = [], []
    for text in texts:
        began = time.perf_counter()
        ids.append((await alone.client.files.create(file=("a.txt", text), purpose="assistants")).id)
        uploads.append(time.perf_counter() - began)
    for file_id in ids:
        await alone.client.vector_stores.files.create(store.id, file_id=file_id)
    ingestion = await _timed(alone.worker.drain)

    async def search() -> None:
        query = " ".join(chance.choices(WORDS, k=6))
        await alone.client.vector_stores.search(store.id, query=query, extra_body={"search_mode": "keyword"})

    await search()
    searches = sorted([await _timed(search) for _ in range(SEARCHES)])
    large = chance.randbytes(LARGE_BYTES // 2).hex().encode()
    began = time.perf_counter()
    large_id = (await alone.client.files.create(file=("large.txt", large), purpose="assistants")).id
    large_upload = time.perf_counter() - began
    return {
        "small upload, s (median)": statistics.median(uploads),
        "64 MiB upload, s": large_upload,
        "64 MiB download, s": await _timed(lambda: alone.http.get(f"/v1/files/{large_id}/content")),
        f"ingestion of {FILES} files, s": ingestion,
        "search by words, s (p50)": searches[len(searches) // 2],
        "search by words, s (p95)": searches[len(searches) * 95 // 100],
    }


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


if __name__ == "__main__":
    asyncio.run(main())
