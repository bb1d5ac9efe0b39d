"""An OIDC issuer on a free loopback port: tells its keys, asks people whether they sign in, and exchanges codes."""

import hashlib
import json
import secrets
import time
from base64 import b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus, urlencode

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

Json = dict[str, Any]
Secret = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
ISSUER, AUDIENCE = "https://people.example", "strongroom"
CLIENT_ID, CLIENT_SECRET = "the console", "a secret: with %, + and a colon"
RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def as_jwk(key: Secret, key_id: str, **more: str) -> Json:
    public: Any = key.public_key()
    algorithm: Any = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return {**json.loads(algorithm.to_jwk(public)), "kid": key_id, **more}


def claims(**other: Any) -> Json:
    now = int(time.time())
    told = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 300, "groups": ["board"]}
    return {name: value for name, value in {**told, **other}.items() if value is not None}


def signed(
    told: Json, *, key: Secret | bytes = RSA_KEY, key_id: str | None = "one", algorithm: str = "RS256"
) -> str:
    return jwt.encode(told, key, algorithm=algorithm, headers={"kid": key_id} if key_id is not None else {})


@dataclass
class Issuer:
    """`lies` are claims that it signs in the place of the true ones."""

    keys: list[Json] = field(
        default_factory=lambda: [
            as_jwk(RSA_KEY, "one"),
            as_jwk(EC_KEY, "two"),
            as_jwk(RSA_KEY, "three", alg="PS512"),
        ]
    )
    asked: int = 0
    status: int = 200
    url: str = ""
    """Of its keys."""
    person: Json = field(default_factory=dict)
    """More claims of who signs in."""
    lies: Json = field(default_factory=dict)
    signs_with: Secret = RSA_KEY
    exchanges: int = 0
    signed_out: list[str | None] = field(default_factory=list)
    """Who was, by the token that came along; None for somebody whom it would ask."""
    _codes: dict[str, Json] = field(default_factory=dict)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_get("/keys", self._tell)
        app.router.add_get("/elsewhere", self._elsewhere)
        app.router.add_get("/authorize", self._ask)
        app.router.add_post("/authorize", self._allow)
        app.router.add_post("/token", self._exchange)
        app.router.add_get("/end", self._end)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        # By name, so that to browsers it is another site than one at 127.0.0.1.
        self.url = f"http://localhost:{runner.addresses[0][1]}/keys"
        try:
            yield
        finally:
            await runner.cleanup()

    async def _tell(self, _: web.Request) -> web.Response:
        self.asked += 1
        return web.json_response({"keys": self.keys}, status=self.status)

    async def _elsewhere(self, _: web.Request) -> web.Response:
        raise web.HTTPFound("/keys")

    def settings(self, **more: Any) -> Json:
        """For a server that lets people sign in here."""
        return {
            "issuer": ISSUER,
            "audience": AUDIENCE,
            "jwks": self.url,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "authorization_endpoint": self.url.replace("/keys", "/authorize"),
            "token_endpoint": self.url.replace("/keys", "/token"),
            "end_session_endpoint": self.url.replace("/keys", "/end"),
            "role_claim": "role",
            **more,
        }

    def allow(self, asked: Json) -> Json:
        """What it sends a browser back with that came with that."""
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT_ID
        assert asked["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe(16)
        self._codes[code] = asked
        return {"code": code, "state": asked["state"], "iss": ISSUER}

    async def _ask(self, request: web.Request) -> web.Response:
        """A page, so that it is a page of another site that leads back."""
        address = f"/authorize?{request.query_string}".replace("&", "&amp;")
        page = f'<title>Issuer</title><form method="post" action="{address}"><button>Allow</button></form>'
        return web.Response(text=page, content_type="text/html")

    async def _allow(self, request: web.Request) -> web.Response:
        asked = dict(request.query)
        raise web.HTTPFound(f"{asked['redirect_uri']}?{urlencode(self.allow(asked))}")

    async def _end(self, request: web.Request) -> web.Response:
        assert request.query["client_id"] == CLIENT_ID
        hint = request.query.get("id_token_hint")
        told = hint and jwt.decode(hint, RSA_KEY.public_key(), ["RS256"], audience=CLIENT_ID)
        self.signed_out.append(told["sub"] if told else None)
        raise web.HTTPFound(request.query["post_logout_redirect_uri"])

    async def _exchange(self, request: web.Request) -> web.Response:
        self.exchanges += 1
        form = await request.post()
        asked = self._codes.pop(str(form.get("code")), None)
        digest = hashlib.sha256(str(form.get("code_verifier")).encode()).digest()
        pair = b64decode(request.headers["Authorization"].removeprefix("Basic ")).decode()
        if (
            asked is None
            or form["grant_type"] != "authorization_code"
            or form["redirect_uri"] != asked["redirect_uri"]
            or urlsafe_b64encode(digest).decode().rstrip("=") != asked["code_challenge"]
            or [unquote_plus(each) for each in pair.split(":")] != [CLIENT_ID, CLIENT_SECRET]
        ):
            return web.json_response({"error": "invalid_grant"}, status=400)
        told = claims(**{"aud": CLIENT_ID, "nonce": asked["nonce"], "role": "writer", **self.person})
        token = signed({**told, **self.lies}, key=self.signs_with)
        return web.json_response({"access_token": "x", "token_type": "Bearer", "id_token": token})
