"""Keys: made, stored as keyed hashes, and turned into the scope that every query takes."""

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import and_, or_, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.access.key_files import KeysUnusable, check_private, write_once
from app.access.quotas import Bound, bounds_of
from retrieval import audit
from retrieval.database import Database
from retrieval.ledger import record
from retrieval.scope import Scope
from retrieval.tables import EVERY_GROUP, AuditEvent, DeletedKind, Key, Role, Tenant, new_id

log = logging.getLogger("strongroom.keys")

KEY_PREFIX = "sr-"
REMEMBER_S = 0.5
"""A verified key is trusted for this long without asking SQL again: a revoked one is refused within a second."""
REMEMBER_MOST = 10_000
USE_NOTED_S = 3600.0
DEFAULT_TENANT = "default"


class KeyInvalid(Exception):
    """No key was sent, or it is unknown, revoked or expired."""

    def __init__(self) -> None:
        super().__init__(
            "Incorrect API key. Send 'Authorization: Bearer KEY'; the first key is in the file keys/admin.key."
        )


class KeyMissing(Exception):
    """No key with this id."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"No key with id '{key_id}'.")


class KeyHasNoText(Exception):
    """A person who comes with signed tokens has no text to rotate."""

    def __init__(self) -> None:
        super().__init__("This key stands for a person who signs in elsewhere: there is no text to rotate.")


class NotOfServer(Exception):
    """The key's tenant is not the one that came with the server."""

    def __init__(self) -> None:
        super().__init__(
            f"This tells what all tenants do together: it needs a key of the tenant '{DEFAULT_TENANT}'."
        )


class NotAllowed(Exception):
    """The key's role does not include this."""

    def __init__(self, needed: Role) -> None:
        super().__init__(f"This needs a key with the role '{needed.value}'.")


def must_own(scope: Scope, key_id: str) -> None:
    """What a reader's key made, it may change and delete; the rest is a writer's. Raises NotAllowed."""
    if not scope.may_write and scope.key_id != key_id:
        raise NotAllowed(Role.WRITER)


@dataclass(frozen=True)
class NewKey:
    """`expires_at` None is never; `quotas` as app.access.quotas names them."""

    name: str
    role: Role
    groups: Sequence[str] = ()
    expires_at: float | None = None
    quotas: dict[str, int] | None = None


@dataclass(frozen=True)
class _Remembered:
    scope: Scope
    until: float


class KeyRing:
    """Verifies keys. `secret` is the server's own: a copied database alone does not tell which keys it holds.

    `clock` is monotonic, `now` tells the time of day, by which keys expire.
    """

    def __init__(
        self,
        database: Database,
        secret: bytes,
        clock: Callable[[], float] = time.monotonic,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._secret = secret
        self._clock = clock
        self._now = now
        self._remembered: dict[str, _Remembered] = {}
        self._bounds: dict[str, tuple[Bound, ...]] = {}
        """By the id of each key that has any, or whose tenant has."""
        self._noting: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Ends once all that was used is noted."""
        await asyncio.gather(*self._noting)

    async def scope_of(self, key: str) -> Scope:
        """Raises KeyInvalid."""
        if (known := self.remembered(key)) is not None:
            return known
        row, scope = await asyncio.to_thread(self._look_up, self.digest(key))
        self.remember(key, scope)
        self.note_use(row)
        return scope

    def remembered(self, text: str) -> Scope | None:
        """What a key, or a token, was verified to be a moment ago."""
        remembered = self._remembered.get(self.digest(text))
        if remembered is None or remembered.until <= self._clock():
            return None
        return remembered.scope

    def remember(self, text: str, scope: Scope) -> None:
        if len(self._remembered) >= REMEMBER_MOST:
            self._remembered.clear()
        self._remembered[self.digest(text)] = _Remembered(scope, self._clock() + REMEMBER_S)

    def scope_of_id(self, key_id: str) -> Scope:
        """For links that a key has signed: they end with it. Raises KeyInvalid."""
        with self._database.read() as session:
            return self.scope_of_row(session, session.get(Key, key_id))

    def scope_of_row(self, session: Session, key: Key | None) -> Scope:
        """Raises KeyInvalid."""
        if key is None or key.revoked_at is not None:
            raise KeyInvalid
        if key.expires_at is not None and key.expires_at <= self._now():
            raise KeyInvalid
        tenant = session.get_one(Tenant, key.tenant_id)
        self._note_bounds(key, tenant)
        return Scope(
            tenant_id=key.tenant_id,
            key_id=key.id,
            role=key.role,
            groups=frozenset(key.groups),
            keeps_nothing=key.keeps_nothing or tenant.keeps_nothing,
        )

    def bounds_of(self, scope: Scope) -> tuple[Bound, ...]:
        """The quotas that a request of this scope counts against."""
        return self._bounds.get(scope.key_id, ())

    def digest(self, key: str) -> str:
        return hmac.new(self._secret, key.encode(), hashlib.sha256).hexdigest()

    def add(
        self,
        session: Session,
        *,
        tenant_name: str,
        name: str,
        role: Role,
        now: float,
        groups: Sequence[str] = (),
        expires_at: float | None = None,
    ) -> tuple[Key, str]:
        """A new key, and its text, which is stored nowhere. The tenant is made if there is none of that name."""
        tenant = tenant_named(session, tenant_name, now=now)
        return self.add_to(session, tenant.id, NewKey(name, role, groups, expires_at), now=now)

    def add_to(
        self, session: Session, tenant_id: str, new: NewKey, *, now: float, by: Scope | None = None
    ) -> tuple[Key, str]:
        """`by` is who asked for it, for the audit log; None for the owner on the box."""
        text = _new_text()
        key = Key(
            id=new_id("key_"),
            tenant_id=tenant_id,
            name=new.name,
            role=new.role,
            digest=self.digest(text),
            expires_at=new.expires_at,
            quotas=new.quotas,
            created_at=now,
        )
        put_in_groups(key, new.groups)
        session.add(key)
        session.flush()
        audit.record(
            session, AuditEvent.KEY_ADDED, key.id, scope=by, tenant_id=tenant_id, role=new.role.value
        )
        return key, text

    def rotate(
        self, session: Session, key: Key, *, now: float, grace_s: float = 0, by: Scope | None = None
    ) -> str:
        """Its new text. The one that it has is taken for `grace_s` more; one from before that, no longer.

        Raises KeyHasNoText.
        """
        if key.issuer is not None:
            raise KeyHasNoText
        text = _new_text()
        record(session, DeletedKind.KEY_TEXT, f"{key.id}/{key.digest}", key.tenant_id)
        key.old_digest, key.old_until = (key.digest, now + grace_s) if grace_s > 0 else (None, None)
        key.digest = self.digest(text)
        self.end_sessions(session, key, now=now, by=by)
        audit.record(session, AuditEvent.KEY_CHANGED, key.id, scope=by, tenant_id=key.tenant_id)
        return text

    def end_sessions(self, session: Session, key: Key, *, now: float, by: Scope | None = None) -> None:
        """Of the console: whoever is signed in with it has to sign in again."""
        key.sessions_since = now
        record(session, DeletedKind.KEY_SESSIONS, f"{key.id}/{now}", key.tenant_id)
        audit.record(session, AuditEvent.SESSION_ENDED, key.id, scope=by, tenant_id=key.tenant_id)

    def revoke(self, session: Session, key_id: str, *, now: float, by: Scope | None = None) -> None:
        key = find_key(session, key_id)
        key.revoked_at = key.revoked_at or now
        record(session, DeletedKind.KEY, key.id, key.tenant_id)
        audit.record(session, AuditEvent.KEY_REVOKED, key.id, scope=by, tenant_id=key.tenant_id)

    def _look_up(self, digest: str) -> tuple[Key, Scope]:
        is_old = and_(Key.old_digest == digest, Key.old_until > self._now())
        with self._database.read() as session:
            key = session.scalar(select(Key).where(or_(Key.digest == digest, is_old)))
            scope = self.scope_of_row(session, key)
            assert key is not None, "it has a scope"
            return key, scope

    def _note_bounds(self, key: Key, tenant: Tenant) -> None:
        if bounds := bounds_of(key, tenant.quotas):
            self._bounds[key.id] = bounds
        else:
            self._bounds.pop(key.id, None)

    def note_use(self, key: Key) -> None:
        """Behind the request: nobody waits for it."""
        now = self._now()
        if key.used_at is not None and now - key.used_at < USE_NOTED_S:
            return
        task = asyncio.create_task(asyncio.to_thread(self._write_use, key.id, now))
        self._noting.add(task)
        task.add_done_callback(self._noting.discard)

    def _write_use(self, key_id: str, now: float) -> None:
        try:
            with self._database.write() as session:
                session.execute(update(Key).where(Key.id == key_id).values(used_at=now))
        except OperationalError:
            log.warning("key_use_not_noted")  # The next use says the same again.


def tenant_named(session: Session, name: str, *, now: float) -> Tenant:
    """Made if it is missing."""
    tenant = session.scalar(select(Tenant).where(Tenant.name == name))
    if tenant is None:
        tenant = Tenant(id=new_id("tenant-"), name=name, created_at=now)
        session.add(tenant)
        session.flush()
    return tenant


def runs_server(session: Session, scope: Scope) -> bool:
    """Whether it is of the tenant that came with the server, whose keys may see how busy the whole of it is."""
    return session.scalar(select(Tenant.id).where(Tenant.name == DEFAULT_TENANT)) == scope.tenant_id


def find_key(session: Session, key_id: str) -> Key:
    key = session.get(Key, key_id)
    if key is None:
        raise KeyMissing(key_id)
    return key


def put_in_groups(key: Key, groups: Sequence[str]) -> None:
    """Those that it was in are remembered, and that it was an admin's."""
    key.groups = sorted(set(groups))
    every = [EVERY_GROUP] if key.role is Role.ADMIN else []
    key.groups_held = sorted({*(key.groups_held or ()), *key.groups, *every})


def _new_text() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(32)


def server_secret(keys_dir: Path) -> bytes:
    """256 random bits, made at the first start. Hashes of keys and signatures of links rest on it.

    Raises KeysUnusable.
    """
    path = keys_dir / "server.secret"
    write_once(path, secrets.token_hex(32))
    check_private(path)
    try:
        secret = bytes.fromhex(path.read_text().strip())
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise KeysUnusable(f"{path} is damaged: it must be 64 hexadecimal digits. Put it back from a backup.")
    return secret


def ensure_admin_key(database: Database, ring: KeyRing, keys_dir: Path) -> Path:
    """Makes the first admin key when the database has no key at all. Returns the file that holds it."""
    path = keys_dir / "admin.key"
    with database.write() as session:
        if session.scalar(select(Key.id).limit(1)) is None:
            _, text = ring.add(
                session, tenant_name=DEFAULT_TENANT, name="admin", role=Role.ADMIN, now=time.time()
            )
            # Left by an earlier start that died before its commit: that key was never valid.
            path.unlink(missing_ok=True)
            write_once(path, text)
    return path
