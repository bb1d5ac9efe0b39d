"""Zero data retention: whether this machine can promise it, what it refuses, and the signed receipt of a request."""

import re
import resource
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy.orm import Session

from app.access.audit import AuditTrail
from app.settings import Settings
from retrieval.audit import AuditKey, act, record
from retrieval.scope import Scope
from retrieval.tables import AuditEvent, Key, Tenant

RETENTION_HEADER = "x-strongroom-retention"
NONE = "none"
WRITES_PROMPTS = re.compile(
    r"--(enable-log|log-|otlp|collect-detailed-trac|kv-|middleware|config\b(?!-))|offload"
)
"""In vLLM's arguments: what may have it write down or send on what it is asked."""
COUNTERS = ("strongroom_requests", "strongroom_first_byte_seconds", "strongroom_stage_seconds")
TIMES = (
    "entry key.used, once an hour at most",
    "entry refused, if it is refused",
    "last_active_at of the vector stores that it searches",
)
RESTS_ON = (
    "storage is encrypted",
    "no swap, or encrypted",
    "no core dumps",
    "engines neither log nor store requests",
)


class RetentionForbids(Exception):
    """The request keeps nothing, and this would keep what it says."""

    def __init__(self, param: str) -> None:
        super().__init__(
            f"This request is under zero data retention, and '{param}' would keep what it says: leave that out, or "
            "use a key without zero data retention."
        )
        self.param = param


class RetentionUnavailable(Exception):
    """Zero data retention cannot be promised here."""

    def __init__(self, obstacles: Iterable[str]) -> None:
        super().__init__(f"Zero data retention cannot be promised by this server: {' '.join(obstacles)}")


def must_not_keep(scope: Scope, param: str) -> None:
    """Called where something of a request would be stored. Raises RetentionForbids."""
    if scope.keeps_nothing:
        raise RetentionForbids(param)


class ZeroRetention:
    """Open as long as the api role."""

    def __init__(self, settings: Settings, trail: AuditTrail, engines: Callable[[], frozenset[str]]) -> None:
        self._settings = settings
        self._trail = trail
        self._engines = engines
        self._known = engines()

    def obstacles(self) -> list[str]:
        """Why it cannot be promised now; looked at anew each time, as swap can be turned on."""
        found = [*engine_obstacles(self._settings), *machine_obstacles()]
        if not self._settings.encryption.enabled:
            found.append("encryption.enabled is false: what is in the works lies on disk in plain.")
        if self._engines() - self._known:
            found.append(
                "An engine was added while the server runs: only those of engine.url are vouched for."
            )
        return found

    async def receipt(self, scope: Scope, request_id: str) -> str:
        """Enters that the request was made, and signs that nothing else of it is kept: a JWS in compact form.

        Raises RetentionUnavailable, AuditUnavailable.
        """
        if obstacles := self.obstacles():
            raise RetentionUnavailable(obstacles)
        entered = await self._trail.write_now(act(AuditEvent.NOTHING_KEPT, (request_id,), scope=scope))
        told = {
            "iss": "strongroom",
            "iat": int(time.time()),
            "request_id": request_id,
            "tenant_id": scope.tenant_id,
            "key_id": scope.key_id,
            "retention": NONE,
            "rests_on": RESTS_ON,
            "kept": {
                "audit_entries": [
                    {"seq": entered.seq, "hash": entered.hash, "event": AuditEvent.NOTHING_KEPT.value}
                ],
                "times": TIMES,
                "counters": COUNTERS,
            },
        }
        return as_jws(self._trail.key, orjson.dumps(told))


def as_jws(key: AuditKey, payload: bytes) -> str:
    """RFC 7515, compact, EdDSA."""
    head = orjson.dumps({"alg": "EdDSA", "typ": "JWT", "kid": jwk_of(key)["kid"]})
    signed = f"{_base64(head)}.{_base64(payload)}"
    return f"{signed}.{_base64(key.sign(signed.encode()))}"


def read_jws(key: AuditKey, jws: str) -> dict[str, Any] | None:
    """What it says; None if it was not signed by this key."""
    signed, _, signature = jws.strip().rpartition(".")
    _, _, payload = signed.partition(".")
    try:
        is_ours = key.has_signed(signed.encode(), _unbase64(signature))
        told: dict[str, Any] = orjson.loads(_unbase64(payload))
    except ValueError:
        return None
    return told if is_ours else None


def jwk_of(key: AuditKey) -> dict[str, str]:
    """The public key, for anybody who checks receipts and checkpoints (RFC 8037)."""
    x = _base64(key.public)
    return {"kty": "OKP", "crv": "Ed25519", "x": x, "use": "sig", "alg": "EdDSA", "kid": x[:12]}


def engine_obstacles(settings: Settings) -> list[str]:
    if not settings.engine.keeps_nothing:
        return [
            "Nobody vouches for the engines: set engine.keeps_nothing if they neither log nor store requests."
        ]
    # vLLM takes both spellings.
    told = WRITES_PROMPTS.search(settings.engine.extra_args.replace("_", "-"))
    if told is None:
        return []
    return [f"engine.extra_args has '{told[0]}', with which an engine may write down what it is asked."]


def machine_obstacles(system: Path = Path("/")) -> list[str]:
    """Of this machine and process. Nothing that is in memory may get to a disk."""
    return [*_swap_obstacles(system), *_dump_obstacles(system)]


def _swap_obstacles(system: Path) -> list[str]:
    try:
        devices = [line.split()[0] for line in (system / "proc/swaps").read_text().splitlines()[1:]]
    except OSError:
        return ["Whether there is swap cannot be told: /proc/swaps cannot be read."]
    plain = [device for device in devices if not _is_sealed(device, system)]
    return [f"Swap on {device} is not encrypted: turn it off, or encrypt it." for device in plain]


def _is_sealed(device: str, system: Path) -> bool:
    """Whether it is memory itself, or a device of dm-crypt."""
    name = Path(device).name
    if name.startswith("zram"):
        return True
    try:
        return (system / f"sys/block/{name}/dm/uuid").read_text().startswith("CRYPT-")
    except OSError:
        return False


def _dump_obstacles(system: Path) -> list[str]:
    limit, _ = resource.getrlimit(resource.RLIMIT_CORE)
    try:
        is_piped = (system / "proc/sys/kernel/core_pattern").read_text().startswith("|")
    except OSError:
        return ["Whether there are core dumps cannot be told: /proc/sys/kernel/core_pattern cannot be read."]
    # A limit of 0 does not hold for a program that dumps are piped to; 1 does for both. See core(5).
    if limit == 1 or (limit == 0 and not is_piped):
        return []
    return ["Core dumps are on: start the process with `ulimit -c 0`, or by a command of strongroom."]


def set_retention(
    session: Session, row: Key | Tenant, *, keeps_nothing: bool, by: Scope | None = None
) -> None:
    """`by` is who asked for it; None for the owner on the box."""
    row.keeps_nothing = keeps_nothing
    tenant_id = row.tenant_id if isinstance(row, Key) else row.id
    told = NONE if keeps_nothing else "usual"
    record(session, AuditEvent.RETENTION_CHANGED, row.id, scope=by, tenant_id=tenant_id, retention=told)


def _unbase64(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _base64(content: bytes) -> str:
    return urlsafe_b64encode(content).decode().rstrip("=")
