"""What the models role counts, in Prometheus form. Labels are bounded: a declared model's alias, lane, outcome."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.batching.batcher import BatchReport, LaneCounts, RowCache
from serving.protocols import Lane, ModelUnavailable, Overloaded, TextRefused, TextTooLong
from serving.readiness import ModelReadiness, State

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

NAMESPACE = "strongroom_models"


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """What is read of one model when somebody asks for metrics."""

    readiness: ModelReadiness
    waiting_texts: Mapping[Lane, int]
    counts: Mapping[Lane, LaneCounts]


class ModelMetrics(Collector):
    """Counts requests, batches and loads as they happen; reads what stands at the moment, and what others count."""

    def __init__(
        self,
        figures: Callable[[], Iterable[ModelFigures]],
        *,
        memory_limit_bytes: float,
        cache: RowCache | None,
    ) -> None:
        self._figures = figures
        self._memory_limit_bytes = memory_limit_bytes
        self._cache = cache
        self._registry = CollectorRegistry()
        by_lane = ("model", "lane")
        options: dict[str, Any] = {"registry": self._registry, "namespace": NAMESPACE}
        self._requests = Counter("requests", "Requests by outcome.", (*by_lane, "outcome"), **options)
        self._wait = Histogram(
            "wait_seconds", "Longest wait of a batch's texts.", by_lane, buckets=SECONDS, **options
        )
        self._batch = Histogram("batch_seconds", "Time of a batch.", by_lane, buckets=SECONDS, **options)
        self._texts = Histogram("batch_texts", "Texts in a batch.", by_lane, buckets=TEXTS, **options)
        self._tokens = Counter("tokens", "Tokens computed, without padding.", by_lane, **options)
        self._padding = Counter("padding_tokens", "Padding computed in vain.", by_lane, **options)
        self._loads = Counter("loads", "Loads of a model by outcome.", ("model", "outcome"), **options)
        self._unloads = Counter(
            "unloads", "Times that a model left, unused or for another.", ("model",), **options
        )
        self._registry.register(self)

    def count_request(self, alias: str, lane: Lane, outcome: str) -> None:
        self._requests.labels(alias, lane.value, outcome).inc()

    def count_load(self, alias: str, *, succeeded: bool) -> None:
        self._loads.labels(alias, "ok" if succeeded else "failed").inc()

    def count_unload(self, alias: str) -> None:
        self._unloads.labels(alias).inc()

    def record(self, alias: str, report: BatchReport) -> None:
        """Called in a replica's threads; prometheus-client locks for itself."""
        labels = (alias, report.lane.value)
        self._wait.labels(*labels).observe(report.longest_wait_s)
        self._batch.labels(*labels).observe(report.seconds)
        self._texts.labels(*labels).observe(report.texts)
        self._tokens.labels(*labels).inc(report.tokens)
        self._padding.labels(*labels).inc(report.padded_tokens - report.tokens)

    def render(self) -> bytes:
        """Prometheus text."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """None, so that a registry does not collect while this is being made."""
        return ()

    def collect(self) -> Iterator[Metric]:
        by_lane = ("model", "lane")
        waiting = _gauge("waiting_texts", "Texts that no batch has taken yet.", by_lane)
        refused = _counter("refused_requests", "Refused at the door: too late or too many.", by_lane)
        remembered = _counter("remembered_texts", "Texts answered from the cache.", by_lane)
        joined = _counter("joined_texts", "Texts answered by an equal one in flight.", by_lane)
        dropped = _counter("dropped_texts", "Texts that nobody waited for any more.", (*by_lane, "reason"))
        states = _gauge("state", "1 for the state that the model is in.", ("model", "kind", "state"))
        memory = _gauge("memory_bytes", "Memory of a loaded model.", ("model",))
        for figures in self._figures():
            told = figures.readiness
            for lane in Lane:
                labels, counts = (told.alias, lane.value), figures.counts[lane]
                waiting.add_metric(labels, figures.waiting_texts[lane])
                refused.add_metric(labels, counts.refused_requests)
                remembered.add_metric(labels, counts.remembered_texts)
                joined.add_metric(labels, counts.joined_texts)
                dropped.add_metric((*labels, "departed"), counts.departed_texts)
                dropped.add_metric((*labels, "expired"), counts.expired_texts)
            for state in State:
                states.add_metric((told.alias, told.kind.value, state.value), float(told.state is state))
            memory.add_metric((told.alias,), told.memory_bytes)
        yield from (waiting, refused, remembered, joined, dropped, states, memory)
        yield _gauge("memory_limit_bytes", "What all models may take.", value=self._memory_limit_bytes)
        if self._cache is not None:
            yield _counter("cache_hits", "Texts found in the cache.", value=self._cache.hits)
            yield _counter("cache_misses", "Texts not found in the cache.", value=self._cache.misses)
            yield _gauge("cache_bytes", "Memory of the cache.", value=self._cache.held_bytes)


def outcome_of(error: Exception) -> str:
    """How a failed request is counted."""
    match error:
        case Overloaded():
            return "overloaded"
        case TextTooLong():
            return "text_too_long"
        case TextRefused():
            return "text_refused"
        case ModelUnavailable():
            return "unavailable"
        case _:
            return "failed"


def _gauge(
    name: str, documentation: str, labels: tuple[str, ...] = (), *, value: float | None = None
) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{NAMESPACE}_{name}", documentation, value=value, labels=labels or None)


def _counter(
    name: str, documentation: str, labels: tuple[str, ...] = (), *, value: float | None = None
) -> CounterMetricFamily:
    return CounterMetricFamily(f"{NAMESPACE}_{name}", documentation, value=value, labels=labels or None)
