"""The models role: embedding and reranking over HTTP, for the api and worker roles.

Vectors go out as little-endian float32 rows, errors as `{"error": {"type", "message", ...}}` with a type that
serving.client turns back into the exception of serving.protocols. Only health and readiness need no token.

Plain Starlette with checks by hand: FastAPI's own cost a lone query .3 ms, and a burst of refusals as much for each.
A server that stamps requests as they arrive (`request.state.arrived_at`, monotonic seconds) lets deadlines begin there.
"""

import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from serving.batching.batcher import Rows
from serving.departure import Departed, unless_departed
from serving.hosting import ModelHost
from serving.protocols import Lane, ModelUnavailable, ModelUnknown, Overloaded, TextRefused, TextTooLong
from serving.readiness import Kind

Computed = TypeVar("Computed")

MAX_TEXTS = 1_024
"""In one request; serving.client sends more texts as several requests."""

MAX_BODY_BYTES = 64 * 1024 * 1024

LONGEST_DEADLINE_S = 3_600.0

RETRY_AFTER_S = 5
"""Told with 503: about what loading a model takes."""


def create_app(host: ModelHost, *, token: str | None = None) -> Starlette:
    """The models load in threads while the server already listens; what they raise shows in /ready.

    With a `token`, all but /health and /ready ask for it as a bearer token.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with host.serving():
            yield

    routes = ModelRoutes(host, token)
    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/embed", routes.embed, methods=["POST"]),
            Route("/rerank", routes.rerank, methods=["POST"]),
            Route("/models/{kind}/{alias:path}", routes.card),
            Route("/metrics", routes.metrics),
            Route("/ready", routes.ready),
            Route("/health", routes.health),
        ],
        exception_handlers={kind: tell_error for kind, _, _ in ERRORS},
    )


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """The body of POST /embed."""

    model: str
    texts: list[str]
    lane: Lane
    deadline_s: float | None
    cache_salt: str
    truncate: bool


@dataclass(frozen=True, slots=True)
class RerankRequest(EmbedRequest):
    """The body of POST /rerank."""

    query: str


class RequestInvalid(Exception):
    """The body cannot be right; the message names the field, and repeats none of its text."""


class Unauthorized(Exception):
    """The bearer token is missing or wrong."""


class ModelRoutes:
    """What the server answers."""

    def __init__(self, host: ModelHost, token: str | None) -> None:
        self._host = host
        self._bearer = f"Bearer {token}".encode() if token else None

    async def embed(self, request: Request) -> Response:
        """float32 (texts, dimensions), unit rows, with the fingerprint of the model that made them."""
        self._check_token(request)
        asked = read_embed_request(await _read_body(request))
        return await self._compute(request, Kind.EMBEDDING, asked, asked.texts)

    async def rerank(self, request: Request) -> Response:
        """float32 (texts, 1), 0 to 1."""
        self._check_token(request)
        asked = read_rerank_request(await _read_body(request))
        return await self._compute(
            request, Kind.RERANKING, asked, [(asked.query, text) for text in asked.texts]
        )

    async def card(self, request: Request) -> Response:
        """The model's card. Loads a model that never was."""
        self._check_token(request)
        kind, alias = request.path_params["kind"], request.path_params["alias"]
        if kind not in set(Kind):
            raise RequestInvalid(f"kind: one of {', '.join(Kind)}")
        card, fingerprint = await unless_departed(request.receive, self._host.describe(Kind(kind), alias))
        return _json(asdict(card), headers={"X-Fingerprint": fingerprint})

    async def metrics(self, request: Request) -> Response:
        """Prometheus text."""
        self._check_token(request)
        return Response(self._host.metrics(), media_type=CONTENT_TYPE_LATEST)

    async def ready(self, _: Request) -> Response:
        """200 when every default model can answer, else 503; with state and reason of each model."""
        models = self._host.readiness()
        is_ready = all(model.can_answer for model in models if model.is_default)
        told = {"ready": is_ready, "models": [asdict(model) for model in models]}
        return _json(told, status=200 if is_ready else 503)

    async def health(self, _: Request) -> Response:
        """The process is alive."""
        return _json({"status": "alive"})

    async def _compute(
        self, request: Request, kind: Kind, asked: EmbedRequest, inputs: Sequence[Any]
    ) -> Response:
        computing = self._host.run(
            kind,
            asked.model,
            inputs,
            lane=asked.lane,
            deadline_s=_time_left_s(request, asked.deadline_s),
            cache_salt=asked.cache_salt,
            truncate=asked.truncate,
        )
        rows, fingerprint = await unless_departed(request.receive, computing)
        return _as_bytes(rows, fingerprint)

    def _check_token(self, request: Request) -> None:
        """Raises Unauthorized."""
        if self._bearer is not None:
            given = request.headers.get("authorization", "").encode()
            if not secrets.compare_digest(given, self._bearer):
                raise Unauthorized


def _time_left_s(request: Request, deadline_s: float | None) -> float | None:
    """Of a deadline that began when the request came in. Raises Overloaded when it has passed."""
    if deadline_s is None:
        return None
    now = time.monotonic()
    left_s = deadline_s - (now - getattr(request.state, "arrived_at", now))
    if left_s <= 0:
        raise Overloaded(1.0)
    return left_s


def read_embed_request(body: bytes) -> EmbedRequest:
    """Raises RequestInvalid."""
    fields = _read_object(body, EMBED_FIELDS)
    return EmbedRequest(**fields)


def read_rerank_request(body: bytes) -> RerankRequest:
    """Raises RequestInvalid."""
    fields = _read_object(body, RERANK_FIELDS)
    return RerankRequest(**fields)


def _read_object(body: bytes, readers: dict[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """Each field by its reader, which gets None for a field that is not there."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise RequestInvalid("body: not valid JSON in UTF-8") from None
    if not isinstance(told, dict):
        raise RequestInvalid("body: must be an object")
    if unknown := told.keys() - readers.keys():
        raise RequestInvalid(f"{min(unknown)[:64]}: unknown field; there are {', '.join(readers)}")
    return {name: read(told.get(name)) for name, read in readers.items()}


def _read_model(told: Any) -> str:
    if not isinstance(told, str):
        raise RequestInvalid("model: must be the alias of a model")
    return told


def _read_texts(told: Any) -> list[str]:
    if not isinstance(told, list):
        raise RequestInvalid("texts: must be a list of texts")
    if len(told) > MAX_TEXTS:
        raise RequestInvalid(f"texts: {len(told)} are too many; at most {MAX_TEXTS} in a request")
    for index, text in enumerate(told):
        if not isinstance(text, str):
            raise RequestInvalid(f"texts.{index}: must be a text")
    return told


def _read_query(told: Any) -> str:
    if not isinstance(told, str):
        raise RequestInvalid("query: must be a text")
    return told


LANES = {lane.value: lane for lane in Lane}


def _read_lane(told: Any) -> Lane:
    lane = LANES.get(told) if isinstance(told, str) else None
    if lane is None:
        raise RequestInvalid(f"lane: must be one of {', '.join(LANES)}")
    return lane


def _read_deadline(told: Any) -> float | None:
    if told is None:
        return None
    if type(told) not in {int, float} or not 0 < told <= LONGEST_DEADLINE_S:
        raise RequestInvalid(f"deadline_s: must be above 0 and at most {LONGEST_DEADLINE_S:.0f} seconds")
    return float(told)


def _read_cache_salt(told: Any) -> str:
    if told is None:
        return ""
    if not isinstance(told, str):
        raise RequestInvalid("cache_salt: must be a text")
    return told


def _read_truncate(told: Any) -> bool:
    if told is None:
        return False
    if not isinstance(told, bool):
        raise RequestInvalid("truncate: must be true or false")
    return told


EMBED_FIELDS: dict[str, Callable[[Any], Any]] = {
    "model": _read_model,
    "texts": _read_texts,
    "lane": _read_lane,
    "deadline_s": _read_deadline,
    "cache_salt": _read_cache_salt,
    "truncate": _read_truncate,
}
RERANK_FIELDS = EMBED_FIELDS | {"query": _read_query}


async def _read_body(request: Request) -> bytes:
    """Raises RequestInvalid beyond the bound, without having read the rest, and Departed."""
    content = bytearray()
    try:
        async for part in request.stream():
            content += part
            if len(content) > MAX_BODY_BYTES:
                raise RequestInvalid(f"body: at most {MAX_BODY_BYTES} bytes")
    except ClientDisconnect:
        raise Departed from None
    return bytes(content)


def _as_bytes(rows: Rows, fingerprint: str) -> Response:
    headers = {
        "X-Rows": str(rows.shape[0]),
        "X-Dimensions": str(rows.shape[1]),
        "X-Fingerprint": fingerprint,
    }
    content = rows.astype("<f4", copy=False).tobytes()
    return Response(content, media_type="application/octet-stream", headers=headers)


def _json(told: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(told), status, headers, "application/json")


ERRORS: list[tuple[type[Exception], str, int]] = [
    (Overloaded, "overloaded", 429),
    (TextTooLong, "text_too_long", 400),
    (TextRefused, "text_refused", 400),
    (RequestInvalid, "invalid_request", 400),
    (Unauthorized, "unauthorized", 401),
    (ModelUnknown, "model_unknown", 404),
    (ModelUnavailable, "model_unavailable", 503),
    (Departed, "client_departed", 499),
]


async def tell_error(_: Request, error: Exception) -> Response:
    """Every error of this server, by the table above."""
    name, status = next((name, status) for kind, name, status in ERRORS if isinstance(error, kind))
    told: dict[str, Any] = {"type": name, "message": str(error)}
    headers = {}
    match error:
        case Overloaded():
            told["retry_after_s"] = error.retry_after_s
            headers["Retry-After"] = str(math.ceil(error.retry_after_s))
        case TextTooLong():
            told |= {"index": error.index, "tokens": error.tokens, "max_tokens": error.max_tokens}
        case TextRefused():
            told |= {"index": error.index, "reason": error.reason}
        case ModelUnknown():
            told |= {"alias": error.alias, "available": error.available}
        case ModelUnavailable():
            headers["Retry-After"] = str(RETRY_AFTER_S)
        case Unauthorized():
            headers["WWW-Authenticate"] = "Bearer"
    return _json({"error": told}, status=status, headers=headers)
