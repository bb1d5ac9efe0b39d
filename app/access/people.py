"""People who come with tokens that an OIDC issuer signed: verified, and made keys without a text, and so scopes.

A person's key can be listed, restricted and revoked as any other; what they may do is what their last token said.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import jwt
from sqlalchemy import select

from app.access.auth import KeyInvalid, KeyRing, NewKey, put_in_groups
from app.settings import OidcSettings
from retrieval.catalog import lock_tenant
from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.tables import EVERY_GROUP, Key, Role, Tenant

log = logging.getLogger("strongroom.people")

ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
"""With a public key alone, none of these can be signed."""
LEEWAY_S = 30.0
KEYS_LIFE_S = 600.0
"""After so long the issuer's keys are read again: one that it has taken back signs no more."""
LEAST_PAUSE_S = 30.0
"""Between two readings, whatever tokens name: strangers must not make this process ask the issuer all day."""
READ_TIMEOUT_S = 5.0
MOST_KEYS_BYTES = 1024 * 1024
LONGEST_GROUP = 64


@dataclass(frozen=True)
class Person:
    """What a token says."""

    subject: str
    tenant: str
    role: Role
    groups: tuple[str, ...]


def is_token(text: str) -> bool:
    """Of the form of a signed token; keys have no dots."""
    return text.count(".") == 2


class IssuerKeys:
    """The issuer's public keys, from the one address or file that the settings name."""

    def __init__(self, source: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._keys: Mapping[str | None, jwt.PyJWK] = {}
        self._read_at: float | None = None
        self._tried_at: float | None = None
        self._reading = asyncio.Lock()

    async def find(self, key_id: str | None) -> jwt.PyJWK:
        """Raises KeyInvalid."""
        async with self._reading:
            if self._is_old() or key_id not in self._keys:
                await self._refresh()
        if key_id not in self._keys:
            raise KeyInvalid
        return self._keys[key_id]

    def _is_old(self) -> bool:
        return self._read_at is None or self._clock() - self._read_at >= KEYS_LIFE_S

    async def _refresh(self) -> None:
        now = self._clock()
        if self._tried_at is not None and now - self._tried_at < LEAST_PAUSE_S:
            return
        self._tried_at = now
        try:
            told = json.loads(await self._read())
            found = jwt.PyJWKSet.from_dict(told).keys
        except (OSError, aiohttp.ClientError, TimeoutError, ValueError, jwt.PyJWTError) as error:
            # Those that are known go on: an issuer that is away for a while locks nobody out.
            log.warning("issuer_keys_not_read", extra={"reason": type(error).__name__})
            return
        self._keys = {key.key_id: key for key in found if _signs(key)}
        self._read_at = now

    async def _read(self) -> bytes:
        if not self._source.startswith(("http://", "https://")):
            return await asyncio.to_thread(Path(self._source).read_bytes)
        timeout = aiohttp.ClientTimeout(total=READ_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(self._source, allow_redirects=False) as reply,
        ):
            if reply.status != 200:
                raise OSError(f"status {reply.status}")
            content = await reply.content.read(MOST_KEYS_BYTES + 1)
            while len(content) <= MOST_KEYS_BYTES and (more := await reply.content.read(MOST_KEYS_BYTES)):
                content += more
        if len(content) > MOST_KEYS_BYTES:
            raise ValueError("too long")
        return content


class People:
    """Scopes of people. `ring` remembers them as it does keys; `secret` is the server's."""

    def __init__(
        self,
        database: Database,
        ring: KeyRing,
        settings: OidcSettings,
        *,
        secret: bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._ring = ring
        self._settings = settings
        self._secret = hmac.new(secret, b"people", hashlib.sha256).digest()
        self._keys = IssuerKeys(settings.jwks, clock)

    async def scope_of(self, token: str) -> Scope:
        """Raises KeyInvalid."""
        if (known := self._ring.remembered(token)) is not None:
            return known
        scope = await self.admit(await self.verified(token, audience=self._settings.audience))
        self._ring.remember(token, scope)
        return scope

    async def admit(self, claims: Mapping[str, Any]) -> Scope:
        """Of the person whom these verified claims are of. Raises KeyInvalid."""
        key, scope = await asyncio.to_thread(self._admit, self._person(claims))
        self._ring.note_use(key)
        return scope

    async def verified(self, token: str, *, audience: str) -> dict[str, Any]:
        """What the issuer says in it to that audience. Raises KeyInvalid."""
        try:
            head = jwt.get_unverified_header(token)
            key = await self._keys.find(head.get("kid"))
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=audience,
                issuer=self._settings.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise KeyInvalid from error
        return claims

    def _person(self, claims: Mapping[str, Any]) -> Person:
        """Raises KeyInvalid for one whose tenant or role is not told where it has to be."""
        settings = self._settings
        tenant = _texts(claims, settings.tenant_claim) if settings.tenant_claim else [settings.tenant]
        if settings.role_claim:
            named = {settings.role_of.get(each) for each in _texts(claims, settings.role_claim)}
            roles = [role for role in Role if role.value in named]
        else:
            roles = [Role.READER]
        if len(tenant) != 1 or not roles:
            raise KeyInvalid
        groups = [
            each
            for each in (_texts(claims, settings.groups_claim) if settings.groups_claim else ())
            if each != EVERY_GROUP and 0 < len(each) <= LONGEST_GROUP
        ]
        return Person(str(claims["sub"]), tenant[0], roles[-1], tuple(sorted(set(groups))))

    def _admit(self, person: Person) -> tuple[Key, Scope]:
        """By the person's key, which is made when they first come and changed when their token says otherwise."""
        with self._database.read() as session:
            tenant_id = session.scalar(select(Tenant.id).where(Tenant.name == person.tenant))
            if tenant_id is None:
                raise KeyInvalid
            digest = self._digest(person, tenant_id)
            key = session.scalar(select(Key).where(Key.digest == digest))
            if key is not None and (key.role, tuple(key.groups)) == (person.role, person.groups):
                return key, self._ring.scope_of_row(session, key)
        now = time.time()
        with self._database.write() as session:
            # Of two requests that are a person's first, one makes the key.
            lock_tenant(session, tenant_id)
            key = session.scalar(select(Key).where(Key.digest == digest))
            if key is None:
                new = NewKey(name=person.subject[:200], role=person.role, groups=person.groups)
                key, _ = self._ring.add_to(session, tenant_id, new, now=now)
                key.digest, key.issuer = digest, self._settings.issuer
            key.role = person.role
            put_in_groups(key, person.groups)
            session.flush()
            return key, self._ring.scope_of_row(session, key)

    def _digest(self, person: Person, tenant_id: str) -> str:
        """No key's text has it: those are hashed under another secret."""
        told = json.dumps([self._settings.issuer, person.subject, tenant_id])
        return hmac.new(self._secret, told.encode(), hashlib.sha256).hexdigest()


def _signs(key: jwt.PyJWK) -> bool:
    return key.key_type != "oct" and key.public_key_use in (None, "sig")


def _texts(claims: Mapping[str, Any], name: str) -> Sequence[str]:
    """A claim's values, which may be one."""
    told = claims.get(name)
    values = told if isinstance(told, list) else [told]
    return [each for each in values if isinstance(each, str)]
