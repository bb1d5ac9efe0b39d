"""Sends a role's spans to the collector that the settings name; without one, nothing is recorded."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult, TraceIdRatioBased

from app.settings import TracesSettings


@contextmanager
def exporting(settings: TracesSettings, role: str) -> Iterator[None]:
    """As long as the role's process runs."""
    if not settings.endpoint:
        yield
        return
    # A fifth of a second of each role's start, for those alone that send something.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    provider = TracerProvider(
        resource=Resource.create({"service.name": f"strongroom-{role}"}),
        # What a caller traces is part of its trace, whatever the pace.
        sampler=ParentBased(Paced(TraceIdRatioBased(settings.share), per_second=settings.per_second)),
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.endpoint)))
    trace.set_tracer_provider(provider)
    # Uvicorn raises the signal that ended it once more, which would end the process before the last spans are sent.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        provider.shutdown()


class Paced(Sampler):
    """Takes so many traces a second at most, of those that `chosen` takes; as many at once after a pause.

    A traced request costs some tenths of a millisecond: as much as all of one that is only passed on to an engine.
    """

    def __init__(
        self, chosen: Sampler, *, per_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._chosen = chosen
        self._per_second = per_second
        self._clock = clock
        self._most = max(1.0, per_second)
        self._left = self._most
        self._looked_at = clock()

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._looked_at) * self._per_second)
        self._looked_at = now
        if self._left < 1:
            return SamplingResult(Decision.DROP)
        told = self._chosen.should_sample(*args, **kwargs)
        self._left -= told.decision is not Decision.DROP
        return told

    def get_description(self) -> str:
        return f"Paced({self._per_second}, {self._chosen.get_description()})"
