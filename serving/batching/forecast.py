"""When a request would be done if it came now: what admission, batch sizes and Retry-After go by. For the batcher."""

from collections.abc import Mapping, Sequence

from serving.batching.choice import Limits, lanes_above, lanes_below, share_left
from serving.batching.cost import CostModel
from serving.batching.replica import Batch
from serving.batching.waiting import LaneQueue
from serving.protocols import Lane

MISSES = 0.05
"""The share of admitted requests that may miss their deadline."""
_LEAST_CAUTION, _MOST_CAUTION = 1.05, 2.0


class Forecast:
    """Reads the queues and what runs, and learns what batches cost. Not thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self.cost = CostModel(overhead_s=0.01, token_s=1e-4)
        """A guess, until the model was warmed up."""
        self.caution = _LEAST_CAUTION
        """A request is admitted if it would make its deadline even when all took so many times as long."""
        self._limits = limits

    def batch_s(self) -> float:
        """The longest batch. Where overhead would make up more than half of it, it may take longer."""
        return max(self._limits.max_batch_s, 2 * self.cost.overhead_s)

    def token_budget(self) -> int:
        """Padded tokens of the largest batch."""
        return max(1, min(self._limits.max_batch_tokens, self.cost.tokens_within(self.batch_s())))

    def fills_a_batch(self, queue: LaneQueue) -> bool:
        """Whoever comes later could not join it any more."""
        return len(queue.texts) >= self._limits.max_batch_texts or queue.tokens >= self.token_budget()

    def finish_s(
        self,
        lane: Lane,
        *,
        texts: int = 0,
        tokens: float = 0.0,
        lanes: Mapping[Lane, LaneQueue],
        running: Sequence[Batch | None],
        prefetched: Sequence[Batch | None],
        at_once: int,
        now: float,
    ) -> float:
        """Seconds from now until so much more of the lane would be done; 0 when no replica works.

        `running` and `prefetched` have an entry for each working replica, `at_once` of which compute beside each other
        at full speed. The prediction assumes that nobody of a higher lane comes meanwhile.
        """
        if not running:
            return 0.0
        below = lanes_below(lane)
        ahead_s = sum(self._remaining_s(batch, now) for batch in running)
        ahead_s += sum(
            self.cost.seconds(batch.padded_tokens)
            for batch in prefetched
            if batch is not None and (batch.due or batch.lane not in below)
        )
        ahead_s += sum(
            self._seconds_of(
                lanes[other], len(lanes[other]), lanes[other].tokens + lanes[other].expected_tokens
            )
            for other in (*lanes_above(lane), lane)
        )
        own_s = self._seconds_of(lanes[lane], texts, tokens)
        share = share_left(
            [other for other in below if len(lanes[other])],
            patience_s=self._limits.patience_s,
            batch_s=self.batch_s() / at_once,
        )
        together_s = (ahead_s + own_s) / (at_once * share)
        # However many replicas there are, one of them runs the request's last batch, after what it runs now.
        alone_s = min(self._remaining_s(batch, now) for batch in running) + min(own_s, self.batch_s())
        return max(together_s, alone_s)

    def learn_promise(self, *, kept: bool) -> None:
        """Of an admitted request with a deadline. In a lasting overload texts of a common length overtake others.

        Caution settles where the share of misses is `MISSES`, as in stochastic approximation of a quantile.
        """
        step = -MISSES if kept else 1 - MISSES
        self.caution = min(max(self.caution + 0.01 * step, _LEAST_CAUTION), _MOST_CAUTION)

    def _seconds_of(self, queue: LaneQueue, texts: int, tokens: float) -> float:
        """So much of the lane, on one replica."""
        if not texts:
            return 0.0
        padded = tokens * queue.padding
        batches = max(padded / self.token_budget(), texts / self._limits.max_batch_texts, 1.0)
        return self.cost.seconds(padded, batches=batches)

    def _remaining_s(self, batch: Batch | None, now: float) -> float:
        """A batch that is overdue is expected to be so for as long again."""
        if batch is None:
            return 0.0
        return abs(self.cost.seconds(batch.padded_tokens) - (now - batch.started))
