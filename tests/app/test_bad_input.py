"""What a client gets for what cannot be right: a status, OpenAI's error body, and words that name what to change."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.storage.opening import encrypted_blobs_dir
from tests.app.conftest import Api

LONG_AGO = "vs_000000000000000000000000"


def error_of(reply: Any, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    "header", [{}, {"Authorization": "Bearer sr-wrong"}, {"Authorization": "Basic eDp5"}]
)
async def test_without_a_valid_key_every_route_answers_401(api: Api, header: dict[str, str]) -> None:
    api.http.headers.pop("authorization")
    asked = [
        (method, path)
        for path, operations in api.app.openapi()["paths"].items()
        for method in operations
        if path not in ("/health", "/ready")
    ]
    assert len(asked) > 40
    for method, path in [*asked, ("get", "/openapi.json")]:
        reply = await api.http.request(method, path.replace("{", "").replace("}", ""), headers=header)
        assert error_of(reply, 401)["code"] == "invalid_api_key", (method, path)


async def test_a_readers_key_may_not_write(api: Api) -> None:
    from app.access.auth import DEFAULT_TENANT
    from retrieval.tables import Role

    with api.services.database.write() as session:
        _, key = api.services.keys.add(session, tenant_name=DEFAULT_TENANT, name="r", role=Role.READER, now=0)
    reader = {"Authorization": f"Bearer {key}"}
    assert (await api.http.get("/v1/vector_stores", headers=reader)).status_code == 200
    refused = await api.http.post("/v1/vector_stores", json={}, headers=reader)
    assert "writer" in error_of(refused, 403)["message"]


async def test_an_unknown_id_and_another_tenants_id_look_the_same(api: Api) -> None:
    from retrieval.tables import Role

    with api.services.database.write() as session:
        _, key = api.services.keys.add(session, tenant_name="other", name="o", role=Role.ADMIN, now=0)
    other = {"Authorization": f"Bearer {key}"}
    store_id = await api.store()
    file_id = await api.add_document(store_id, "a.txt", "The vault code is kept by Ondine Marsh.")
    for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content", f"/v1/vector_stores/{store_id}"):
        forbidden = await api.http.get(path, headers=other)
        absent = await api.http.get(path.replace(file_id, "file-nothing").replace(store_id, LONG_AGO))
        message = error_of(forbidden, 404)["message"]
        assert (
            message.replace(file_id, "file-nothing").replace(store_id, LONG_AGO)
            == error_of(absent, 404)["message"]
        )
    searched = await api.http.post(
        f"/v1/vector_stores/{store_id}/search", json={"query": "vault"}, headers=other
    )
    error_of(searched, 404)
    asked = await api.http.post(
        "/v1/chat/completions",
        json={
            "model": f"rag/{store_id}",
            "messages": [{"role": "user", "content": "Who keeps the vault code?"}],
        },
        headers=other,
    )
    error_of(asked, 404)
    everything = await api.http.post(
        "/v1/chat/completions",
        json={"model": "rag", "messages": [{"role": "user", "content": "Who keeps the vault code?"}]},
        headers=other,
    )
    assert everything.json()["grounded"] is False
    assert api.engine.requests == []


@pytest.mark.parametrize(
    ("name", "content", "status", "says"),
    [
        ("empty.txt", b"", 400, "empty"),
        ("page.pdf", b"<!doctype html><html><body><p>Not a PDF at all.</p></body></html>", 415, "HTML"),
        ("photo.heic", b"\0\0\0\x18ftypheic" + b"\0" * 64, 415, "HEIC"),
        ("program.exe", b"MZ" + b"\0\1\2\3" * 400, 415, ""),
        ("big.txt", b"word " * 60_000, 413, "200000"),
    ],
)
async def test_a_file_that_cannot_be_read_is_refused_with_what_was_found(
    api: Api, name: str, content: bytes, status: int, says: str
) -> None:
    error = error_of(await api.upload(name, content, purpose="assistants"), status)
    assert says.lower() in error["message"].lower()
    listed = (await api.http.get("/v1/files")).json()["data"]
    assert listed == []
    folder = encrypted_blobs_dir(api.settings)
    assert folder.is_dir()
    assert [path for path in folder.rglob("*") if path.is_file()] == []


async def test_an_upload_without_a_declared_length_is_cut_at_the_limit(api: Api) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'--edge\r\nContent-Disposition: form-data; name="file"; filename="x.txt"\r\n\r\n'
        for _ in range(1000):
            yield b"word " * 1000

    reply = await api.http.post(
        "/v1/files", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=edge"}
    )
    error_of(reply, 413)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'--edge\r\nContent-Disposition: form-data; name="file"; filename="x.txt"\r\n\r\nhalf', "cut"),
        (b"--edge\r\nno header\r\n\r\n--edge--", "malformed"),
        (
            b'--edge\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nassistants\r\n--edge--\r\n',
            "no file",
        ),
        (
            b'--edge\r\nContent-Disposition: form-data; name="purpose"\r\n\r\na\r\n'
            b'--edge\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nb\r\n--edge--\r\n',
            "twice",
        ),
    ],
)
async def test_a_broken_form_is_refused_and_leaves_nothing(api: Api, content: bytes, says: str) -> None:
    reply = await api.http.post(
        "/v1/files", content=content, headers={"Content-Type": "multipart/form-data; boundary=edge"}
    )
    assert says in error_of(reply, 400)["message"]


async def test_a_file_name_is_never_a_path(api: Api) -> None:
    for name in ("../../etc/passwd", "..\\..\\x.txt", "/etc/cron.d/x.txt", "a\x00b.txt", "..", "x" * 5000):
        reply = await api.upload(name, b"The text of a harmless note.", purpose="assistants")
        if reply.status_code == 200:
            shown = reply.json()["filename"]
            assert "/" not in shown
            assert "\\" not in shown
            assert len(shown) <= 255
    outside = [path for path in api.settings.storage.data_dir.parent.iterdir() if path.name != "data"]
    assert outside == []


CHAT = {"model": "rag", "messages": [{"role": "user", "content": "Hello there?"}]}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {**CHAT, "temperature": 9}, "temperature"),
        ("/v1/chat/completions", {**CHAT, "n": 10**9}, "n"),
        ("/v1/chat/completions", {**CHAT, "max_tokens": -1}, "max_tokens"),
        ("/v1/chat/completions", {**CHAT, "priority": 1}, "priority"),
        ("/v1/chat/completions", {**CHAT, "cache_salt": "x"}, "cache_salt"),
        ("/v1/chat/completions", {**CHAT, "frobnicate": True}, "frobnicate"),
        ("/v1/chat/completions", {"model": "rag"}, "messages"),
        ("/v1/chat/completions", {**CHAT, "messages": []}, "messages"),
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "wizard"}]}, "messages[0].role"),
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "system", "content": "x"}]}, "messages"),
        ("/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": []}, "input"),
        ("/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": ""}, "input"),
        ("/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": "word " * 600}, "input"),
        ("/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": "x", "dimensions": 3}, "dimensions"),
        ("/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": "x", "colour": 3}, "colour"),
        ("/v1/vector_stores", {"name": "x", "tenant_id": "t"}, "tenant_id"),
        ("/v1/vector_stores", {"name": 5}, "name"),
        ("/v1/vector_stores/STORE/search", {"query": "x", "max_num_results": 51}, "max_num_results"),
        (
            "/v1/vector_stores/STORE/search",
            {"query": "x", "filters": {"type": "like", "key": "a", "value": 1}},
            "filters.type",
        ),
        (
            "/v1/vector_stores/STORE/files",
            {"file_id": "file-a", "chunking_strategy": {"type": "magic"}},
            "chunking_strategy",
        ),
    ],
)
async def test_an_unknown_or_out_of_range_field_is_named(
    api: Api, path: str, body: dict[str, Any], param: str | None
) -> None:
    error = error_of(await api.http.post(path.replace("STORE", await api.store()), json=body), 400)
    if param is not None:
        assert param in error["message"]
        assert param in (error["param"] or "")
    assert api.engine.requests == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/vector_stores", "/v1/embeddings"])
@pytest.mark.parametrize("content", [b"", b"{", b"nonsense", b"[1]", b'{"model": "\xff"}', b"[" * 100_000])
async def test_a_body_that_is_no_json_object_is_400(api: Api, path: str, content: bytes) -> None:
    reply = await api.http.post(path, content=content, headers={"Content-Type": "application/json"})
    error_of(reply, 400)


async def test_an_unknown_model_is_404_and_lists_those_that_exist(api: Api) -> None:
    await api.store("notes")
    everything = ("rag", "rag/notes", "scripted", "all-MiniLM-L6-v2")
    for path, more, names in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}, everything),
        ("/v1/completions", {"prompt": "Hi"}, everything),
        ("/v1/embeddings", {"input": "Hi"}, ("all-MiniLM-L6-v2",)),
    ):
        error = error_of(await api.http.post(path, json={"model": "gpt-9", **more}), 404)
        assert error["code"] == "model_not_found"
        for name in names:
            assert name in error["message"]
    error_of(await api.http.get("/v1/models/gpt-9"), 404)
    error_of(await api.http.post("/v1/rerank", json={"model": "x", "query": "q", "documents": ["d"]}), 400)


async def test_without_an_engine_chat_is_503_and_the_rest_goes_on(api: Api) -> None:
    store_id = await api.store()
    await api.add_document(store_id, "a.txt", "The harbour master is Ondine Marsh.")
    api.engine.healthy = False
    await api.engine.__aexit__()
    for model in ("rag", "scripted"):
        reply = await api.chat("Who is the harbour master?", model=model)
        error = error_of(reply, 503)
        assert "engine" in error["message"]
        assert int(reply.headers["retry-after"]) >= 1
    searched = await api.http.post(f"/v1/vector_stores/{store_id}/search", json={"query": "harbour master"})
    assert searched.json()["data"][0]["filename"] == "a.txt"
    embedded = await api.http.post("/v1/embeddings", json={"model": "all-MiniLM-L6-v2", "input": "x"})
    assert len(embedded.json()["data"][0]["embedding"]) == 384
    ready = await api.http.get("/ready")
    assert ready.status_code == 503
    assert ready.json()["roles"]["engine"]["state"] == "unavailable"
    assert ready.json()["roles"]["database"]["state"] == "ready"


async def test_an_unknown_route_and_a_wrong_method_have_openais_error_body(api: Api) -> None:
    error_of(await api.http.get("/v1/nothing"), 404)
    error_of(await api.http.put("/v1/files"), 405)
