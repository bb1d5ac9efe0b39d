"""How long a batch takes, learned from those that ran. For the batcher's forecast.

The model is `seconds = overhead_s + token_s * padded tokens`. It is fitted by recursive least squares on relative
errors, since a batch of 4 ms tells as much as one of 100 ms, with directional forgetting: a batch makes older ones
forgotten only as far as it speaks of the same thing. With plain forgetting a thousand short queries would wipe out
what is known of long batches. Source: Cao and Schwartz, "A directional forgetting algorithm based on the
decomposition of the information matrix", Automatica 36 (2000).
"""

from typing import Self

FORGETTING = 0.9
"""What an older batch still weighs beside a new one like it: the memory is about ten batches."""
LARGEST_ERROR = 1.0
"""Of the expected time. A batch that stalls, for whatever reason, counts as one that took twice as long."""
_SHORTEST_S = 1e-6
_CHEAPEST_TOKEN_S = 1e-9


class CostModel:
    """Seconds of a batch. Not thread-safe."""

    def __init__(self, *, overhead_s: float, token_s: float) -> None:
        """Begins with a guess, which the first batches may correct by as much as it is."""
        self.overhead_s = max(overhead_s, 0.0)
        self.token_s = max(token_s, _CHEAPEST_TOKEN_S)
        # The information matrix ((p, q), (q, r)) of overhead_s and token_s.
        self._p = 1 / max(self.overhead_s, 1e-3) ** 2
        self._q = 0.0
        self._r = 1 / self.token_s**2

    @classmethod
    def from_two(cls, small: tuple[int, float], large: tuple[int, float]) -> Self:
        """The line through two batches, each given as (padded tokens, seconds); `large` has more tokens.

        A tenth of the large batch's time is put down to its tokens at least: noise can hide the slope of a device
        that is all overhead.
        """
        (small_tokens, small_s), (large_tokens, large_s) = small, large
        slope = (large_s - small_s) / (large_tokens - small_tokens)
        token_s = min(max(slope, 0.1 * large_s / large_tokens), large_s / large_tokens)
        return cls(overhead_s=large_s - token_s * large_tokens, token_s=token_s)

    def seconds(self, padded_tokens: float, *, batches: float = 1.0) -> float:
        """Of so many tokens, spread over so many batches."""
        return batches * self.overhead_s + padded_tokens * self.token_s

    def tokens_within(self, seconds: float) -> int:
        """The most padded tokens of one batch that takes so long; 0 when the overhead alone takes longer."""
        return max(0, int((seconds - self.overhead_s) / self.token_s))

    def learn(self, padded_tokens: int, seconds: float) -> None:
        """From one batch that ran."""
        expected = max(self.seconds(padded_tokens), _SHORTEST_S)
        error = min(max((seconds - expected) / expected, -LARGEST_ERROR), LARGEST_ERROR)
        x, y = 1 / expected, padded_tokens / expected
        seen_x, seen_y = self._p * x + self._q * y, self._q * x + self._r * y
        forgotten = (1 - FORGETTING) / (seen_x * x + seen_y * y)
        self._p += x * x - forgotten * seen_x * seen_x
        self._q += x * y - forgotten * seen_x * seen_y
        self._r += y * y - forgotten * seen_y * seen_y
        determinant = self._p * self._r - self._q * self._q
        self.overhead_s = max(self.overhead_s + error * (self._r * x - self._q * y) / determinant, 0.0)
        self.token_s = max(
            self.token_s + error * (self._p * y - self._q * x) / determinant, _CHEAPEST_TOKEN_S
        )
