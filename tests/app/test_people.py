"""People with tokens of an OIDC issuer: what is believed, what is not, and what they may do then."""

import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from jwt.utils import base64url_encode
from sqlalchemy import select

from app.access.auth import KeyInvalid, KeyRing
from app.access.people import KEYS_LIFE_S, LEAST_PAUSE_S, People
from app.settings import OidcSettings, SettingsInvalid, read_settings
from retrieval.database import Database
from retrieval.tables import EVERY_GROUP, Key, Role
from tests.app.alone import api_alone
from tests.app.issuer import (
    AUDIENCE,
    EC_KEY,
    ISSUER,
    OTHER_KEY,
    RSA_KEY,
    Issuer,
    Json,
    Secret,
    as_jwk,
    claims,
    signed,
)
from tests.conftest import SERVER_SECRET


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    async with issuer.served():
        yield issuer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def ring(database: Database, clock: Clock) -> AsyncIterator[KeyRing]:
    ring = KeyRing(database, SERVER_SECRET, clock)
    with database.write() as session:
        for tenant in ("default", "north"):
            ring.add(session, tenant_name=tenant, name="first", role=Role.ADMIN, now=1.0)
    yield ring
    await ring.close()


def people_of(database: Database, ring: KeyRing, clock: Clock, jwks: str, **settings: str) -> People:
    told = OidcSettings(**{"issuer": ISSUER, "audience": AUDIENCE, "jwks": jwks, **settings})
    return People(database, ring, told, secret=SERVER_SECRET, clock=clock)


@pytest.fixture
def people(database: Database, ring: KeyRing, clock: Clock, issuer: Issuer) -> People:
    return people_of(database, ring, clock, issuer.url)


@pytest.mark.parametrize(
    ("key", "key_id", "algorithm"),
    [(RSA_KEY, "one", "RS256"), (RSA_KEY, "three", "PS512"), (EC_KEY, "two", "ES256")],
)
async def test_a_token_gives_the_scope_of_its_person(
    people: People, database: Database, key: Secret, key_id: str, algorithm: str
) -> None:
    scope = await people.scope_of(signed(claims(), key=key, key_id=key_id, algorithm=algorithm))
    assert (scope.role, sorted(scope.groups)) == (Role.READER, ["board"])
    with database.read() as session:
        row = session.get_one(Key, scope.key_id)
        assert (row.name, row.issuer, row.tenant_id) == ("ada", ISSUER, scope.tenant_id)


PUBLIC_PEM = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def hmac_with_public_key() -> str:
    """What the classic confusion sends: the public key as a shared secret."""
    head = base64url_encode(json.dumps({"alg": "HS256", "kid": "one"}).encode())
    body = base64url_encode(json.dumps(claims()).encode())
    message = head + b"." + body
    signature = base64url_encode(hmac.new(PUBLIC_PEM, message, "sha256").digest())
    return (message + b"." + signature).decode()


def unsigned(told: Json) -> str:
    head = base64url_encode(json.dumps({"alg": "none", "kid": "one"}).encode()).decode()
    return f"{head}.{base64url_encode(json.dumps(told).encode()).decode()}."


def changed(token: str) -> str:
    head, _, signature = token.split(".")
    body = base64url_encode(json.dumps(claims(sub="eve")).encode()).decode()
    return f"{head}.{body}.{signature}"


FALSE_TOKENS: dict[str, Callable[[], str]] = {
    "another issuer": lambda: signed(claims(iss="https://evil.example")),
    "another audience": lambda: signed(claims(aud="another service")),
    "no audience": lambda: signed(claims(aud=None)),
    "ended": lambda: signed(claims(exp=int(time.time()) - 60)),
    "no end": lambda: signed(claims(exp=None)),
    "not yet": lambda: signed(claims(nbf=int(time.time()) + 600)),
    "made in the future": lambda: signed(claims(iat=int(time.time()) + 600)),
    "nobody": lambda: signed(claims(sub=None)),
    "another key of that name": lambda: signed(claims(), key=OTHER_KEY),
    "a key that is unknown": lambda: signed(claims(), key=OTHER_KEY, key_id="four"),
    "no key named": lambda: signed(claims(), key_id=None),
    "unsigned": lambda: unsigned(claims()),
    "signed with the public key": hmac_with_public_key,
    "changed": lambda: changed(signed(claims())),
    "no token": lambda: "a.b.c",
    "empty": lambda: "..",
    "the wrong kind of key": lambda: signed(claims(), key_id="two"),
    "another algorithm than the key is for": lambda: signed(claims(), key_id="three"),
}


@pytest.mark.parametrize("what", FALSE_TOKENS)
async def test_what_is_not_the_issuers_word_for_us_is_refused(
    people: People, database: Database, what: str
) -> None:
    with pytest.raises(KeyInvalid):
        await people.scope_of(FALSE_TOKENS[what]())
    with database.read() as session:
        assert session.scalars(select(Key).where(Key.issuer.is_not(None))).all() == []


async def test_a_symmetric_key_among_the_issuers_is_no_key(people: People, issuer: Issuer) -> None:
    secret = b"a secret of thirty-two bytes or more"
    told = base64url_encode(secret).decode()
    issuer.keys.append({"kty": "oct", "k": told, "kid": "four", "alg": "HS256"})
    with pytest.raises(KeyInvalid):
        await people.scope_of(signed(claims(), key=secret, key_id="four", algorithm="HS256"))


async def test_a_key_for_encryption_signs_nothing(people: People, issuer: Issuer) -> None:
    issuer.keys[0]["use"] = "enc"
    with pytest.raises(KeyInvalid):
        await people.scope_of(signed(claims()))


async def test_one_person_is_one_key_that_follows_their_token(
    people: People, ring: KeyRing, clock: Clock, database: Database
) -> None:
    first = await people.scope_of(signed(claims()))
    clock.now += 1
    second = await people.scope_of(signed(claims(groups=["staff"])))
    assert (second.key_id, sorted(second.groups)) == (first.key_id, ["staff"])
    other = await people.scope_of(signed(claims(sub="bob", groups=None)))
    assert (other.key_id != first.key_id, other.groups) == (True, frozenset())
    assert ring.scope_of_id(first.key_id) == second
    with database.read() as session:
        assert session.get_one(Key, first.key_id).groups_held == ["board", "staff"]


async def test_a_person_who_was_revoked_stays_out(
    people: People, ring: KeyRing, clock: Clock, database: Database
) -> None:
    scope = await people.scope_of(signed(claims()))
    with database.write() as session:
        ring.revoke(session, scope.key_id, now=2.0)
    clock.now += 1
    for groups in (["board"], ["staff"]):
        with pytest.raises(KeyInvalid):
            await people.scope_of(signed(claims(groups=groups)))


async def test_claims_tell_tenant_role_and_groups_as_the_settings_say(
    database: Database, ring: KeyRing, clock: Clock, issuer: Issuer
) -> None:
    people = people_of(
        database,
        ring,
        clock,
        issuer.url,
        tenant_claim="org",
        role_claim="roles",
        groups_claim="teams",
        roles="sr-read=reader,sr-write=writer,sr-admin=admin",
    )
    told = {"org": "north", "roles": ["other", "sr-write", "sr-read"], "teams": "board"}
    scope = await people.scope_of(signed(claims(**told)))
    assert (scope.role, sorted(scope.groups)) == (Role.WRITER, ["board"])
    with database.read() as session:
        of_north = select(Key.tenant_id).where(Key.name == "first").order_by(Key.created_at)
        assert scope.tenant_id in session.scalars(of_north).all()
    for wrong in ({"org": "nowhere"}, {"org": None}, {"org": ["north", "default"]}, {"roles": "x"}):
        with pytest.raises(KeyInvalid):
            await people.scope_of(signed(claims(**{**told, **wrong})))
    clock.now += 1
    admin = await people.scope_of(signed(claims(**{**told, "roles": ["sr-admin"], "teams": ["*", ""]})))
    assert (admin.key_id, admin.is_admin, admin.groups) == (scope.key_id, True, frozenset())
    with database.read() as session:
        assert session.get_one(Key, scope.key_id).groups_held == [EVERY_GROUP, "board"]


async def test_the_issuers_keys_are_kept_and_read_again_when_they_change(
    people: People, issuer: Issuer, clock: Clock
) -> None:
    for number in range(5):
        await people.scope_of(signed(claims(sub=f"{number}")))
    assert issuer.asked == 1
    issuer.keys = [as_jwk(OTHER_KEY, "four")]
    clock.now += LEAST_PAUSE_S
    await people.scope_of(signed(claims(), key=OTHER_KEY, key_id="four"))
    assert issuer.asked == 2
    with pytest.raises(KeyInvalid):
        await people.scope_of(signed(claims(sub="late")))


async def test_keys_that_the_issuer_took_back_sign_nothing_after_a_while(
    people: People, issuer: Issuer, clock: Clock
) -> None:
    await people.scope_of(signed(claims()))
    issuer.keys = issuer.keys[1:]
    clock.now += KEYS_LIFE_S
    with pytest.raises(KeyInvalid):
        await people.scope_of(signed(claims()))


async def test_unknown_keys_do_not_make_us_ask_the_issuer_again_and_again(
    people: People, issuer: Issuer, clock: Clock
) -> None:
    for number in range(20):
        with pytest.raises(KeyInvalid):
            await people.scope_of(signed(claims(), key=OTHER_KEY, key_id=f"made up {number}"))
        clock.now += 1
    assert issuer.asked == 1


async def test_an_issuer_that_is_away_locks_nobody_out_who_was_known(
    people: People, issuer: Issuer, clock: Clock
) -> None:
    await people.scope_of(signed(claims()))
    issuer.status = 503
    clock.now += KEYS_LIFE_S
    assert await people.scope_of(signed(claims()))


async def test_a_redirect_to_keys_is_not_followed(
    database: Database, ring: KeyRing, clock: Clock, issuer: Issuer
) -> None:
    people = people_of(database, ring, clock, issuer.url.replace("/keys", "/elsewhere"))
    with pytest.raises(KeyInvalid):
        await people.scope_of(signed(claims()))
    assert issuer.asked == 0


async def test_keys_may_lie_in_a_file(
    database: Database, ring: KeyRing, clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [as_jwk(RSA_KEY, "one")]}))
    assert await people_of(database, ring, clock, str(path)).scope_of(signed(claims()))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"issuer": ISSUER}, "audience and jwks"),
        ({"issuer": ISSUER, "audience": "a", "jwks": "http://people.example/keys"}, "https"),
        ({"roles": "boss=owner"}, "boss"),
    ],
)
def test_settings_that_would_believe_too_much_are_refused(settings: Json, says: str) -> None:
    with pytest.raises(SettingsInvalid, match=says):
        read_settings().with_options(oidc=settings)


async def test_tokens_open_routes_beside_keys_and_only_if_an_issuer_is_trusted(
    tmp_path: Path, issuer: Issuer
) -> None:
    headers = {"Authorization": f"Bearer {signed(claims())}"}
    async with api_alone(tmp_path) as desk:
        assert desk.services.people is None
        assert (await desk.http.get("/v1/files", headers=headers)).status_code == 401
        trusting = OidcSettings(issuer=ISSUER, audience=AUDIENCE, jwks=issuer.url)
        people = People(desk.services.database, desk.services.keys, trusting, secret=SERVER_SECRET)
        object.__setattr__(desk.services, "people", people)
        assert (await desk.http.get("/v1/files", headers=headers)).status_code == 200
        assert (await desk.http.get("/v1/files")).status_code == 200
        assert (await desk.http.post("/v1/vector_stores", json={}, headers=headers)).status_code == 403
        (key,) = [
            each for each in (await desk.http.get("/v1/keys")).json()["data"] if each["issuer"] is not None
        ]
        assert (key["name"], key["role"], key["groups"]) == ("ada", "reader", ["board"])
        rotated = await desk.http.post(f"/v1/keys/{key['id']}/rotate", json={})
        assert (rotated.status_code, rotated.json()["error"]["code"]) == (400, "key_has_no_text")
        await desk.http.delete(f"/v1/keys/{key['id']}")
        desk.services.keys._remembered.clear()
        assert (await desk.http.get("/v1/files", headers=headers)).status_code == 401
