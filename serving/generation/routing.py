"""Chooses the engine that a prompt goes to: one that holds its beginning in its prefix cache, unless it is busy.

Pure: no clock, no I/O. A prompt is cut into blocks, and each block's hash covers everything before it too, so
that one hash says "this whole beginning". Per engine a `PrefixCache` guesses which beginnings its own cache
holds. What many prompts begin with (a system prompt) is on every engine soon and says nothing about where a
prompt belongs: `SharedHead` finds it in the traffic itself, and matching starts behind it.

The choice weighs the prompt to compute here against the work that is here already, as Preble does (Srivatsa et
al., 2024). Figures: tests/bench/prefix_routing.py.
"""

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

BLOCK_BYTES = 512
"""About 128 tokens of English, eight blocks of vLLM's. Smaller ones cost more time than they find hits."""

MAX_BLOCKS = 1024
"""Of a prompt, 512 kB: what comes later does not change where it belongs."""

HEAD_BLOCKS = 64
"""The longest shared head that is looked for, 32 kB."""

RECENT_PROMPTS = 256
"""Among so many is told what prompts share, and how much each engine was given."""

LEAST_PROMPTS = 8
"""A head is not called shared before more prompts than this had it."""

MISSING_WEIGHT = 8.0
"""Of a block to compute here, against one that waits here already. A prompt that leaves its cache is computed
once more now, and its next turns want it in two caches. 1 gives .79 of the hits that one cache of the whole pool's
size would give, 2: .87, 4: .93, 8: .96, 16: .99 with 1.3 times the mean load on an engine for minutes."""

REQUEST_BLOCKS = 8.0
"""What a request that is being answered costs the others on its engine, in blocks of prompt to compute."""

RECENT_WEIGHT = 0.05
"""Of the blocks that an engine was given lately. Engines that idle at the same moment are not equals: without
it, the first of them would be given all that comes one by one."""

FULL_CACHE = 0.9
"""An engine whose running requests fill more than this share of its cache is about to preempt some."""


def block_hashes(prompt: bytes, salt: str) -> list[int]:
    """One hash for each whole block; each depends on all bytes before it, and on who may share the cache.

    Python's own hash (SipHash, keyed anew in each process) takes a quarter of blake2b's time: 8 against 30
    microseconds for 16 kB. A collision would cost one cache miss.
    """
    chained = hash(salt)
    hashes = []
    end = min(len(prompt), MAX_BLOCKS * BLOCK_BYTES)
    for start in range(0, end - BLOCK_BYTES + 1, BLOCK_BYTES):
        chained = hash((chained, prompt[start : start + BLOCK_BYTES]))
        hashes.append(chained)
    return hashes


class PrefixCache:
    """What an engine's prefix cache is thought to hold: least recently used blocks leave first, as in vLLM.

    A block is never newer than the one before it, so what is held of a prompt is always its beginning.
    """

    def __init__(self, capacity: int) -> None:
        """`capacity` in blocks; it may be changed."""
        self.capacity = capacity
        self._held: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def depth(self, hashes: Sequence[int]) -> int:
        """How many of the prompt's first blocks are held."""
        held = self._held
        return bisect_left(hashes, 1, key=lambda block: block not in held)

    def hold(self, hashes: Sequence[int]) -> None:
        held = self._held
        # The last block first: it becomes the oldest of them, and leaves before those that it rests on.
        for block in reversed(hashes):
            held[block] = None
            held.move_to_end(block)
        while len(held) > self.capacity:
            held.popitem(last=False)

    def clear(self) -> None:
        """For an engine that was started anew."""
        self._held.clear()


class SharedHead:
    """Finds how much of a prompt's beginning is shared by so many that it cannot decide where a prompt goes."""

    def __init__(self) -> None:
        self._recent: deque[Sequence[int]] = deque()
        self._counts: dict[int, int] = {}

    def note(self, hashes: Sequence[int]) -> None:
        head = hashes[:HEAD_BLOCKS]
        counts = self._counts
        self._recent.append(head)
        for block in head:
            counts[block] = counts.get(block, 0) + 1
        if len(self._recent) > RECENT_PROMPTS:
            for block in self._recent.popleft():
                if counts[block] == 1:
                    del counts[block]
                else:
                    counts[block] -= 1

    def length(self, hashes: Sequence[int], engines: int) -> int:
        """In blocks. What more than one engine's part of all prompts begins with, one engine could not serve."""
        needed = max(LEAST_PROMPTS, len(self._recent) / engines)
        counts = self._counts
        return bisect_left(hashes[:HEAD_BLOCKS], 1, key=lambda block: counts.get(block, 0) <= needed)


@dataclass(slots=True, eq=False)
class Standing:
    """How an engine stands to the others, for one to be chosen. Blocks are those of `block_hashes`."""

    cache: PrefixCache
    in_flight: int = 0
    elsewhere: int = 0
    """Requests that it has from others than us."""
    unanswered_blocks: int = 0
    """Of prompts that it was sent and has not begun to answer, those that it must compute."""
    recent_blocks: float = 0.0
    """Blocks that it was given to compute lately."""
    cache_used: float = 0.0
    """By running requests, 0..1, as the engine tells."""

    def cost(self, missing: int) -> float:
        """Of `missing` blocks more, in blocks."""
        cost = (
            MISSING_WEIGHT * missing
            + self.unanswered_blocks
            + REQUEST_BLOCKS * (self.in_flight + self.elsewhere)
            + RECENT_WEIGHT * self.recent_blocks
        )
        return 2 * cost if self.cache_used > FULL_CACHE else cost


@dataclass(frozen=True, slots=True)
class Route:
    """A choice. `matched` of `blocks` are thought to be in the engine's cache, the shared head among them."""

    index: int
    blocks: int
    matched: int

    @property
    def missing(self) -> int:
        return self.blocks - self.matched


@dataclass(slots=True)
class Router:
    """Routes prompts among the engines of one pool."""

    head: SharedHead = field(default_factory=SharedHead)

    def route(self, hashes: Sequence[int], standings: Sequence[Standing]) -> Route:
        """Chooses among `standings`, of which there is at least one, and remembers the prompt as sent there."""
        shared = self.head.length(hashes, len(standings)) if len(standings) > 1 else 0
        depths = [standing.cache.depth(hashes) for standing in standings]
        blocks = len(hashes)
        costs = [
            standing.cost(blocks - max(depth, shared))
            for standing, depth in zip(standings, depths, strict=True)
        ]
        index = costs.index(min(costs))
        route = Route(index, blocks, depths[index])
        self.head.note(hashes)
        keep = 1 - 1 / RECENT_PROMPTS
        for standing in standings:
            standing.recent_blocks *= keep
        chosen = standings[index]
        chosen.recent_blocks += route.missing
        chosen.cache.hold(hashes)
        return route
