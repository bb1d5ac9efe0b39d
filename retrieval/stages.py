"""The time that each stage of a request took, for the reply's Server-Timing header and for metrics."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.tracing import part


class Stages:
    """Stages of one request, in the order in which they began. Safe to use from several threads.

    Stages may overlap, so their times may add up to more than the request took. What one stage does twice at
    once counts once: its time is that during which any of it was under way.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}
        self._under_way: dict[str, int] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """`name` is a token of HTTP, such as `embed`. A stage that fails is measured as well."""
        self._enter(name)
        # Not the task's current span: a stage may end in another task than it began in.
        traced = part(name)
        try:
            yield
        finally:
            traced.end()
            self._leave(name)

    def __iter__(self) -> Iterator[tuple[str, float]]:
        """Name and seconds of each stage that has ended."""
        with self._lock:
            ended = [each for each in self._seconds.items() if each[0] not in self._under_way]
        return iter(ended)

    def server_timing(self) -> str:
        """The value of the header, in milliseconds: `embed;dur=4.2, keywords;dur=3.1`.

        Source: W3C, Server Timing.
        """
        return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in self)

    def _enter(self, name: str) -> None:
        with self._lock:
            if name not in self._under_way:
                self._seconds[name] = self._seconds.get(name, 0.0) - self._clock()
            self._under_way[name] = self._under_way.get(name, 0) + 1

    def _leave(self, name: str) -> None:
        with self._lock:
            self._under_way[name] -= 1
            if not self._under_way[name]:
                del self._under_way[name]
                self._seconds[name] += self._clock()
