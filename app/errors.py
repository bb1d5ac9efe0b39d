"""One table: what each error means to a client, in OpenAI's error bodies. Nothing else makes an error reply."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from app.auth import KeyInvalid, KeyMissing, NotAllowed
from app.chat import EngineRefused
from app.links import LinkInvalid
from ingest.media_types import EmptyFile, UnsupportedMediaType
from retrieval.blobs import TooLarge
from retrieval.catalog import CursorInvalid, NotFound
from retrieval.expiry import CollectionExpired
from retrieval.generations import GenerationConflict
from retrieval.search import EmbeddingModelChanged
from serving.departure import Departed
from serving.protocols import EngineUnavailable, ModelUnavailable, ModelUnknown, Overloaded, TextRefused

RETRY_AFTER_S = 5
"""Told to clients when a role is away: about what a restart takes."""


class BadRequest(Exception):
    """The request cannot be right; `param` names the field."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnknownModel(Exception):
    """No such model is served."""

    def __init__(self, name: str, available: Sequence[str]) -> None:
        super().__init__(f"The model '{name}' does not exist. Available: {', '.join(available)}.")


class EngineMissing(Exception):
    """No engine of the gateway has this address."""

    def __init__(self, url: str, present: Sequence[str]) -> None:
        super().__init__(f"No engine at '{url}'. There are: {', '.join(present) or 'none'}.")


@dataclass(frozen=True)
class Meaning:
    status: int
    kind: str
    code: str | None = None


INVALID = "invalid_request_error"
MEANINGS: dict[type[Exception], Meaning] = {
    BadRequest: Meaning(400, INVALID),
    Departed: Meaning(499, INVALID, "client_departed"),
    CursorInvalid: Meaning(400, INVALID),
    CollectionExpired: Meaning(400, INVALID, "vector_store_expired"),
    EmptyFile: Meaning(400, INVALID, "empty_file"),
    TextRefused: Meaning(400, INVALID, "text_refused"),
    UnsupportedMediaType: Meaning(415, INVALID, "unsupported_file"),
    TooLarge: Meaning(413, INVALID, "file_too_large"),
    KeyInvalid: Meaning(401, INVALID, "invalid_api_key"),
    NotAllowed: Meaning(403, INVALID, "insufficient_role"),
    NotFound: Meaning(404, INVALID, "not_found"),
    KeyMissing: Meaning(404, INVALID, "not_found"),
    LinkInvalid: Meaning(404, INVALID, "not_found"),
    EngineMissing: Meaning(404, INVALID, "not_found"),
    UnknownModel: Meaning(404, INVALID, "model_not_found"),
    ModelUnknown: Meaning(404, INVALID, "model_not_found"),
    GenerationConflict: Meaning(409, INVALID, "generation_conflict"),
    EmbeddingModelChanged: Meaning(409, INVALID, "embedding_model_changed"),
    Overloaded: Meaning(429, "rate_limit_error", "overloaded"),
    ModelUnavailable: Meaning(503, "server_error", "models_unavailable"),
    EngineUnavailable: Meaning(503, "server_error", "engine_unavailable"),
    OperationalError: Meaning(503, "server_error", "database_unavailable"),
}


def install_errors(app: FastAPI) -> None:
    for kind in MEANINGS:
        app.add_exception_handler(kind, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(EngineRefused, _refused_by_engine)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _bug)


def error_body(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def reply(status: int, body: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, media_type="application/json", headers=headers)


async def _known(_: Request, error: Exception) -> Response:
    meaning = next(MEANINGS[kind] for kind in type(error).__mro__ if kind in MEANINGS)
    message = (
        "The database cannot be reached. Try again soon."
        if isinstance(error, OperationalError)
        else str(error)
    )
    headers = {}
    if meaning.status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if meaning.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    param = getattr(error, "param", None)
    return reply(meaning.status, error_body(message, meaning.kind, param=param, code=meaning.code), headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    # The first part says where in the request: body, query, path or header.
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    if first["type"] == "json_invalid":
        param = None
    what = f"{param}: {first['msg']}" if param else first["msg"]
    return reply(400, error_body(f"Invalid request: {what}.", INVALID, param=param))


async def _refused_by_engine(_: Request, error: Exception) -> Response:
    assert isinstance(error, EngineRefused)
    return reply(error.status, error.body)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = (
        f"No route {request.method} {request.scope['path']}."
        if error.status_code == 404
        else str(error.detail)
    )
    return reply(error.status_code, error_body(message, INVALID), dict(error.headers or {}))


async def _bug(_: Request, __: Exception) -> Response:
    return reply(500, error_body("Internal error; the server's log has more.", "server_error"))
