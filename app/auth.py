"""Keys: made, stored as keyed hashes, and turned into the scope that every query takes."""

import asyncio
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.tables import Key, Role, Tenant, new_id

KEY_PREFIX = "sr-"
REMEMBER_S = 0.5
"""A verified key is trusted for this long without asking SQL again: a revoked one is refused within a second."""
REMEMBER_MOST = 10_000
DEFAULT_TENANT = "default"


class KeyInvalid(Exception):
    """No key was sent, or it is unknown or revoked."""

    def __init__(self) -> None:
        super().__init__(
            "Incorrect API key. Send 'Authorization: Bearer KEY'; the first key is in the file keys/admin.key."
        )


class KeyMissing(Exception):
    """No key with this id."""


class NotAllowed(Exception):
    """The key's role does not include this."""

    def __init__(self, needed: Role) -> None:
        super().__init__(f"This needs a key with the role '{needed.value}'.")


@dataclass(frozen=True)
class _Remembered:
    scope: Scope
    until: float


class KeyRing:
    """Verifies keys. `secret` is the server's own: a copied database alone does not tell which keys it holds."""

    def __init__(
        self, database: Database, secret: bytes, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._secret = secret
        self._clock = clock
        self._remembered: dict[str, _Remembered] = {}

    async def scope_of(self, key: str) -> Scope:
        """Raises KeyInvalid."""
        digest = self.digest(key)
        remembered = self._remembered.get(digest)
        if remembered is not None and remembered.until > self._clock():
            return remembered.scope
        scope = await asyncio.to_thread(self._look_up, digest)
        if len(self._remembered) >= REMEMBER_MOST:
            self._remembered.clear()
        self._remembered[digest] = _Remembered(scope, self._clock() + REMEMBER_S)
        return scope

    def scope_of_id(self, key_id: str) -> Scope:
        """For links that a key has signed: they end with it. Raises KeyInvalid."""
        with self._database.read() as session:
            return _scope(session.get(Key, key_id))

    def digest(self, key: str) -> str:
        return hmac.new(self._secret, key.encode(), hashlib.sha256).hexdigest()

    def add(
        self, session: Session, *, tenant_name: str, name: str, role: Role, now: float
    ) -> tuple[Key, str]:
        """A new key, and its text, which is stored nowhere. The tenant is made if there is none of that name."""
        tenant = session.scalar(select(Tenant).where(Tenant.name == tenant_name))
        if tenant is None:
            tenant = Tenant(id=new_id("tenant-"), name=tenant_name, created_at=now)
            session.add(tenant)
            session.flush()
        text = KEY_PREFIX + secrets.token_urlsafe(32)
        key = Key(
            id=new_id("key_"),
            tenant_id=tenant.id,
            name=name,
            role=role,
            digest=self.digest(text),
            created_at=now,
        )
        session.add(key)
        session.flush()
        return key, text

    def revoke(self, session: Session, key_id: str, *, now: float) -> None:
        key = session.get(Key, key_id)
        if key is None:
            raise KeyMissing(f"No key with id '{key_id}'.")
        key.revoked_at = key.revoked_at or now

    def _look_up(self, digest: str) -> Scope:
        with self._database.read() as session:
            return _scope(session.scalar(select(Key).where(Key.digest == digest)))


def _scope(key: Key | None) -> Scope:
    if key is None or key.revoked_at is not None:
        raise KeyInvalid
    return Scope(tenant_id=key.tenant_id, key_id=key.id, role=key.role)


def server_secret(keys_dir: Path) -> bytes:
    """256 random bits, made at the first start. Hashes of keys and signatures of links rest on it."""
    path = keys_dir / "server.secret"
    write_once(path, secrets.token_hex(32))
    return bytes.fromhex(path.read_text().strip())


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


def write_once(path: Path, text: str) -> None:
    """A file that only its owner reads, complete or absent whatever happens; an existing one is left alone."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        # Unlike a rename, a link fails when another process was first: both then read that one's secret.
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    # Else a power cut could forget the name after the database has kept what rests on this secret.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
