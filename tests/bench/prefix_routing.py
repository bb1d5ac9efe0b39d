"""How many prefix-cache hits routing keeps, and how evenly it loads: four engines with real block caches, simulated.

The requests are those of the Mooncake conversation trace (Qin et al., 2024): 12,031 within 59 minutes, with lengths
and, for each 512 tokens of a prompt, the id of its beginning up to there. A head of 600 characters is put before
all of them; the trace's own first block, the same everywhere, makes it about 2,650. Texts are made from the ids at
four bytes a token, and go through the gateway's own hashing and routing.

An engine is a least-recently-used cache of blocks and a queue: prompts are computed one after the other, 51 ms for
512 tokens that are not in the cache (10,000 tokens/s), and answers are written side by side, 20 ms a token. So the
pool is about half busy. Each cache holds a quarter of the trace's distinct blocks.

The ideal is one cache with the capacity of all four, that every request goes through. Hits and the ideal leave out
the block that all requests share: any routing has it.
"""

import heapq
import json
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from rich.console import Console

from serving.generation.routing import PrefixCache, Router, Standing, block_hashes
from tests.bench import corpora, machine
from tests.bench.figures import Bound, Figure, Samples, failed, skipped
from tests.bench.report import show

NAME = "prefix_routing"
SAYS = "prefix-cache hits that routing keeps, of those that one cache of the pool's size would have"
SAYS_BUSIEST = "the busiest engine's requests, of the mean, with prefix routing"

TRACE = corpora.SHARED / "chat_load" / "mooncake_conversation_trace.jsonl"
ENGINES = 4
BLOCK_TOKENS = 512
BYTES_A_TOKEN = 4
HEAD_BYTES = 600
CACHE_SHARE = 0.25
"""Of the trace's distinct blocks, in each engine's cache."""
COMPUTE_S = 0.051
TOKEN_S = 0.020

HITS = Bound(0.90, is_upper=False)
BUSIEST = Bound(1.25, is_upper=True)


@dataclass(frozen=True, slots=True)
class Call:
    """A request of the trace. `ids`: of the prompt's blocks; `hashes`: what the gateway makes of its text."""

    at_s: float
    ids: tuple[int, ...]
    output_tokens: int
    hashes: list[int]


@dataclass(frozen=True)
class Simulated:
    """What came of one way of routing. `hits` in blocks, without the one that all share."""

    hits: int
    requests: list[int]
    computed: list[int]
    first_token_s: list[float]
    decision_s: list[float]

    @property
    def busiest(self) -> float:
        """The most requests that an engine had, of the mean."""
        return max(self.requests) * len(self.requests) / sum(self.requests)

    @property
    def busiest_computing(self) -> float:
        return max(self.computed) * len(self.computed) / sum(self.computed)


class BlockCache:
    """An engine's prefix cache: finds the longest beginning, keeps what was used last."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held: OrderedDict[int, None] = OrderedDict()

    def serve(self, ids: Sequence[int]) -> int:
        """How many of the first blocks were there; then all are."""
        found = next((place for place, block in enumerate(ids) if block not in self._held), len(ids))
        for block in reversed(ids):
            self._held[block] = None
            self._held.move_to_end(block)
        while len(self._held) > self._capacity:
            self._held.popitem(last=False)
        return found


Policy = Callable[[Call, Sequence[Standing]], tuple[int, int]]
"""The engine's index, and the blocks that it is thought to have to compute."""


def prefix_aware() -> Policy:
    router = Router()

    def choose(call: Call, standings: Sequence[Standing]) -> tuple[int, int]:
        route = router.route(call.hashes, standings)
        return route.index, route.missing

    return choose


def plain_prefix() -> Policy:
    """The longest beginning wins, whoever else has it; the least busy engine when none has any."""

    def choose(call: Call, standings: Sequence[Standing]) -> tuple[int, int]:
        depths = [standing.cache.depth(call.hashes) for standing in standings]
        deepest = max(depths)
        index = depths.index(deepest) if deepest else _least_busy(standings)
        standings[index].cache.hold(call.hashes)
        return index, len(call.hashes) - deepest

    return choose


def least_busy() -> Policy:
    return lambda call, standings: (_least_busy(standings), len(call.hashes))


def round_robin() -> Policy:
    turn = count()
    return lambda call, standings: (next(turn) % len(standings), len(call.hashes))


POLICIES: dict[str, Callable[[], Policy]] = {
    "ours": prefix_aware,
    "prefix, head not ignored": plain_prefix,
    "least busy": least_busy,
    "round robin": round_robin,
}


def measure() -> list[Figure]:
    """Two figures: hits kept, and how even the load is. Needs no stack and takes about half a minute."""
    if not TRACE.exists():
        why = f"{TRACE.name} is not there"
        return [skipped(NAME, SAYS, why), skipped(f"{NAME}_busiest", SAYS_BUSIEST, why)]
    calls = list(read_calls(TRACE))
    capacity = int(CACHE_SHARE * len({block for call in calls for block in call.ids}))
    ideal = ideal_hits(calls, capacity=ENGINES * capacity)
    if not ideal:
        return [failed(NAME, SAYS, "the trace repeats nothing")]
    results = {name: simulate(calls, policy(), capacity=capacity) for name, policy in POLICIES.items()}
    ours = results["ours"]
    facts: dict[str, float | str] = {
        "blocks in each cache": capacity,
        "ideal hits, of all blocks": round(ideal / sum(len(call.ids) - 1 for call in calls), 3),
        "busiest by prompt computed": round(ours.busiest_computing, 3),
    }
    for name, result in results.items():
        facts[f"{name}: hits of the ideal"] = round(result.hits / ideal, 3)
        facts[f"{name}: busiest of the mean"] = round(result.busiest, 3)
    return [
        Figure(
            NAME,
            SAYS,
            measured=round(ours.hits / ideal, 4),
            bound=HITS,
            facts=facts,
            samples={name: Samples(tuple(each.first_token_s), "s") for name, each in results.items()},
        ),
        Figure(
            f"{NAME}_busiest",
            SAYS_BUSIEST,
            measured=round(ours.busiest, 4),
            bound=BUSIEST,
            facts={"decision p50, us": _microseconds(ours.decision_s)},
        ),
    ]


def simulate(calls: Sequence[Call], choose: Policy, *, capacity: int) -> Simulated:
    """Plays the calls at their own times. `capacity` of each engine's cache, in blocks of the trace."""
    caches = [BlockCache(capacity) for _ in range(ENGINES)]
    known = capacity * BLOCK_TOKENS * BYTES_A_TOKEN // 512
    standings = [Standing(PrefixCache(known)) for _ in range(ENGINES)]
    free_at = [0.0] * ENGINES
    ends: list[tuple[float, int, int, int]] = []
    order = count()
    result = Simulated(0, [0] * ENGINES, [0] * ENGINES, [], [])
    hits = 0
    for call in calls:
        while ends and ends[0][0] <= call.at_s:
            _, _, index, answered_blocks = heapq.heappop(ends)
            if answered_blocks >= 0:
                standings[index].unanswered_blocks -= answered_blocks
            else:
                standings[index].in_flight -= 1
        started = time.perf_counter()
        index, missing = choose(call, standings)
        result.decision_s.append(time.perf_counter() - started)
        found = caches[index].serve(call.ids)
        hits += max(0, found - 1)
        result.requests[index] += 1
        result.computed[index] += len(call.ids) - found
        standings[index].in_flight += 1
        standings[index].unanswered_blocks += missing
        free_at[index] = max(free_at[index], call.at_s) + COMPUTE_S * (len(call.ids) - found)
        result.first_token_s.append(free_at[index] - call.at_s)
        heapq.heappush(ends, (free_at[index], next(order), index, missing))
        heapq.heappush(ends, (free_at[index] + TOKEN_S * call.output_tokens, next(order), index, -1))
    return Simulated(hits, result.requests, result.computed, result.first_token_s, result.decision_s)


def ideal_hits(calls: Sequence[Call], *, capacity: int) -> int:
    cache = BlockCache(capacity)
    return sum(max(0, cache.serve(call.ids) - 1) for call in calls)


def read_calls(path: Path) -> Iterator[Call]:
    head = random.Random(corpora.SEED).randbytes(HEAD_BYTES)
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        text = head + b"".join(_text_of(block) for block in row["hash_ids"])
        yield Call(
            row["timestamp"] / 1000, tuple(row["hash_ids"]), row["output_length"], block_hashes(text, "salt")
        )


def _text_of(block: int) -> bytes:
    return random.Random(block).randbytes(BLOCK_TOKENS * BYTES_A_TOKEN)


def _least_busy(standings: Sequence[Standing]) -> int:
    return min(range(len(standings)), key=lambda index: standings[index].in_flight)


def _microseconds(seconds: Sequence[float]) -> float:
    return round(1e6 * sorted(seconds)[len(seconds) // 2], 1)


if __name__ == "__main__":
    show(Console(), machine.describe(), measure())
