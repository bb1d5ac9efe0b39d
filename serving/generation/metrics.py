"""What the gateway counts, in Prometheus form, and the engines' own metrics put together for one reader."""

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from serving.generation.replicas import Engine
from serving.protocols import Lane

WAIT_BUCKETS_S = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60)
FIRST_BYTE_BUCKETS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)

ENGINE_PREFIX = b"vllm:"


class Outcome(StrEnum):
    """How a request ended."""

    ANSWERED = "answered"
    REFUSED = "refused"
    """The engine answered with a status of 400 and above."""
    LOST = "lost"
    CANCELLED = "cancelled"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    NOT_SERVED = "not_served"


class GatewayMetrics(Collector):
    """Counted as it happens; what stands at the moment is read when it is asked for.

    `replica` is the number under which an engine was added; its series end when it is drained.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        engines: Callable[[], Iterable[tuple[Engine, str]]],
        queued: Callable[[Lane], int],
    ) -> None:
        """`engines`: each with its state in a word."""
        self._engines = engines
        self._queued = queued
        self.requests = Counter(
            "strongroom_generation_requests",
            "Requests by how they ended.",
            ["lane", "outcome"],
            registry=registry,
        )
        self.queue_wait = Histogram(
            "strongroom_generation_queue_wait_seconds",
            "Time until an engine had room.",
            ["lane"],
            buckets=WAIT_BUCKETS_S,
            registry=registry,
        )
        self.first_byte = Histogram(
            "strongroom_generation_first_byte_seconds",
            "Time to the first byte of an engine's reply, waiting included.",
            ["lane"],
            buckets=FIRST_BYTE_BUCKETS_S,
            registry=registry,
        )
        self.retries = Counter(
            "strongroom_generation_retries", "Requests that were sent a second time.", registry=registry
        )
        self.reply_bytes = Counter(
            "strongroom_generation_reply_bytes", "Bytes of replies.", ["replica"], registry=registry
        )
        self.prefix_blocks = Counter(
            "strongroom_generation_prefix_blocks", "Blocks of prompts that were routed.", registry=registry
        )
        self.prefix_matched = Counter(
            "strongroom_generation_prefix_blocks_matched",
            "Those that the engine chosen was thought to hold.",
            registry=registry,
        )
        self._waits = {lane: self.queue_wait.labels(lane.value) for lane in Lane}
        self._first_bytes = {lane: self.first_byte.labels(lane.value) for lane in Lane}
        self._outcomes = {
            (lane, outcome): self.requests.labels(lane.value, outcome.value)
            for lane in Lane
            for outcome in Outcome
        }
        registry.register(self)

    def waited(self, lane: Lane, seconds: float) -> None:
        self._waits[lane].observe(seconds)

    def began(self, lane: Lane, seconds: float) -> None:
        self._first_bytes[lane].observe(seconds)

    def ended(self, lane: Lane, outcome: Outcome) -> None:
        self._outcomes[lane, outcome].inc()

    def received(self, engine: Engine, count: int) -> None:
        self.reply_bytes.labels(str(engine.number)).inc(count)

    def routed(self, *, blocks: int, matched: int) -> None:
        self.prefix_blocks.inc(blocks)
        self.prefix_matched.inc(matched)

    def forget(self, engine: Engine) -> None:
        self.reply_bytes.remove_by_labels({"replica": str(engine.number)})

    def collect(self) -> Iterator[GaugeMetricFamily]:
        state = GaugeMetricFamily(
            "strongroom_generation_replica_state",
            "1 for the state that an engine is in: ready, unready, broken or draining.",
            labels=["replica", "state"],
        )
        in_flight = GaugeMetricFamily(
            "strongroom_generation_in_flight", "Requests that an engine has from us.", labels=["replica"]
        )
        limit = GaugeMetricFamily(
            "strongroom_generation_in_flight_limit", "How many it may have now.", labels=["replica"]
        )
        for engine, word in self._engines():
            number = str(engine.number)
            state.add_metric([number, word], 1)
            in_flight.add_metric([number], engine.in_flight)
            limit.add_metric([number], engine.limit)
        queued = GaugeMetricFamily(
            "strongroom_generation_queued", "Requests that wait for an engine with room.", labels=["lane"]
        )
        for lane in Lane:
            queued.add_metric([lane.value], self._queued(lane))
        yield from (state, in_flight, limit, queued)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing to check names against: else registering would collect, before there is anything."""
        return iter(())


def join_expositions(expositions: Iterable[tuple[int, bytes]]) -> bytes:
    """One Prometheus text from those of several engines: only vLLM's families, each sample with its replica.

    Line by line, since a real parser holds the event loop up for 10 ms an engine. What is not a sample with a
    number is left out, so that one engine's broken reply does not spoil the others'.
    """
    families: dict[bytes, tuple[list[bytes], list[bytes]]] = {}
    for replica, exposition in expositions:
        label = b'replica="%d"' % replica
        comments: list[bytes] = []
        samples: list[bytes] = []
        for line in exposition.splitlines():
            if line.startswith((b"# HELP vllm:", b"# TYPE vllm:")):
                kind, family = line[2:6], line.split(b" ", 3)[2]
                comments, samples = families.setdefault(family, ([], []))
                if not any(kind == comment[2:6] for comment in comments):
                    comments.append(line)
            elif line.startswith(b"#"):
                comments, samples = [], []
            elif line.startswith(ENGINE_PREFIX) and (labelled := _labelled(line, label)):
                samples.append(labelled)
    lines = [line for comments, samples in families.values() if samples for line in (*comments, *samples)]
    return b"\n".join(lines) + b"\n" if lines else b""


def _labelled(sample: bytes, label: bytes) -> bytes | None:
    name, brace, rest = sample.partition(b"{")
    if brace:
        labels, _, value = rest.rpartition(b"}")
        joined = name + b"{" + label + (b"," + labels if labels else b"") + b"}" + value
    else:
        name, _, value = sample.partition(b" ")
        joined = name + b"{" + label + b"} " + value
    try:
        float(value.split()[0])
    except (ValueError, IndexError):
        return None
    return joined
