"""Who waits for which texts: requests, texts in flight and the lanes' queues. The batcher's state, behind its lock.

Whenever the lock is free:

1. A text in flight is in exactly one place: its lane's queue, a prefetched batch, a running batch, or a batch whose
   outcome is being delivered. `Waiting.find` finds it from when it is enqueued until its outcome is known or nobody
   wants it.
2. A queued text has callers. One in a batch may have none any more.
3. A request is in `text.callers` exactly if the text is in `request.texts`. One that is over is in none.
"""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from serving.batching.choice import lanes_above
from serving.batching.model import Input, Rows, Tokens
from serving.protocols import Lane


@dataclass
class LaneCounts:
    """What happened in a lane, for metrics. The numbers only grow."""

    refused_requests: int = 0
    """At the door: the queue was full, or they could not have been done in time."""
    remembered_texts: int = 0
    """Answered from the cache."""
    joined_texts: int = 0
    """Answered by the computation of an equal text that was in flight."""
    departed_texts: int = 0
    """Never computed, because nobody waited for them any more."""
    expired_texts: int = 0
    """Never computed, because their last caller's deadline passed."""


@dataclass(frozen=True)
class Missing:
    """An input that has to be computed: neither remembered nor in flight when its request came."""

    text: Input
    indices: list[int]
    """Where it stands in its request."""
    key: bytes | None
    """In the row cache."""


@dataclass(eq=False)
class Request:
    """One caller's texts, from admission until the caller has the rows or an error, or left."""

    lane: Lane
    cache_salt: str
    truncate: bool
    deadline: float
    """By the batcher's clock."""
    admitted_at: float
    result: "asyncio.Future[Rows]"
    rows: Rows
    unfinished: int
    """Rows that are not there yet."""
    texts: "set[Text]" = field(default_factory=set)
    """In flight."""
    expected_texts: int = 0
    """Being tokenised; they count as waiting."""
    expected_tokens: float = 0.0
    encoded: list[tuple[Missing, Tokens]] = field(default_factory=list)
    """Tokenised and not yet enqueued."""
    promised: bool = False
    """It was foretold to meet its deadline."""
    over: bool = False
    """It has its outcome, or its caller left."""


@dataclass(eq=False)
class Text:
    """One text in flight, for all who asked for it."""

    asked: tuple[str, Input]
    """The cache salt and the input: callers who agree in both share the row."""
    key: bytes | None
    tokens: Tokens
    lane: Lane
    since: float
    """When the first who asked for it was admitted."""
    callers: dict[Request, list[int]] = field(default_factory=dict)
    """Who waits for it, and at which indices of their rows."""
    queued: bool = False
    """It stands in its lane's queue; else it is in a batch."""
    expired: bool = False
    """The last caller left because the deadline passed."""
    failed_replicas: int = 0

    def __len__(self) -> int:
        return len(self.tokens)


class LaneQueue:
    """Texts of one lane in order of arrival, what is known of their size, and since when they are passed over."""

    def __init__(self) -> None:
        self.texts: OrderedDict[Text, None] = OrderedDict()
        self.tokens = 0
        self.expected_texts = 0
        self.expected_tokens = 0.0
        self.passed_over_since = math.inf
        """When the lane last got a batch or, if that is later, stopped being empty. Infinite while empty."""
        self.tokens_per_character = 0.25
        self.padding = 1.0
        """Padded tokens to a token, in the lane's latest batches."""

    def __len__(self) -> int:
        """Texts that no batch has taken, with those that are being tokenised."""
        return len(self.texts) + self.expected_texts

    def add(self, text: Text, now: float) -> None:
        """At the end."""
        self.passed_over_since = min(self.passed_over_since, now)
        self.texts[text] = None
        text.queued = True
        self.tokens += len(text)

    def put_back(self, text: Text, since: float) -> None:
        """At the front: a batch had taken it and does not run. The lane counts as passed over since `since`."""
        self.add(text, since)
        self.texts.move_to_end(text, last=False)

    def remove(self, text: Text) -> None:
        del self.texts[text]
        text.queued = False
        self.tokens -= len(text)
        if not self.texts:
            self.passed_over_since = math.inf

    def take(self, texts: Iterable[Text], now: float) -> None:
        """For a batch: the time that the lane is passed over starts again."""
        for text in texts:
            self.remove(text)
        if self.texts:
            self.passed_over_since = now

    def expected_tokens_of(self, text: Input, max_tokens: int) -> float:
        """Before it is tokenised."""
        return min(2 + _characters(text) * self.tokens_per_character, max_tokens)

    def learn_tokens(self, text: Input, tokens: int) -> None:
        """From a text that was tokenised; 2 special tokens are in each."""
        ratio = max(tokens - 2, 0) / max(_characters(text), 1)
        self.tokens_per_character += 0.05 * (ratio - self.tokens_per_character)

    def learn_padding(self, tokens: int, padded_tokens: int) -> None:
        """From a batch that ran."""
        self.padding += 0.2 * (padded_tokens / max(tokens, 1) - self.padding)


def _characters(text: Input) -> int:
    return len(text) if isinstance(text, str) else sum(map(len, text))


class Waiting:
    """All requests and texts of a batcher. Not thread-safe."""

    def __init__(self, counts: Mapping[Lane, LaneCounts]) -> None:
        self.counts = counts
        self.lanes = {lane: LaneQueue() for lane in Lane}
        self.requests: set[Request] = set()
        """Whose calls have not returned."""
        self._in_flight: dict[tuple[str, Input], Text] = {}

    def find(self, cache_salt: str, text: Input) -> Text | None:
        """The text in flight that gives the row."""
        return self._in_flight.get((cache_salt, text))

    def add(self, request: Request) -> None:
        """Its texts count as waiting while they are tokenised."""
        self.requests.add(request)
        queue = self.lanes[request.lane]
        queue.expected_texts += request.expected_texts
        queue.expected_tokens += request.expected_tokens

    def enqueue_encoded(self, request: Request, now: float) -> None:
        """What is tokenised of the request waits for a batch, or joins what came while it was tokenised."""
        if request.over:
            return
        queue = self.lanes[request.lane]
        for one, tokens in request.encoded:
            queue.learn_tokens(one.text, len(tokens))
            text = self.find(request.cache_salt, one.text)
            if text is None:
                text = Text(
                    (request.cache_salt, one.text), one.key, tokens, request.lane, request.admitted_at
                )
                text.callers[request] = one.indices
                request.texts.add(text)
                self._in_flight[text.asked] = text
                queue.add(text, now)
            else:
                self.join(request, text, one.indices, now)
        self._expect_less(request, len(request.encoded))
        request.encoded = []

    def join(self, request: Request, text: Text, indices: list[int], now: float) -> None:
        """Another caller for a text in flight. One of a higher lane lifts it there."""
        self.counts[request.lane].joined_texts += len(indices)
        text.callers[request] = indices
        request.texts.add(text)
        if request.lane in lanes_above(text.lane):
            if text.queued:
                self.lanes[text.lane].remove(text)
                self.lanes[request.lane].add(text, now)
            text.lane = request.lane

    def forget(self, request: Request, now: float) -> None:
        """Nobody waits for its rows any more. Texts that others wait for too stay."""
        request.over = True
        expired = request.deadline <= now
        if expired:
            self.counts[request.lane].expired_texts += request.expected_texts
        else:
            self.counts[request.lane].departed_texts += request.expected_texts
        self._expect_less(request, request.expected_texts)
        request.encoded = []
        for text in request.texts:
            del text.callers[request]
            text.expired = expired
            if text.queued and not text.callers:
                self.lanes[text.lane].remove(text)
                self._drop(text)
        request.texts.clear()

    def forget_expired(self, texts: Iterable[Text], now: float) -> list[Request]:
        """Those callers of the texts whose deadline has passed."""
        expired = list({caller: None for text in texts for caller in text.callers if caller.deadline <= now})
        for request in expired:
            self.forget(request, now)
        return expired

    def put_back(self, texts: Sequence[Text], since: float) -> None:
        """The batch that took the texts does not run: those still wanted go to the front of their lanes."""
        for text in reversed(texts):
            if text.callers:
                self.lanes[text.lane].put_back(text, since)
            else:
                self._drop(text)

    def land(self, text: Text) -> None:
        """The outcome is known: who asks from now on, asks anew."""
        del self._in_flight[text.asked]

    def settle(self, text: Text, request: Request) -> bool:
        """The request has the text's row; whether that was the last one."""
        if request.over:
            return False
        request.unfinished -= len(text.callers.pop(request))
        request.texts.discard(text)
        if request.unfinished:
            return False
        request.over = True
        return True

    def land_failed(self, texts: Iterable[Text]) -> set[Request]:
        """The thread that had the texts died, at whatever point: those who wait for them."""
        for text in texts:
            if not text.queued and self._in_flight.get(text.asked) is text:
                del self._in_flight[text.asked]
        return {request for text in texts for request in text.callers}

    def _drop(self, text: Text) -> None:
        del self._in_flight[text.asked]
        counts = self.counts[text.lane]
        if text.expired:
            counts.expired_texts += 1
        else:
            counts.departed_texts += 1

    def _expect_less(self, request: Request, texts: int) -> None:
        """So many of its texts are not being tokenised any more."""
        if texts:
            queue = self.lanes[request.lane]
            tokens = request.expected_tokens * texts / request.expected_texts
            request.expected_texts -= texts
            request.expected_tokens -= tokens
            queue.expected_texts -= texts
            queue.expected_tokens -= tokens


def tell(told: Iterable[tuple[Request, Rows | Exception]]) -> None:
    """Hands outcomes to the callers' event loops, in one call a loop. Only a request's first outcome counts."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Request, Rows | Exception]]] = {}
    for request, outcome in told:
        by_loop.setdefault(request.result.get_loop(), []).append((request, outcome))
    for loop, outcomes in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, outcomes)
        except RuntimeError:
            continue  # The loop is closed: its callers wait for nothing any more.


def _resolve(outcomes: Iterable[tuple[Request, Rows | Exception]]) -> None:
    for request, outcome in outcomes:
        if request.result.done():
            continue
        if isinstance(outcome, Exception):
            request.result.set_exception(outcome)
        else:
            request.result.set_result(outcome)
