"""vLLM's own prefix-cache hits on a recorded trace, sent through the api role, beside those of an endless cache."""

import json
import time
from collections.abc import Sequence

import httpx
import orjson

from tests.bench.clients import Wire
from tests.bench.corpora import SHARED
from tests.bench.figures import Figure, Samples, skipped
from tests.bench.prompt_layout import prefix_counters
from tests.bench.run import Run

SAYS = "prefix cache: hits of vLLM on a trace, of those that a cache without end would have"
TRACE = SHARED / "chat_load" / "mooncake_conversation_trace.jsonl"
BLOCK_TOKENS = 128
"""Of one block of the trace, which has 512: vLLM on a CPU caches blocks of 128."""
LONGEST_BLOCKS = 24
"""Longer prompts of the trace are left out: with their answer they must fit the demo model's context."""
PATH = "/v1/completions"


def measure(run: Run) -> list[Figure]:
    """One request after the other. A block of the trace is a block of token ids that are its own."""
    if not TRACE.is_file():
        return [skipped("prefix_trace", SAYS, f"{TRACE.name} is not beside the repository")]
    prompts = _prompts(8 if run.sizes.is_quick else 60)
    url, key = run.stack.engine_address()
    seconds: list[float] = []
    with (
        Wire(run.stack.url, run.stack.key) as wire,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as engine,
    ):
        model = engine.get("/v1/models").raise_for_status().json()["data"][0]["id"]
        before = prefix_counters(engine)
        for blocks in run.progress.track(prompts, description="prefix trace"):
            tokens = [token for block in blocks for token in _tokens_of(block)]
            body = {"model": model, "prompt": tokens, "max_tokens": 1, "temperature": 0}
            started = time.perf_counter()
            wire.post(PATH, orjson.dumps(body))
            seconds.append(time.perf_counter() - started)
        after = prefix_counters(engine)
    hits = (after[1] - before[1]) / (after[0] - before[0])
    ideal = _ideal(prompts)
    return [
        Figure(
            "prefix_trace",
            SAYS,
            measured=round(hits / ideal, 3),
            samples={"one token": Samples.milliseconds(seconds)},
            facts={
                "prompts": len(prompts),
                "prompt tokens": after[0] - before[0],
                "vLLM's hit share": round(hits, 3),
                "ideal hit share": round(ideal, 3),
            },
        )
    ]


def _prompts(count: int) -> list[list[int]]:
    """The block ids of the first prompts that are short enough."""
    with TRACE.open() as lines:
        every = (json.loads(line)["hash_ids"] for line in lines)
        short = (blocks for blocks in every if 1 < len(blocks) <= LONGEST_BLOCKS)
        return [blocks for blocks, _ in zip(short, range(count), strict=False)]


def _tokens_of(block: int) -> list[int]:
    """Ids of ordinary tokens, in an order that no other block has."""
    return [1_000 + (block * 7_919 + place * (block % 97 + 1)) % 40_000 for place in range(BLOCK_TOKENS)]


def _ideal(prompts: Sequence[Sequence[int]]) -> float:
    """The share of blocks that an earlier prompt began with in the same way."""
    known: set[tuple[int, ...]] = set()
    hit = 0
    for blocks in prompts:
        beginnings = [tuple(blocks[: place + 1]) for place in range(len(blocks))]
        hit += sum(beginning in known for beginning in beginnings)
        known.update(beginnings)
    return hit / sum(map(len, prompts))
