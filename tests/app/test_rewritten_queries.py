"""`rewrite_query` of a search: the generation model puts the query otherwise, and the reply says how."""

from typing import Any

from tests.app.conftest import Api

TEXTS = ("The harbour master of Tolm is Ondine Marsh.", "Whales feed on krill.")


async def searched(api: Api, query: Any, **more: Any) -> Any:
    store_id = await api.store()
    for number, text in enumerate(TEXTS):
        await api.add_document(store_id, f"{number}.txt", text)
    body = {"query": query, "rewrite_query": True, **more}
    return await api.http.post(f"/v1/vector_stores/{store_id}/search", json=body)


async def test_a_query_is_searched_as_the_model_puts_it(api: Api) -> None:
    api.engine.answer = lambda _: '"harbour master Tolm"\nThat is it.'
    reply = await searched(api, "tell me please who the harbour master of Tolm is")
    assert reply.json()["search_query"] == ["harbour master Tolm"]
    assert reply.json()["data"][0]["filename"] == "0.txt"
    assert "rewrite_failed" not in reply.json()
    assert "rewrite;dur=" in reply.headers["server-timing"]
    assert len(api.engine.requests) == 1


async def test_what_loses_the_querys_sense_is_not_searched_for(api: Api) -> None:
    api.engine.answer = lambda _: "I cannot help with that."
    reply = await searched(api, ["What do whales feed on?", "harbour master"])
    assert reply.json()["search_query"] == ["What do whales feed on?", "harbour master"]
    assert reply.json()["rewrite_failed"] == "nonsense"
    assert {each["filename"] for each in reply.json()["data"][:2]} == {"0.txt", "1.txt"}


async def test_without_a_generation_model_it_is_refused_and_says_why(api: Api) -> None:
    await api.engine.__aexit__()
    api.engine.healthy = False
    while await api.services.gateway.models():
        await api.http.get("/ready")
    reply = await searched(api, "harbour master")
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == "rewrite_query"
    assert "Query rewriting is not available" in error["message"]
