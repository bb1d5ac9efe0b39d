"""Signing in at the issuer, and out: OIDC's authorization code with PKCE, by which a browser becomes a person's.

Sources: OpenID Connect Core 1.0, section 3.1; OpenID Connect RP-Initiated Logout 1.0; RFC 7636 (PKCE), 9207 (the
issuer in the reply), 9700 (attacks).
"""

import hashlib
import hmac
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import orjson

from app.access.auth import KeyInvalid
from app.access.key_files import KeysUnusable, check_private
from app.access.people import People
from app.settings import OidcSettings
from retrieval.scope import Scope

BEGUN_FOR_S = 600.0
"""How long a person may take at the issuer."""
EXCHANGE_TIMEOUT_S = 10.0
MOST_REPLY_BYTES = 256 * 1024


class SignInRefused(Exception):
    """The message is for the person who signs in: it holds no word of what came from elsewhere."""


@dataclass(frozen=True)
class Begun:
    """What the browser that goes to the issuer keeps until it is back, sealed."""

    state: str
    nonce: str
    verifier: str
    until: float


@dataclass(frozen=True)
class Admitted:
    """A person whom the issuer vouches for, until a time."""

    scope: Scope
    until: float
    id_token: str
    """As the issuer signed it: by it the issuer knows whom to sign out."""


class IssuerSignIn:
    """`return_url` and `signed_out_url` are the pages of ours that the issuer sends browsers back to."""

    def __init__(
        self,
        settings: OidcSettings,
        people: People,
        *,
        secret: str,
        return_url: str,
        signed_out_url: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._people = people
        self._secret = secret
        self._return_url = return_url
        self._signed_out_url = signed_out_url
        self._clock = clock

    def begin(self) -> tuple[Begun, str]:
        """And the address at the issuer that the browser goes to."""
        begun = Begun(
            state=secrets.token_urlsafe(32),
            nonce=secrets.token_urlsafe(32),
            verifier=secrets.token_urlsafe(48),
            until=self._clock() + BEGUN_FOR_S,
        )
        challenge = urlsafe_b64encode(hashlib.sha256(begun.verifier.encode()).digest()).decode().rstrip("=")
        asked = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._return_url,
            "scope": self._settings.scopes,
            "state": begun.state,
            "nonce": begun.nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        return begun, _address(self._settings.authorization_endpoint, asked)

    def end(self, id_token: str) -> str | None:
        """The address at the issuer that signs its bearer out; without the token, it asks who that is."""
        if not self._settings.end_session_endpoint:
            return None
        told = {"client_id": self._settings.client_id, "post_logout_redirect_uri": self._signed_out_url}
        if id_token:
            told["id_token_hint"] = id_token
        return _address(self._settings.end_session_endpoint, told)

    async def finish(self, begun: Begun | None, told: Mapping[str, str]) -> Admitted:
        """`told` is what the issuer sent the browser back with. Raises SignInRefused."""
        if begun is None or self._clock() > begun.until or not _are_same(told.get("state"), begun.state):
            raise SignInRefused(
                "This sign-in was not begun in this browser, was finished already, or took too long. Begin again."
            )
        if told.get("iss", self._settings.issuer) != self._settings.issuer:
            raise SignInRefused("This reply is another issuer's than this server trusts. Begin again.")
        if told.get("error") == "access_denied":
            raise SignInRefused("You, or your organisation, did not allow this sign-in.")
        if "error" in told or not told.get("code"):
            raise SignInRefused(
                "Your organisation's sign-in ended with an error. Begin again, or ask an admin."
            )
        id_token = await self._exchanged(told["code"], begun.verifier)
        claims = await self._claims(id_token)
        if not _are_same(claims.get("nonce"), begun.nonce):
            raise SignInRefused("What the issuer signed was for another sign-in. Begin again.")
        try:
            scope = await self._people.admit(claims)
        except KeyInvalid as error:
            raise SignInRefused(
                "Your organisation knows you, but you have no access here: it tells no role or tenant of you that "
                "this server knows, or your access was revoked. Ask an admin."
            ) from error
        return Admitted(scope, float(claims["exp"]), id_token)

    async def _claims(self, id_token: str) -> Mapping[str, Any]:
        """Raises SignInRefused."""
        client_id = self._settings.client_id
        try:
            claims = await self._people.verified(id_token, audience=client_id)
        except KeyInvalid as error:
            raise SignInRefused(
                "What the issuer signed is not for this server, is too old, or is not signed by a key of its."
            ) from error
        audiences = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
        if claims.get("azp", client_id if len(audiences) == 1 else None) != client_id:
            raise SignInRefused("What the issuer signed is for another program than this server.")
        return claims

    async def _exchanged(self, code: str, verifier: str) -> str:
        """The ID token that the code stands for. Raises SignInRefused."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._return_url,
            "code_verifier": verifier,
        }
        headers = {"Accept": "application/json"}
        if self._secret:
            # RFC 6749, section 2.3.1: both are encoded as in forms first.
            pair = f"{quote(self._settings.client_id, safe='')}:{quote(self._secret, safe='')}"
            headers["Authorization"] = aiohttp.encode_basic_auth(*pair.split(":"))
        else:
            form["client_id"] = self._settings.client_id
        timeout = aiohttp.ClientTimeout(total=EXCHANGE_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(
                    self._settings.token_endpoint, data=form, headers=headers, allow_redirects=False
                ) as reply,
            ):
                status, content = reply.status, await _read(reply)
        except (OSError, aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise SignInRefused(
                "Your organisation's sign-in cannot be reached now. Try again soon."
            ) from error
        try:
            told = orjson.loads(content)
        except orjson.JSONDecodeError:
            told = None
        if status != 200 or not isinstance(told, dict) or not isinstance(told.get("id_token"), str):
            raise SignInRefused(
                "Your organisation's sign-in did not take its own code: it was used already or is too old, or this "
                "server's client_id, secret or address are not those that it knows. Begin again."
            )
        token: str = told["id_token"]
        return token


def client_secret(settings: OidcSettings) -> str:
    """Empty for a public client. Raises KeysUnusable."""
    if not settings.client_secret_file:
        return settings.client_secret
    path = Path(settings.client_secret_file)
    try:
        check_private(path)
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise KeysUnusable(
            f"oidc.client_secret_file: {path} cannot be read ({type(error).__name__})."
        ) from error


def _address(endpoint: str, query: Mapping[str, str]) -> str:
    return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"


def _are_same(told: Any, wanted: str) -> bool:
    return isinstance(told, str) and hmac.compare_digest(told.encode(), wanted.encode())


async def _read(reply: aiohttp.ClientResponse) -> bytes:
    """Raises ValueError for one that has no end."""
    content = b""
    async for piece in reply.content.iter_any():
        content += piece
        if len(content) > MOST_REPLY_BYTES:
            raise ValueError("too long")
    return content
