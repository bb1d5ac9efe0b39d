"""Who may go next while every engine of a model is full: lanes, fairness between tenants, and how long it takes.

Pure but for `Waiter.ticket`, which the one who waits awaits. The gateway holds requests here, and not in the
engines' own queues, so that an engine is chosen at the moment when it has room, and the next to go by who waits.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from serving.protocols import Lane

Entry = TypeVar("Entry", bound=Hashable)
Turn = TypeVar("Turn")

PATIENCE = {Lane.INTERACTIVE: 0, Lane.BULK: 8, Lane.BACKGROUND: 32}
"""So many go before a lane's first; then it is its turn. A ninth of the places is what people lose to bulk."""

TENANT_SHARE = 8
"""A tenant may have so many times the free places of a line waiting. Alone it fills 8/9 of them, two fill 16/17:
some are always left for one that comes new (dynamic thresholds, Choudhury and Hahne, 1998)."""

LEARNING_SHARE = 0.1
"""What the newest reply counts for in the mean time that a request holds its place."""


WAIT_MARGIN = 1.1
"""Better refused at once than waited for nothing: tenants that come later may go before. With four times the
requests that a pool can serve (363/s), 1.05 and 1.15 served 349 and 340/s, and only 1.15 none too late."""


class FairQueue(Generic[Entry]):
    """First come, first served within a tenant; between tenants, the one that was given least goes first.

    Virtual time as in weighted fair queueing (Demers et al., 1989): it goes on by what is given, shared by those
    who wait. A tenant is charged when its entry goes, so that who leaves unserved pays nothing.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, OrderedDict[Entry, float]] = {}
        self._given: dict[str, float] = {}
        """Of tenants that wait, and of some that did lately."""
        self._now = 0.0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, tenant: str, entry: Entry, *, cost: float) -> None:
        if tenant not in self._waiting:
            self._waiting[tenant] = OrderedDict()
            # Not having asked earns nothing for later.
            self._given[tenant] = max(self._given.get(tenant, 0.0), self._now)
        self._waiting[tenant][entry] = cost
        self._count += 1

    def pop(self) -> Entry:
        tenant = min(self._waiting, key=self._given.__getitem__)
        entry, cost = self._waiting[tenant].popitem(last=False)
        # At least by its part: were new tenants to start where the last one stood, they would starve the others.
        self._now = max(self._given[tenant], self._now + cost / len(self._waiting))
        self._given[tenant] += cost
        self._left(tenant)
        return entry

    def remove(self, tenant: str, entry: Entry) -> None:
        """Nothing, when it is not there."""
        if entry in self._waiting.get(tenant, ()):
            del self._waiting[tenant][entry]
            self._left(tenant)

    def own(self, tenant: str) -> int:
        return len(self._waiting.get(tenant, ()))

    def ahead(self, tenant: str) -> int:
        """How many go before one that this tenant would push now, if all cost the same."""
        own = self.own(tenant)
        return own + sum(
            min(len(others), own + 1) for name, others in self._waiting.items() if name != tenant
        )

    def _left(self, tenant: str) -> None:
        self._count -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant]
            if len(self._given) > 2 * len(self._waiting) + 16 or not self._waiting:
                self._forget()

    def _forget(self) -> None:
        """Tenants that are gone and owe nothing. When nobody waits, nobody does."""
        self._given = {
            name: given
            for name, given in self._given.items()
            if name in self._waiting or (self._waiting and given > self._now)
        }


class Line(Generic[Entry]):
    """Those who wait for one model, in lanes: a person before bulk work before the background, each in the end."""

    def __init__(self) -> None:
        self._queues: dict[Lane, FairQueue[Entry]] = {lane: FairQueue() for lane in Lane}
        self._passed = dict.fromkeys(Lane, 0)

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def length(self, lane: Lane) -> int:
        return len(self._queues[lane])

    def push(self, lane: Lane, tenant: str, entry: Entry, *, cost: float = 1.0) -> None:
        self._queues[lane].push(tenant, entry, cost=cost)

    def remove(self, lane: Lane, tenant: str, entry: Entry) -> None:
        self._queues[lane].remove(tenant, entry)

    def pop(self, may_go: Callable[[Lane], bool]) -> Entry | None:
        """The next of a lane that may go now; None when none waits there."""
        waiting = [lane for lane in Lane if self._queues[lane] and may_go(lane)]
        if not waiting:
            return None
        overdue = [lane for lane in waiting if self._passed[lane] >= PATIENCE[lane] > 0]
        chosen = (overdue or waiting)[0]
        for lane in waiting:
            self._passed[lane] += 1
        self._passed[chosen] = 0
        return self._queues[chosen].pop()

    def admits(self, lane: Lane, tenant: str, max_waiting: int) -> bool:
        """Whether one more may wait. Later lanes take no place from earlier ones."""
        queue = self._queues[lane]
        free = max_waiting - len(queue) - self._before(lane)
        return queue.own(tenant) < TENANT_SHARE * free

    def ahead(self, lane: Lane, tenant: str) -> int:
        """How many go before one that would be pushed now. What slips in by patience is left out."""
        return self._queues[lane].ahead(tenant) + self._before(lane)

    def _before(self, lane: Lane) -> int:
        lanes = list(Lane)
        return sum(len(self._queues[each]) for each in lanes[: lanes.index(lane)])


@dataclass(slots=True, eq=False)
class Waiter(Generic[Turn]):
    """One who waits. `ticket` gets what was found for it, or the reason why nothing will be."""

    lane: Lane
    tenant: str
    cost: float
    ticket: asyncio.Future[Turn]


@dataclass(slots=True)
class Pace:
    """Learns how long requests take, to tell how long the next ones wait and whether they come in time."""

    mean_held_s: float | None = None
    """From being given a place to leaving it."""
    mean_first_s: float = 0.0
    """From being given a place to the reply's first byte."""

    def note(self, held_s: float) -> None:
        if self.mean_held_s is None:
            self.mean_held_s = held_s
        else:
            self.mean_held_s += LEARNING_SHARE * (held_s - self.mean_held_s)

    def note_first(self, first_s: float) -> None:
        self.mean_first_s += LEARNING_SHARE * (first_s - self.mean_first_s)

    def wait_s(self, ahead: int, places: int) -> float | None:
        """Until one with `ahead` before it goes, all `places` being taken. None when nothing was learned yet.

        Little's law: so many places, each free again every `mean_held_s`.
        """
        if self.mean_held_s is None:
            return None
        return (ahead + 1) * self.mean_held_s / max(1, places)

    def is_in_time(self, left_s: float, ahead: int, places: int) -> bool:
        """Whether one that would wait now begins to be answered within `left_s`, by what is known."""
        wait_s = self.wait_s(ahead, places)
        return wait_s is None or WAIT_MARGIN * wait_s + self.mean_first_s <= left_s


@dataclass(slots=True)
class RetryBudget:
    """Lets a tenth of the requests be sent twice, and a few more, so that a sick pool is not hit by all twice."""

    share: float = 0.1
    few: float = 5.0
    balance: float = field(init=False)

    def __post_init__(self) -> None:
        self.balance = self.few

    def earn(self) -> None:
        self.balance = min(self.few, self.balance + self.share)

    def spend(self) -> bool:
        """Whether one more retry is allowed now."""
        if self.balance < 1:
            return False
        self.balance -= 1
        return True
