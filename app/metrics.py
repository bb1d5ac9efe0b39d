"""What the api role counts, in Prometheus form: routes by their pattern, so that labels stay few."""

import time

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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

    def record(self, *, method: str, route: str, status: int, first_byte_s: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._first_byte.labels(route).observe(first_byte_s)

    def told(self, stages: Stages) -> dict[str, str]:
        """Counts the stages of a request, and gives the header that tells them to the client."""
        for name, seconds in stages:
            self._stages.labels(name).observe(seconds)
        return {"Server-Timing": stages.server_timing()}

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
