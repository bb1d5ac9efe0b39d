"""What the batcher runs next: the policy of lanes, ageing and batches, as pure functions.

People go first; a lane that was passed over for longer than its patience gets one batch; a batch holds texts of like
length, since padding is computed in vain.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from serving.protocols import Lane


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much runs at once and how much may wait."""

    max_batch_tokens: int = 16_384
    """Padding counted. It bounds the device's memory; only a text that is longer by itself goes beyond it."""
    max_batch_texts: int = 256
    max_batch_s: float = 0.1
    """The longest batch, as far as the learned cost foretells: what a person waits for at most.

    It is short because that is free on a CPU, where batches of 2 cost as much a text as batches of 32, and a
    GPU fills its token budget in less.
    """
    sorting_window: int = 512
    """Texts among which those of like length are sought: choosing stays below a millisecond."""
    max_waiting_texts: int = 8_192
    """In each lane. The request that would go beyond it is refused at once."""
    patience_s: Mapping[Lane, float] = field(
        default_factory=lambda: {Lane.INTERACTIVE: math.inf, Lane.BULK: 1.0, Lane.BACKGROUND: 5.0}
    )
    """A lane that was passed over for so long gets the next batch, so that none starves behind people."""
    recovery_pause_s: float = 0.5
    """Between two attempts to bring a failing replica back."""


class Turn(NamedTuple):
    """Whose batch is next."""

    lane: Lane
    due: bool
    """Its patience is at an end: nobody who comes later goes before it."""


def choose_lane(
    passed_over_since: Mapping[Lane, float], *, now: float, patience_s: Mapping[Lane, float]
) -> Turn | None:
    """The lane passed over for longest beyond its patience, else the first with work; None without work.

    A lane's time counts from its last batch and not from its oldest text: bulk texts are always old, so by
    their age they would go first for ever.
    """
    ready = [lane for lane in Lane if passed_over_since[lane] < math.inf]
    impatient = [lane for lane in ready if now - passed_over_since[lane] >= patience_s[lane]]
    if impatient:
        return Turn(min(impatient, key=lambda lane: passed_over_since[lane]), due=True)
    return Turn(ready[0], due=False) if ready else None


def lanes_above(lane: Lane) -> list[Lane]:
    """Those that go before it."""
    return [*Lane][: [*Lane].index(lane)]


def lanes_below(lane: Lane) -> list[Lane]:
    """Those that it goes before."""
    return [*Lane][[*Lane].index(lane) + 1 :]


def share_left(below: Collection[Lane], *, patience_s: Mapping[Lane, float], batch_s: float) -> float:
    """Of the device's time, what remains when each of the lanes `below` gets a batch whenever its patience ends."""
    taken = sum(batch_s / (patience_s[lane] + batch_s) for lane in below)
    return max(1 - taken, 0.1)


def choose_batch(lengths: Sequence[int], *, token_budget: int, max_texts: int) -> list[int]:
    """Positions of the texts that run together, ascending: the first, and those nearest to it in length that fit.

    The first always runs, so that none waits for ever; its neighbours in length waste the least padding.
    """
    nearest_first = sorted(range(len(lengths)), key=lambda position: abs(lengths[position] - lengths[0]))
    chosen: list[int] = []
    longest = 0
    for position in nearest_first[:max_texts]:
        longest = max(longest, lengths[position])
        if chosen and longest * (len(chosen) + 1) > token_budget:
            break
        chosen.append(position)
    return sorted(chosen)
