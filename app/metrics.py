"""What the api role counts, in Prometheus form: routes by their pattern, so that labels stay few."""

import time
from collections.abc import Sequence

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.upkeep.figures import StoredFigures
from retrieval.rankings import VectorIndex
from retrieval.stages import Stages

BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class ApiMetrics:
    MEDIA_TYPE = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        """For those parts of the role that count for themselves, as the gateway does."""
        self._requests = Counter(
            "strongroom_requests",
            "Requests by route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._first_byte = Histogram(
            "strongroom_first_byte_seconds",
            "Time from a request's arrival to its reply's first byte.",
            ["route"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._stages = Histogram(
            "strongroom_stage_seconds",
            "Time of each stage of searches and answers.",
            ["stage"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._refused_by_browser = Counter(
            "strongroom_console_refusals",
            "What browsers refused to load or run on pages of the console.",
            registry=self.registry,
        )
        self._over_quota = Counter(
            "strongroom_quota_refusals",
            "Requests that were refused because a quota of their key or tenant was reached.",
            ["quota"],
            registry=self.registry,
        )
        self._audit_entries = Gauge(
            "strongroom_audit_entries",
            "Entries that the audit log ever got; it grows by one for each act, answer and search.",
            registry=self.registry,
        )
        self._indexes = Gauge(
            "strongroom_vector_indexes",
            "Vector indexes in memory, by how they are searched.",
            ["kind"],
            registry=self.registry,
        )
        self._recall = Gauge(
            "strongroom_vector_recall_at_10",
            "Recall of approximate vector search against exact, over a sample of queries: of all indexes the mean, and "
            "the lowest.",
            ["of"],
            registry=self.registry,
        )
        self._jobs = Gauge(
            "strongroom_ingestion_jobs",
            "Documents that wait for a worker, are in hand, or have failed in a generation that is being built.",
            ["state"],
            registry=self.registry,
        )
        self._oldest_due = Gauge(
            "strongroom_ingestion_oldest_due_seconds",
            "How long the document that waits longest could have been taken.",
            registry=self.registry,
        )
        self._sources = Gauge(
            "strongroom_sources", "Watched places by state.", ["state"], registry=self.registry
        )
        self._workers = Gauge("strongroom_workers", "Worker processes that live.", registry=self.registry)
        self._collections = Gauge(
            "strongroom_collections", "Collections of all tenants.", registry=self.registry
        )
        self._disk_free = Gauge(
            "strongroom_disk_free_bytes", "Room on the disk of the data folder.", registry=self.registry
        )
        self._database_up = Gauge(
            "strongroom_database_up", "1 while the database answers.", registry=self.registry
        )

    def count_refused_by_browser(self) -> None:
        self._refused_by_browser.inc()

    def count_over_quota(self, quota: str) -> None:
        self._over_quota.labels(quota).inc()

    def record(self, *, method: str, route: str, status: int, first_byte_s: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._first_byte.labels(route).observe(first_byte_s)

    def told(self, stages: Stages) -> dict[str, str]:
        """Counts the stages of a request, and gives the header that tells them to the client."""
        for name, seconds in stages:
            self._stages.labels(name).observe(seconds)
        return {"Server-Timing": stages.server_timing()}

    def tell_indexes(self, indexes: Sequence[VectorIndex]) -> None:
        approximate = sum(not index.is_exact for index in indexes)
        self._indexes.labels("approximate").set(approximate)
        self._indexes.labels("exact").set(len(indexes) - approximate)
        recalls = [index.recall for index in indexes if index.recall is not None]
        if recalls:
            self._recall.labels("mean").set(sum(recalls) / len(recalls))
            self._recall.labels("lowest").set(min(recalls))
        else:
            self._recall.clear()

    def tell_stored(self, figures: StoredFigures | None) -> None:
        """None when the database does not answer: then the last figures stand."""
        self._database_up.set(figures is not None)
        if figures is None:
            return
        for job_state, count in figures.jobs.items():
            self._jobs.labels(job_state.value).set(count)
        for state, count in figures.sources.items():
            self._sources.labels(state).set(count)
        self._oldest_due.set(figures.oldest_due_s)
        self._workers.set(figures.workers)
        self._collections.set(figures.collections)
        self._disk_free.set(figures.disk_free_bytes)
        self._audit_entries.set(figures.audit_entries)

    def render(self) -> bytes:
        return generate_latest(self.registry)


class MeasureRequests:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, metrics: ApiMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status: int | None = None

        async def measured(message: Message) -> None:
            nonlocal status
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
            elif status is not None:
                # Counted once the first byte is on its way, so that nobody waits for it.
                self._metrics.record(
                    method=scope["method"],
                    route=getattr(scope.get("route"), "path", "none"),
                    status=status,
                    first_byte_s=time.perf_counter() - started,
                )
                status = None

        await self._app(scope, receive, measured)
