"""Engines come and go while the api runs."""

import asyncio

from retrieval.tables import Role
from tests.app.conftest import Api
from tests.fakes import ScriptedEngine


async def test_an_engine_that_is_added_takes_requests_and_one_that_is_removed_ends_its_own_first(
    api: Api,
) -> None:
    await api.chat("Hello", model="scripted")
    async with ScriptedEngine(models=("other",), answer=lambda _: "From the other.") as other:
        refused = await api.chat("Hello", model="other")
        added = await api.http.post("/v1/engines", json={"url": f"{other.url}/v1"})
        assert (refused.status_code, added.status_code) == (404, 200)
        other.gate.clear()
        asking = asyncio.create_task(api.chat("Hello", model="other"))
        await other.until(lambda: other.running == 1)
        removing = asyncio.create_task(api.http.delete("/v1/engines", params={"url": other.url}))
        listed = (await api.http.get("/v1/engines")).json()["data"]
        assert [engine["in_flight"] for engine in listed] == [0, 1]
        assert not removing.done()
        other.gate.set()
        assert (await asking).json()["choices"][0]["message"]["content"] == "From the other."
        assert (await removing).json()["deleted"] is True
    assert [engine["url"] for engine in (await api.http.get("/v1/engines")).json()["data"]] == [
        api.engine.url
    ]


async def test_addresses_that_are_none_known_or_unknown_are_refused_by_name(api: Api) -> None:
    for url, reason in (("vllm:8000", "address"), (api.engine.url, "already")):
        reply = await api.http.post("/v1/engines", json={"url": url})
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "url"
        assert reason in reply.json()["error"]["message"].lower()
    missing = await api.http.delete("/v1/engines", params={"url": "http://127.0.0.1:9"})
    assert missing.status_code == 404
    assert api.engine.url in missing.json()["error"]["message"]


async def test_only_admins_see_and_change_engines(api: Api) -> None:
    with api.services.database.write() as session:
        _, key = api.services.keys.add(session, tenant_name="north", name="x", role=Role.WRITER, now=1.0)
    headers = {"Authorization": f"Bearer {key}"}
    replies = [
        await api.http.get("/v1/engines", headers=headers),
        await api.http.post("/v1/engines", headers=headers, json={"url": "http://127.0.0.1:9"}),
        await api.http.delete("/v1/engines", headers=headers, params={"url": api.engine.url}),
    ]
    assert [reply.status_code for reply in replies] == [403, 403, 403]
