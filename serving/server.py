"""The models role: embedding and reranking over HTTP, for the api and worker roles.

Vectors go out as little-endian float32 rows, errors as `{"error": {"type", "message", ...}}` with a type that
serving.client turns back into the exception of serving.protocols. Only health and readiness need no token.
"""

import asyncio
import logging
import math
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Generic, Protocol, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from pydantic import BaseModel, ConfigDict, Field

from serving.batching.batcher import Batcher, BatchModel, BatchReport, Limits, Rows
from serving.protocols import EmbeddingModel, Lane, ModelUnavailable, Overloaded, ServingError, TextRefused

MAX_TEXTS = 1_024
"""In one request; serving.client sends more texts as several requests."""

logger = logging.getLogger(__name__)

InputT_contra = TypeVar("InputT_contra", contravariant=True)


class LoadedModel(BatchModel[InputT_contra], Protocol[InputT_contra]):
    """A model for the batcher, with what /ready tells of it."""

    name: str
    device: str
    precision: str


class LoadedEmbeddingModel(LoadedModel[str], Protocol):
    """An embedding model with its card."""

    card: EmbeddingModel


ModelT = TypeVar("ModelT", bound=LoadedModel[Any])


def create_app(
    *,
    load_embedding: Callable[[], LoadedEmbeddingModel],
    load_reranking: Callable[[], LoadedModel[tuple[str, str]]] | None = None,
    token: str | None = None,
    limits: Limits | None = None,
) -> FastAPI:
    """The loaders run in a thread while the server already listens; what they raise shows in /ready.

    With a `token`, all but /health and /ready ask for it as a bearer token.
    """
    role = ModelsRole(load_embedding, load_reranking, token=token, limits=limits or Limits())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with role.serving():
            yield

    # Without OpenAPI pages: they load scripts from elsewhere, and this server has no human callers.
    app = FastAPI(title="Strongroom models", lifespan=lifespan, openapi_url=None)
    app.state.role = role
    app.include_router(open_routes)
    app.include_router(guarded_routes)
    for kind, _, _ in ERRORS:
        app.add_exception_handler(kind, tell_error)
    return app


class Metrics:
    """Prometheus metrics of the role. Labels are bounded: kind of model, lane, outcome."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        by_lane = ("model", "lane")
        options: dict[str, Any] = {"registry": self.registry, "namespace": "strongroom_models"}
        self.requests = Counter("requests", "Requests by outcome.", ("model", "outcome"), **options)
        self.waiting = Gauge("waiting_texts", "Texts that no batch has taken yet.", by_lane, **options)
        self.wait = Histogram(
            "wait_seconds", "Longest wait of a batch's texts.", by_lane, buckets=_SECONDS, **options
        )
        self.run = Histogram("batch_seconds", "Time of a batch.", by_lane, buckets=_SECONDS, **options)
        self.texts = Histogram("batch_texts", "Texts in a batch.", by_lane, buckets=_TEXTS, **options)
        self.tokens = Counter("tokens", "Tokens computed, without padding.", by_lane, **options)
        self.padding = Counter("padding_tokens", "Padding computed in vain.", by_lane, **options)

    def record(self, kind: str, report: BatchReport) -> None:
        """Called in a worker thread; prometheus-client locks for itself."""
        labels = (kind, report.lane.value)
        self.wait.labels(*labels).observe(report.longest_wait_s)
        self.run.labels(*labels).observe(report.seconds)
        self.texts.labels(*labels).observe(report.texts)
        self.tokens.labels(*labels).inc(report.tokens)
        self.padding.labels(*labels).inc(report.padded_tokens - report.tokens)


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class HostedModel(Generic[ModelT]):
    """One model of the role and its batcher: loading, ready or failed, with the reason."""

    def __init__(
        self, kind: str, load: Callable[[], ModelT], *, probe: object, limits: Limits, metrics: Metrics
    ) -> None:
        self.kind = kind
        self._load = load
        self._probe = probe
        self._limits = limits
        self._metrics = metrics
        self._running: tuple[ModelT, Batcher[Any]] | None = None
        self._told = {"state": "loading"}

    async def open(self, exits: AsyncExitStack) -> None:
        """Loads the model and starts its batcher, which `exits` stops. A failure is told by `readiness`."""
        try:
            model = await asyncio.to_thread(self._load)
            record = partial(self._metrics.record, self.kind)
            batcher = Batcher(model, probe=self._probe, limits=self._limits, on_batch=record)
            await exits.enter_async_context(batcher)
        except Exception as error:
            # The task's edge: whoever asks for the model or for readiness is told, and the role goes on.
            logger.exception("model_failed", extra={"model": self.kind})
            reason = str(error) if isinstance(error, ModelUnavailable) else type(error).__name__
            self._told = {"state": "failed", "reason": reason}
        else:
            self._running = model, batcher
            facts = {"name": model.name, "device": model.device, "precision": model.precision}
            self._told = {"state": "ready", **facts}

    def readiness(self) -> dict[str, str]:
        """State (loading, ready or failed), the reason of a failure, name, device and precision."""
        fault = self._running[1].fault if self._running else None
        return self._told | {"state": "failed", "reason": fault} if fault else self._told

    def require(self) -> tuple[ModelT, Batcher[Any]]:
        """Raises ModelUnavailable with the reason while the model is not there."""
        if self._running is None:
            reason = f" ({self._told['reason']})" if "reason" in self._told else ""
            raise ModelUnavailable(f"The {self.kind} model is {self._told['state']}{reason}.")
        return self._running

    async def run(self, inputs: list[Any], *, lane: Lane, deadline_s: float | None) -> Rows:
        """Batcher.run, counted by outcome."""
        outcome = "cancelled"
        try:
            _, batcher = self.require()
            rows = await batcher.run(inputs, lane=lane, deadline_s=deadline_s)
            outcome = "ok"
        except ServingError as error:
            outcome = error_type(error)
            raise
        finally:
            self._metrics.requests.labels(self.kind, outcome).inc()
        return rows

    def measure(self) -> None:
        """Brings the gauges up to date."""
        for lane in Lane:
            waiting = self._running[1].waiting_texts(lane) if self._running else 0
            self._metrics.waiting.labels(self.kind, lane.value).set(waiting)


class ModelsRole:
    """The models of one process."""

    def __init__(
        self,
        load_embedding: Callable[[], LoadedEmbeddingModel],
        load_reranking: Callable[[], LoadedModel[tuple[str, str]]] | None,
        *,
        token: str | None,
        limits: Limits,
    ) -> None:
        self.token = token
        self.metrics = metrics = Metrics()
        self.embedding = HostedModel(
            "embedding", load_embedding, probe="warm up", limits=limits, metrics=metrics
        )
        self.reranking = load_reranking and HostedModel(
            "reranking", load_reranking, probe=("warm", "up"), limits=limits, metrics=metrics
        )

    @property
    def models(self) -> list[HostedModel[Any]]:
        """Those that are configured."""
        return [self.embedding, self.reranking] if self.reranking else [self.embedding]

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Loads the models meanwhile, one after the other, and stops them at the end."""
        async with AsyncExitStack() as exits:
            loading = asyncio.create_task(self._open_all(exits))
            try:
                yield
            finally:
                loading.cancel()
                await asyncio.wait({loading})

    async def _open_all(self, exits: AsyncExitStack) -> None:
        for model in self.models:
            await model.open(exits)


class EmbedRequest(BaseModel):
    """The body of POST /embed."""

    model_config = ConfigDict(extra="forbid")

    texts: Annotated[list[str], Field(max_length=MAX_TEXTS)]
    lane: Lane
    deadline_s: Annotated[float, Field(gt=0, le=3600)] | None = None


class RerankRequest(EmbedRequest):
    """The body of POST /rerank."""

    query: str


class Unauthorized(Exception):
    """The bearer token is missing or wrong."""


def role_of(request: Request) -> ModelsRole:
    """The role that create_app put there."""
    role: ModelsRole = request.app.state.role
    return role


def check_token(request: Request) -> None:
    """Raises Unauthorized."""
    expected = role_of(request).token
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if expected is not None and not secrets.compare_digest(given.encode(), expected.encode()):
        raise Unauthorized


open_routes = APIRouter()
guarded_routes = APIRouter(dependencies=[Depends(check_token)])
Role = Annotated[ModelsRole, Depends(role_of)]


@open_routes.get("/health")
async def health() -> dict[str, str]:
    """The process is alive."""
    return {"status": "alive"}


@open_routes.get("/ready")
async def ready(role: Role) -> JSONResponse:
    """200 when every configured model can answer, else 503; with state and reason of each."""
    models = {model.kind: model.readiness() for model in role.models}
    is_ready = all(told["state"] == "ready" for told in models.values())
    return JSONResponse({"ready": is_ready, "models": models}, status_code=200 if is_ready else 503)


@guarded_routes.get("/embedding")
async def embedding(role: Role) -> JSONResponse:
    """The EmbeddingModel as JSON."""
    model, _ = role.embedding.require()
    return JSONResponse(asdict(model.card))


@guarded_routes.post("/embed")
async def embed(body: EmbedRequest, request: Request, role: Role) -> Response:
    """float32 (texts, dimensions), unit rows, with the fingerprint of the model that made them."""
    work = role.embedding.run(body.texts, lane=body.lane, deadline_s=body.deadline_s)
    rows = await _unless_departed(request, work)
    model, _ = role.embedding.require()
    return _as_bytes(rows, {"X-Fingerprint": model.card.fingerprint})


@guarded_routes.post("/rerank")
async def rerank(body: RerankRequest, request: Request, role: Role) -> Response:
    """float32 (texts, 1), 0 to 1."""
    if role.reranking is None:
        raise ModelUnavailable("No reranking model is configured.")
    pairs = [(body.query, text) for text in body.texts]
    work = role.reranking.run(pairs, lane=body.lane, deadline_s=body.deadline_s)
    return _as_bytes(await _unless_departed(request, work), {})


@guarded_routes.get("/metrics")
async def metrics(role: Role) -> Response:
    """Prometheus text."""
    for model in role.models:
        model.measure()
    return Response(generate_latest(role.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _unless_departed(request: Request, work: Coroutine[Any, Any, Rows]) -> Rows:
    """The result of `work`, which is cancelled when the client closes the connection."""
    working = asyncio.create_task(work)
    # The body has been read, so the next message can only be the disconnect.
    departure = asyncio.create_task(_until_departed(request))
    try:
        await asyncio.wait({working, departure}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDeparted
    finally:
        departure.cancel()
        working.cancel()


async def _until_departed(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class ClientDeparted(Exception):
    """Nobody waits for the reply any more."""


def _as_bytes(rows: Rows, headers: dict[str, str]) -> Response:
    shape = {"X-Rows": str(rows.shape[0]), "X-Dimensions": str(rows.shape[1])}
    content = rows.astype("<f4", copy=False).tobytes()
    return Response(content, media_type="application/octet-stream", headers=shape | headers)


def error_type(error: Exception) -> str:
    """The name of an error on the wire, known to serving.client."""
    return next(name for kind, name, _ in ERRORS if isinstance(error, kind))


ERRORS: list[tuple[type[Exception], str, int]] = [
    (Overloaded, "overloaded", 429),
    (TextRefused, "text_refused", 400),
    (RequestValidationError, "invalid_request", 400),
    (Unauthorized, "unauthorized", 401),
    (ServingError, "model_unavailable", 503),
    (ClientDeparted, "client_departed", 499),
]


async def tell_error(_: Request, error: Exception) -> JSONResponse:
    """Every error of this server, by the table above."""
    name, status = next((name, status) for kind, name, status in ERRORS if isinstance(error, kind))
    told: dict[str, Any] = {"type": name, "message": str(error)}
    headers = {}
    match error:
        case Overloaded():
            told["retry_after_s"] = error.retry_after_s
            headers["Retry-After"] = str(math.ceil(error.retry_after_s))
        case TextRefused():
            told |= {"index": error.index, "reason": error.reason}
        case RequestValidationError():
            # Without the input, which pydantic repeats: it is somebody's text.
            told["message"] = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        case Unauthorized():
            headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": told}, status_code=status, headers=headers)
