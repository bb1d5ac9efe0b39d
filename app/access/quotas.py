"""How much a key, and all keys of a tenant together, may ask for: nothing is bounded that nobody bounded.

Counted in this process alone: with several api processes, each lets as much through.
"""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from retrieval.scope import Scope
from retrieval.tables import File, Key, Tenant

METER = "strongroom.meter"
"""In the ASGI scope of a request whose reply is to be counted."""
BYTES_A_TOKEN = 4
"""Of a request whose reply does not tell how many tokens it read."""
MOST_READ_BYTES = 16 * 1024 * 1024
"""Of a reply that is not streamed, to find its usage."""

Most = Annotated[int, Field(ge=1, le=10**15)]


class Quotas(BaseModel):
    """None is without bound."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    requests_per_minute: Most | None = None
    input_tokens_per_minute: Most | None = None
    output_tokens_per_minute: Most | None = None
    streams: Most | None = None
    """At the same time."""
    stored_bytes: Most | None = None
    """Of all files that are kept."""


@dataclass(frozen=True)
class Bound:
    """The quotas of a key or of a tenant, by its id."""

    owner: str
    quotas: Quotas


class QuotaExceeded(Exception):
    """Asked again after `retry_after_s` it may be granted. `quota` is the name of the one that is reached."""

    def __init__(self, quota: str, what: str, most: int, retry_after_s: float) -> None:
        super().__init__(f"The limit of {most} {what} is reached. Try again in {math.ceil(retry_after_s)} s.")
        self.quota = quota
        self.retry_after_s = retry_after_s


class StorageFull(Exception):
    """Time alone does not help."""

    quota = "stored_bytes"

    def __init__(self, most: int) -> None:
        super().__init__(
            f"The files that are kept may take {most} bytes in all. Delete some, or ask an admin."
        )


class Limiter:
    """Of one process."""

    def __init__(self) -> None:
        self._windows = FixedWindowRateLimiter(MemoryStorage())
        self._streams = Counter[str]()

    async def admit(self, bounds: Sequence[Bound], request: AsgiScope) -> None:
        """Counts a request, whose reply is counted too. Raises QuotaExceeded."""
        meter = request[METER] = Meter(self, bounds, request)
        try:
            for bound in bounds:
                if (most := bound.quotas.requests_per_minute) is not None:
                    await self._count(bound, "requests", most)
        finally:
            await meter.look()
        for bound in bounds:
            for kind, most in _of_tokens(bound.quotas):
                left, reset_s = await self.left(bound, kind, most)
                if left == 0:
                    raise QuotaExceeded(f"{kind}_tokens_per_minute", f"{kind} tokens a minute", most, reset_s)

    async def _count(self, bound: Bound, kind: str, most: int) -> None:
        item = RateLimitItemPerMinute(most)
        if not await self._windows.hit(item, bound.owner, kind):
            _, reset_s = await self.left(bound, kind, most)
            raise QuotaExceeded(f"{kind}_per_minute", f"{kind} a minute", most, reset_s)

    async def left(self, bound: Bound, kind: str, most: int) -> tuple[int, float]:
        """How many, and when all of them are there again, in seconds."""
        item: RateLimitItem = RateLimitItemPerMinute(most)
        stats = await self._windows.get_window_stats(item, bound.owner, kind)
        return stats.remaining, max(0.0, stats.reset_time - time.time())

    async def spend(self, bounds: Sequence[Bound], *, read: int, written: int) -> None:
        for bound in bounds:
            for kind, most in _of_tokens(bound.quotas):
                cost = read if kind == "input" else written
                if cost:
                    await self._windows.hit(RateLimitItemPerMinute(most), bound.owner, kind, cost=cost)

    def open_stream(self, bounds: Sequence[Bound]) -> None:
        """Raises QuotaExceeded."""
        for bound in bounds:
            most = bound.quotas.streams
            if most is not None and self._streams[bound.owner] >= most:
                raise QuotaExceeded("streams", "streams at the same time", most, 1.0)
        self._streams.update(bound.owner for bound in bounds)

    def close_stream(self, bounds: Sequence[Bound]) -> None:
        self._streams.subtract(bound.owner for bound in bounds)


class Meter:
    """Reads a reply on its way out, for what it used."""

    def __init__(self, limiter: Limiter, bounds: Sequence[Bound], request: AsgiScope) -> None:
        self._limiter = limiter
        self._bounds = bounds
        self._sent_bytes = int(Headers(scope=request).get("content-length") or 0)
        self._counts_reply = request["method"] == "POST"
        self._headers: dict[str, str] = {}
        self._is_stream = False
        self._rest = b""
        self._events = 0
        self._usage: Mapping[str, Any] = {}

    async def look(self) -> None:
        """What is left of the tightest bounds, in OpenAI's headers."""
        for name in ("requests", "tokens"):
            found = [
                (left, most, reset_s)
                for bound in self._bounds
                for kind, most in _counted(bound.quotas, name)
                for left, reset_s in [await self._limiter.left(bound, kind, most)]
            ]
            if found:
                left, most, reset_s = min(found)
                self._headers[f"x-ratelimit-limit-{name}"] = str(most)
                self._headers[f"x-ratelimit-remaining-{name}"] = str(left)
                self._headers[f"x-ratelimit-reset-{name}"] = f"{math.ceil(reset_s)}s"

    def open_stream(self) -> None:
        """Raises QuotaExceeded."""
        self._limiter.open_stream(self._bounds)
        self._is_stream = True

    def begin(self, message: Message) -> None:
        MutableHeaders(scope=message).update(self._headers)

    def read(self, body: bytes) -> None:
        if not self._counts_reply:
            return
        if not self._is_stream:
            self._rest = self._rest + body if len(self._rest) < MOST_READ_BYTES else b""
            return
        *lines, self._rest = (self._rest + body).split(b"\n")
        for line in lines:
            if line.startswith((b"data:", b"{")):  # Server-sent events, or the console's lines of JSON.
                self._events += 1
                if b'"usage":{' in line.replace(b" ", b""):
                    self._note(line.removeprefix(b"data:"))

    async def end(self) -> None:
        if self._is_stream:
            self._limiter.close_stream(self._bounds)
        if self._counts_reply and not self._is_stream and b'"usage"' in self._rest:
            self._note(self._rest)
        told = self._usage
        read = told.get("prompt_tokens", told.get("input_tokens"))
        written = told.get("completion_tokens", told.get("output_tokens"))
        if self._is_stream and read is None:
            # A client that asks for no usage: about a token an event, as engines send them.
            read, written = self._sent_bytes // BYTES_A_TOKEN, self._events
        await self._limiter.spend(self._bounds, read=read or 0, written=written or 0)

    def _note(self, raw: bytes) -> None:
        try:
            said = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return
        if isinstance(said, dict):
            inner = said.get("response")
            usage = said.get("usage") or (inner.get("usage") if isinstance(inner, dict) else None)
            self._usage = usage if isinstance(usage, dict) else self._usage


class MeterReplies:
    """ASGI middleware: what replies use is counted, where a quota asks for it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        async def metered(message: Message) -> None:
            meter: Meter | None = scope.get(METER)
            if meter is not None:
                if message["type"] == "http.response.start":
                    meter.begin(message)
                else:
                    meter.read(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, metered)
        finally:
            if (meter := scope.get(METER)) is not None:
                await meter.end()


def bounds_of(key: Key, tenant_quotas: Mapping[str, int] | None) -> tuple[Bound, ...]:
    """Of a key and its tenant, as the tables hold them."""
    told = ((key.id, key.quotas), (key.tenant_id, tenant_quotas))
    return tuple(Bound(owner, Quotas.model_validate(quotas)) for owner, quotas in told if quotas)


def check_room(session: Session, scope: Scope, new_bytes: int) -> None:
    """Whether a file of so many bytes may be kept. Raises StorageFull."""
    of_key, of_tenant = session.execute(
        select(Key.quotas, Tenant.quotas)
        .select_from(Tenant)
        .outerjoin(Key, Key.id == scope.key_id)
        .where(Tenant.id == scope.tenant_id)
    ).one()
    kept: tuple[tuple[Mapping[str, int] | None, ColumnElement[bool]], ...] = (
        (of_key, File.key_id == scope.key_id),
        (of_tenant, File.tenant_id == scope.tenant_id),
    )
    for quotas, owned in kept:
        most = (quotas or {}).get("stored_bytes")
        if most is None:
            continue
        used = session.scalar(select(func.sum(File.size_bytes)).where(owned)) or 0
        if used + new_bytes > most:
            raise StorageFull(most)


def _of_tokens(quotas: Quotas) -> list[tuple[str, int]]:
    told = (("input", quotas.input_tokens_per_minute), ("output", quotas.output_tokens_per_minute))
    return [(kind, most) for kind, most in told if most is not None]


def _counted(quotas: Quotas, name: str) -> list[tuple[str, int]]:
    if name == "tokens":
        return _of_tokens(quotas)
    return [("requests", quotas.requests_per_minute)] if quotas.requests_per_minute is not None else []
