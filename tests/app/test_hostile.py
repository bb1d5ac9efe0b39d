"""The corpus of attacks: nothing breaks, nothing of another tenant's comes back, nothing is written outside.

Each is refused or does what it says; each reply is whole and has OpenAI's error body; no canary is in a reply, and in
the end none in a log, and no file is outside the data folder.
"""

import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import orjson
import pytest

from app.logs import EventFormatter
from ingest.sandbox import ParserPool
from retrieval.tables import Role
from tests.app.conftest import Api, opened_api
from tests.hostile import CANARY, OURS_ALONE, Attack, attacks
from tests.serving.hosting import MINILM


@pytest.fixture(scope="module")
async def vault(
    models_url: str, parsers: ParserPool, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator["Vault"]:
    folder = tmp_path_factory.mktemp("vault")
    async with opened_api(models_url, parsers, folder, embedding=str(MINILM)) as api:
        with api.services.database.write() as session:
            _, key = api.services.keys.add(session, tenant_name="other", name="o", role=Role.ADMIN, now=0)
        ours = api.http.headers["authorization"]
        api.http.headers["authorization"] = f"Bearer {key}"
        theirs = await api.store("theirs")
        await api.add_document(theirs, "secret.txt", f"The harbour master keeps {CANARY} in the vault.")
        api.http.headers["authorization"] = ours
        store_id = await api.store("ours")
        await api.add_document(store_id, "letter.txt", "The harbour master is Ondine Marsh.")
        yield Vault(api, folder, store_id)


class Vault:
    def __init__(self, api: Api, folder: Path, store_id: str) -> None:
        self.api = api
        self.folder = folder
        self._there = {"{store}": store_id, "{engine}": "scripted"}
        transport = httpx.ASGITransport(api.app, raise_app_exceptions=False)
        self._http = httpx.AsyncClient(
            transport=transport, base_url="http://strongroom", headers=api.http.headers, timeout=30
        )

    async def send(self, attack: Attack) -> httpx.Response:
        content = None
        headers = dict(attack.headers)
        if attack.json is not None:
            content = self._put(orjson.dumps(attack.json).decode()).encode()
            headers["content-type"] = "application/json"
        return await self._http.request(
            attack.method,
            self._put(attack.path),
            content=content,
            params=attack.params,
            headers={name: value.encode("utf-8", "replace") for name, value in headers.items()},  # type: ignore[arg-type]
            files=attack.files,
        )

    def _put(self, text: str) -> str:
        for place, there in self._there.items():
            text = text.replace(place, there)
        return text


def check(reply: httpx.Response, attack: Attack) -> None:
    assert reply.status_code in attack.statuses, reply.text[:500]
    assert CANARY not in reply.text
    assert reply.headers["x-request-id"]
    assert not any("\r" in value or "\n" in value for value in reply.headers.values())
    if reply.status_code >= 400 and not attack.path.startswith("/citations"):
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("attack", list(attacks()), ids=str)
async def test_an_attack_is_refused_or_does_what_it_says(vault: Vault, attack: Attack) -> None:
    asked_before = len(vault.api.engine.requests)
    check(await vault.send(attack), attack)
    if attack.kind.startswith(("unbounded", "address")):
        assert len(vault.api.engine.requests) == asked_before


async def test_no_body_sets_what_is_not_a_clients_to_set(vault: Vault) -> None:
    refused = 0
    for path, operations in vault.api.app.openapi()["paths"].items():
        for method, operation in operations.items():
            if "application/json" not in operation.get("requestBody", {}).get("content", {}):
                continue
            for name, value in OURS_ALONE.items():
                where = re.sub(r"\{(\w+)\}", "nothing", path.replace("{vector_store_id}", "{store}"))
                attack = Attack("ours", name, method.upper(), where, {name: value}, statuses=(400, 404))
                reply = await vault.send(attack)
                check(reply, attack)
                refused += reply.status_code == 400
    assert refused > 80


async def test_after_all_of_it_nothing_is_outside_nothing_is_logged_and_all_goes_on(
    vault: Vault, caplog: pytest.LogCaptureFixture
) -> None:
    assert {each.name for each in vault.folder.iterdir()} == {"data"}
    caplog.set_level(logging.DEBUG, "strongroom")
    for attack in attacks():
        if attack.kind.startswith(("sql", "tokens")):
            await vault.send(attack)
    form = EventFormatter("api")
    assert not [each for each in map(form.format, caplog.records) if CANARY in each or "union select" in each]
    found = await vault.send(
        Attack("after", "all", "POST", "/v1/vector_stores/{store}/search", {"query": "harbour master"})
    )
    assert [each["filename"] for each in found.json()["data"]] == ["letter.txt"]
