"""One table: what each error means to a client, in OpenAI's error bodies. Nothing else makes an error reply."""

import errno
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path

from app.access.auth import KeyHasNoText, KeyInvalid, KeyMissing, NotAllowed, NotOfServer
from app.access.quotas import QuotaExceeded, StorageFull
from app.access.retention import RetentionForbids, RetentionUnavailable
from app.answers.chat import EngineRefused
from app.answers.generation import PartNotTaken, PromptTooLong
from app.answers.links import LinkInvalid
from app.edge.requests import REQUEST_ID_HEADER
from ingest.media_types import EmptyFile, UnsupportedMediaType
from retrieval.audit import AuditUnavailable
from retrieval.blobs import TooLarge
from retrieval.catalog import CursorInvalid, NotFound, NotGranted
from retrieval.conversations import ConversationHeld, ItemPresent, TooOpen
from retrieval.expiry import CollectionExpired
from retrieval.generations import GenerationConflict
from retrieval.reserve import DiskFailed, DiskFull
from retrieval.responses import PreviousMissing
from retrieval.saved_questions import TooManyQuestions
from retrieval.search import EmbeddingModelChanged
from retrieval.segments import Damaged
from retrieval.uploads import UploadClosed
from serving.departure import Departed
from serving.protocols import EngineUnavailable, ModelUnavailable, ModelUnknown, Overloaded, TextRefused

RETRY_AFTER_S = 5
"""Told to clients when a role is away: about what a restart takes."""


class BadRequest(Exception):
    """The request cannot be right; `param` names the field."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class WrongContentType(Exception):
    """The body is of another kind than the route reads."""

    def __init__(self, expected: str) -> None:
        super().__init__(f"Send the body as {expected}, and say so in the header Content-Type.")


class UnknownModel(Exception):
    """No such model is served."""

    def __init__(self, name: str, available: Sequence[str]) -> None:
        super().__init__(f"The model '{name}' does not exist. Available: {', '.join(available)}.")


class ModelFixed(Exception):
    """Models come from the server's settings, but for those of engines that an admin added; collections are stores."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The model '{name}' cannot be deleted: models stand in the server's settings, and a collection is deleted "
            "by DELETE /v1/vector_stores/{id}."
        )


class Forged(Exception):
    """A request of the console that does not come from one of its pages."""

    def __init__(self) -> None:
        super().__init__(
            "This request did not come from this page as it stands. Load the page again and repeat it."
        )


class PageMissing(Exception):
    """No page of the console has this address."""

    def __init__(self) -> None:
        super().__init__("The console has no page at this address.")


class EngineMissing(Exception):
    """No engine of the gateway has this address."""

    def __init__(self, url: str, present: Sequence[str]) -> None:
        super().__init__(f"No engine at '{url}'. There are: {', '.join(present) or 'none'}.")


class WrongHost(Exception):
    """The request names a host that this server is not known by: a page may have sent a browser here."""

    def __init__(self) -> None:
        super().__init__(
            "This server is not known by the name in the header Host. Set server.public_url to the address that "
            "clients use, or list the name in server.hosts."
        )


class WrongOrigin(Exception):
    """A page of another site asks."""

    def __init__(self) -> None:
        super().__init__("Pages of other sites may not ask here: the header Origin is not this server's.")


class CannotCount(Exception):
    """The engine has no way to count tokens."""

    def __init__(self) -> None:
        super().__init__("The engine that serves this model cannot count tokens: it has no /tokenize.")


@dataclass(frozen=True)
class Meaning:
    status: int
    kind: str
    code: str | None = None


INVALID = "invalid_request_error"
MEANINGS: dict[type[Exception], Meaning] = {
    BadRequest: Meaning(400, INVALID, "invalid_value"),
    Departed: Meaning(499, INVALID, "client_departed"),
    ClientDisconnect: Meaning(499, INVALID, "client_departed"),
    CursorInvalid: Meaning(400, INVALID, "invalid_cursor"),
    UploadClosed: Meaning(400, INVALID, "upload_closed"),
    CollectionExpired: Meaning(400, INVALID, "vector_store_expired"),
    PreviousMissing: Meaning(400, INVALID, "previous_response_not_found"),
    ItemPresent: Meaning(400, INVALID, "item_present"),
    EmptyFile: Meaning(400, INVALID, "empty_file"),
    TextRefused: Meaning(400, INVALID, "text_refused"),
    WrongContentType: Meaning(415, INVALID, "unsupported_content_type"),
    UnsupportedMediaType: Meaning(415, INVALID, "unsupported_file"),
    PromptTooLong: Meaning(400, INVALID, "context_length_exceeded"),
    PartNotTaken: Meaning(400, INVALID, "unsupported_content"),
    TooLarge: Meaning(413, INVALID, "file_too_large"),
    KeyInvalid: Meaning(401, INVALID, "invalid_api_key"),
    NotAllowed: Meaning(403, INVALID, "insufficient_role"),
    NotOfServer: Meaning(403, INVALID, "not_granted"),
    NotGranted: Meaning(403, INVALID, "not_granted"),
    TooManyQuestions: Meaning(400, INVALID, "too_many_questions"),
    TooOpen: Meaning(403, INVALID, "not_granted"),
    RetentionForbids: Meaning(403, INVALID, "zero_data_retention"),
    WrongOrigin: Meaning(403, INVALID, "wrong_origin"),
    WrongHost: Meaning(421, INVALID, "wrong_host"),
    NotFound: Meaning(404, INVALID, "not_found"),
    ModelFixed: Meaning(403, INVALID, "model_not_deletable"),
    Forged: Meaning(403, INVALID, "forged_request"),
    KeyMissing: Meaning(404, INVALID, "not_found"),
    KeyHasNoText: Meaning(400, INVALID, "key_has_no_text"),
    LinkInvalid: Meaning(404, INVALID, "not_found"),
    PageMissing: Meaning(404, INVALID, "unknown_url"),
    EngineMissing: Meaning(404, INVALID, "not_found"),
    UnknownModel: Meaning(404, INVALID, "model_not_found"),
    ModelUnknown: Meaning(404, INVALID, "model_not_found"),
    ConversationHeld: Meaning(409, INVALID, "conversation_locked"),
    GenerationConflict: Meaning(409, INVALID, "generation_conflict"),
    EmbeddingModelChanged: Meaning(409, INVALID, "embedding_model_changed"),
    CannotCount: Meaning(501, "server_error", "tokens_not_counted"),
    QuotaExceeded: Meaning(429, "rate_limit_error", "rate_limit_exceeded"),
    StorageFull: Meaning(429, "insufficient_quota", "insufficient_quota"),
    Overloaded: Meaning(429, "rate_limit_error", "overloaded"),
    ModelUnavailable: Meaning(503, "server_error", "models_unavailable"),
    EngineUnavailable: Meaning(503, "server_error", "engine_unavailable"),
    Damaged: Meaning(500, "server_error", "stored_bytes_damaged"),
    DiskFull: Meaning(503, "server_error", "disk_full"),
    DiskFailed: Meaning(503, "server_error", "storage_unavailable"),
    RetentionUnavailable: Meaning(503, "server_error", "zero_data_retention_unavailable"),
    AuditUnavailable: Meaning(503, "server_error", "audit_unavailable"),
    OperationalError: Meaning(503, "server_error", "database_unavailable"),
}

SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
NO_THREAD = "can't start new thread"

INVALID_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "json_invalid": "invalid_json",
}
"""OpenAI's codes for what is wrong with a field, by pydantic's."""
HTTP_CODES = {
    400: "invalid_body",
    404: "unknown_url",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unsupported_content_type",
}
ABSENT = re.compile(
    r"/v1/(assistants|audio|chatkit|containers|evals|fine_tuning|graders|images|moderations|organization|projects"
    r"|realtime|skills|threads|videos)(/|$)"
)
"""Of OpenAI's interface, what there is nothing for here."""


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


def message_of(error: Exception) -> str:
    """What a client is told of an error in MEANINGS."""
    if isinstance(error, OperationalError) and not isinstance(error, (DiskFull, DiskFailed)):
        return "The database cannot be reached. Try again soon."
    return str(error)


async def _known(request: Request, error: Exception) -> Response:
    meaning = next(MEANINGS[kind] for kind in type(error).__mro__ if kind in MEANINGS)
    if meaning.status in (401, 403):
        client = request.client.host if request.client is not None else "none"
        asked_by = getattr(request.state, "asked_by", None)
        request.app.state.services.audit.refused(asked_by, meaning.code or "", client)
    if isinstance(error, (QuotaExceeded, StorageFull)):
        request.app.state.services.metrics.count_over_quota(error.quota)
    headers = {}
    if meaning.status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if isinstance(error, (Overloaded, QuotaExceeded)):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if meaning.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    param = getattr(error, "param", None)
    body = error_body(message_of(error), meaning.kind, param=param, code=meaning.code)
    return reply(meaning.status, body, headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    kind: str = first["type"]
    if first["loc"] == ("body",) and isinstance(error.body, bytes):
        return await _known(request, WrongContentType("application/json"))
    # The first part says where in the request: body, query, path or header.
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    if kind == "json_invalid":
        param = None
    what = f"{param}: {first['msg']}" if param else first["msg"]
    code = INVALID_CODES.get(
        kind, "invalid_type" if kind.endswith(("_type", "_parsing")) else "invalid_value"
    )
    return reply(400, error_body(f"Invalid request: {what}.", INVALID, param=param, code=code))


async def _refused_by_engine(_: Request, error: Exception) -> Response:
    assert isinstance(error, EngineRefused)
    return reply(error.status, error.body)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path: str = request.scope["path"]
    message, code = str(error.detail), HTTP_CODES.get(error.status_code)
    headers = dict(error.headers or {})
    if error.status_code == 404:
        absent = ABSENT.match(path)
        message = f"No route {request.method} {path}."
        if absent:
            message = f"Strongroom has no {absent[1]}: {request.method} {path} is not part of its interface."
            code = "unsupported_api"
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request)) or headers["Allow"]
        message = f"{path} takes {headers['Allow']}, not {request.method}."
    return reply(error.status_code, error_body(message, INVALID, code=code), headers)


def _methods(request: Request) -> list[str]:
    """Starlette tells those of the first route of a path only. A path goes before one that takes its end for an id."""
    app: FastAPI = request.app
    paths, asked = app.openapi()["paths"], request.scope["path"]
    matching = [asked] if asked in paths else [path for path in paths if compile_path(path)[0].match(asked)]
    there = {method.upper() for path in matching for method in paths[path]}
    return sorted(there)


async def _bug(request: Request, error: Exception) -> Response:
    # The middleware that names requests stands further in, and its reply was never begun.
    headers = {REQUEST_ID_HEADER.decode(): request.state.request_id}
    if is_out_of_means(error):
        message = "The server has no memory, threads or files left for this now. Try again soon."
        headers["Retry-After"] = str(RETRY_AFTER_S)
        return reply(503, error_body(message, "server_error", code="out_of_means"), headers)
    body = error_body("Internal error; the server's log has more.", "server_error", code="internal_error")
    return reply(500, body, headers)


def is_out_of_means(error: BaseException) -> bool:
    """Whether the machine, or a limit of this process, and not the request or the code is to blame."""
    match error:
        case MemoryError():
            return True
        case OSError():
            return error.errno in SCARCE
        case RuntimeError():
            return str(error) == NO_THREAD
        case _:
            return False
