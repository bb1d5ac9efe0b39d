"""The keys that data at rest lies under: one root key, a key for each tenant under it, one for each blob under that."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import select
from sqlalchemy.orm import Session

from retrieval.tables import Tenant

KEY_BYTES = 32
NONCE_BYTES = 12


class WrongKey(Exception):
    """What was encrypted does not open: it lies under another key, or was changed."""


def new_key() -> bytes:
    return secrets.token_bytes(KEY_BYTES)


def derived(key: bytes, purpose: str) -> bytes:
    """A key for one purpose; it tells nothing of the one that it is made from."""
    return HKDF(SHA256(), length=KEY_BYTES, salt=None, info=f"strongroom {purpose}".encode()).derive(key)


def encrypt(key: bytes, plain: bytes, *, owner: str) -> bytes:
    """AES-256-GCM. `owner` names what it belongs to: moved to another, it does not open."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, owner.encode())


def decrypt(key: bytes, encrypted: bytes, *, owner: str) -> bytes:
    """Raises WrongKey."""
    try:
        return AESGCM(key).decrypt(encrypted[:NONCE_BYTES], encrypted[NONCE_BYTES:], owner.encode())
    except (InvalidTag, ValueError) as error:
        raise WrongKey(f"{owner} does not open: it lies under another key, or was changed.") from error


@dataclass(frozen=True)
class TenantKey:
    """Wraps the keys of a tenant's blobs."""

    secret: bytes = field(repr=False)

    def wrap(self, key: bytes, *, owner: str) -> bytes:
        return encrypt(self.secret, key, owner=owner)

    def unwrap(self, wrapped: bytes, *, owner: str) -> bytes:
        """Raises WrongKey."""
        return decrypt(self.secret, wrapped, owner=owner)

    def digest(self, sha256: str) -> str:
        """Equal for equal content of this tenant; it neither tells the content nor that another tenant has it too."""
        key = derived(self.secret, "content digests")
        return hmac.new(key, sha256.encode(), hashlib.sha256).hexdigest()


class TenantKeys:
    """Each tenant's key, kept wrapped in its row. Safe to use from several threads."""

    def __init__(self, root: bytes) -> None:
        self._wrapping = derived(root, "tenant keys")
        self._opened: dict[str, TenantKey] = {}

    def of(self, session: Session, tenant_id: str) -> TenantKey:
        """A tenant without one gets it, in a transaction that writes. Raises WrongKey."""
        opened = self._opened.get(tenant_id)
        if opened is not None:
            return opened
        wrapped = session.scalar(select(Tenant.key).where(Tenant.id == tenant_id))
        if wrapped is None:
            return self._make(session, tenant_id)
        opened = TenantKey(decrypt(self._wrapping, wrapped, owner=tenant_id))
        self._opened[tenant_id] = opened
        return opened

    def _make(self, session: Session, tenant_id: str) -> TenantKey:
        """It is not remembered: this transaction may yet be undone."""
        tenant = session.scalar(select(Tenant).where(Tenant.id == tenant_id).with_for_update(key_share=True))
        assert tenant is not None, "a tenant's keys are asked for by its own scope"
        session.refresh(tenant)
        if tenant.key is None:
            tenant.key = encrypt(self._wrapping, new_key(), owner=tenant_id)
            session.flush()
        return TenantKey(decrypt(self._wrapping, tenant.key, owner=tenant_id))


@dataclass(frozen=True)
class Encryption:
    """What a store of files needs to write nothing that can be read without keys."""

    keys: TenantKeys
    memory: Path
    """A folder that is in memory, for what programs have to read as plain files."""
