"""What every reply has: an id; and what a request gets that no route takes: OpenAI's error body with a code."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.edge.requests import MAX_BODY_BYTES
from app.storage.opening import encrypted_blobs_dir
from tests.app.alone import Alone, api_alone

STORE = "vs_" + "0" * 24


@pytest.fixture(scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Alone]:
    async with api_alone(tmp_path_factory.mktemp("desk")) as alone:
        yield alone


def error_of(reply: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert reply.headers["x-request-id"]
    return error


async def test_each_reply_has_an_id_of_its_own_or_the_clients_if_that_is_sane(desk: Alone) -> None:
    first, second = [(await desk.http.get("/health")).headers["x-request-id"] for _ in range(2)]
    assert first != second
    for sent, echoed in (("trace-1.2:3_x", True), ("a b", False), ("x" * 129, False), ("", False)):
        reply = await desk.http.get("/v1/files", headers={"X-Request-ID": sent})
        assert (reply.headers["x-request-id"] == sent) is echoed
    refused = await desk.http.get("/v1/files", headers={"Authorization": "Bearer x", "X-Request-ID": "mine"})
    assert (refused.status_code, refused.headers["x-request-id"]) == (401, "mine")


async def test_an_error_that_nobody_expected_has_an_id_too(
    desk: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("app.routes.files.catalog.get_file", broken)
    transport = httpx.ASGITransport(desk.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://strongroom") as http:
        headers = {**desk.http.headers, "X-Request-ID": "mine"}
        reply = await http.get("/v1/files/file-a", headers=headers)
    assert error_of(reply, 500, "internal_error")["type"] == "server_error"
    assert reply.headers["x-request-id"] == "mine"
    assert "a bug" not in reply.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/moderations"),
        ("POST", "/v1/images/generations"),
        ("POST", "/v1/audio/speech"),
        ("GET", "/v1/fine_tuning/jobs"),
        ("GET", "/v1/assistants"),
        ("POST", "/v1/threads/t/runs"),
    ],
)
async def test_an_interface_of_openais_that_is_not_here_says_so(desk: Alone, method: str, path: str) -> None:
    error = error_of(await desk.http.request(method, path), 404, "unsupported_api")
    assert path.split("/")[2] in error["message"]


async def test_an_unknown_path_and_a_wrong_method_are_told_apart(desk: Alone) -> None:
    error_of(await desk.http.get("/v1/imagesque"), 404, "unknown_url")
    wrong = await desk.http.put("/v1/files")
    assert "GET, POST" in error_of(wrong, 405, "method_not_allowed")["message"]
    assert wrong.headers["allow"] == "GET, POST"
    assert (await desk.http.patch(f"/v1/vector_stores/{STORE}")).headers["allow"] == "DELETE, GET, POST"


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("/v1/vector_stores", {"nam": "x"}, "nam", "unknown_parameter"),
        ("/v1/vector_stores", {"name": 5}, "name", "invalid_type"),
        ("/v1/vector_stores", {"name": "x" * 257}, "name", "invalid_value"),
        ("/v1/vector_stores", {"file_ids": [STORE]}, "file_ids.0", "invalid_value"),
        (f"/v1/vector_stores/{STORE}/search", {}, "query", "missing_required_parameter"),
        (
            f"/v1/vector_stores/{STORE}/search",
            {"query": "x", "max_num_results": "5"},
            "max_num_results",
            None,
        ),
        (f"/v1/vector_stores/{STORE}/files", {"file_id": "abc"}, "file_id", "invalid_value"),
        ("/v1/vector_stores/file-abc/search", {"query": "x"}, "vector_store_id", "invalid_value"),
        ("/v1/vector_stores/abc123/file_batches", {"file_ids": ["file-a"]}, "vector_store_id", None),
        (f"/v1/vector_stores/{STORE}/file_batches/{STORE}/cancel", {}, "batch_id", None),
    ],
)
async def test_what_is_wrong_with_a_field_has_openais_code_and_the_fields_name(
    desk: Alone, path: str, body: dict[str, Any], param: str, code: str | None
) -> None:
    reply = await desk.http.post(path, json=body)
    error = error_of(reply, 400, code or reply.json()["error"]["code"])
    assert error["param"] == param


async def test_an_id_that_nothing_has_is_404_and_one_that_no_id_can_be_400(desk: Alone) -> None:
    for path, wrong in (
        ("/v1/files/{}", "vs_abc"),
        ("/v1/files/{}/content", "abc"),
        ("/v1/vector_stores/{}", "file-abc"),
        ("/v1/vector_stores/{}/files", "abc123"),
        (f"/v1/vector_stores/{STORE}/files/{{}}", STORE),
        (f"/v1/vector_stores/{STORE}/file_batches/{{}}", "non_existent_batch_id"),
        ("/v1/uploads/{}", "file-abc"),
    ):
        assert (await desk.http.get(path.format(wrong))).status_code == 400, path
    for path in (
        "/v1/files/file-nothing",
        f"/v1/vector_stores/{STORE}/files",
        f"/v1/vector_stores/{STORE}/file_batches/vsfb_a",
        "/v1/uploads/upload_a/parts",
    ):
        error_of(await desk.http.get(path), 404, "not_found")


async def test_a_body_of_another_kind_is_415_and_one_too_long_413(desk: Alone) -> None:
    text = {"Content-Type": "text/plain"}
    error_of(
        await desk.http.post("/v1/vector_stores", content=b"{}", headers=text),
        415,
        "unsupported_content_type",
    )
    error_of(await desk.http.post("/v1/files", json={}), 415, "unsupported_content_type")

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 2**20 + 1):
            yield b" " * 2**20

    for path in ("/v1/vector_stores", "/v1/chat/completions"):
        headers = {"Content-Type": "application/json"}
        reply = await desk.http.post(path, content=endless(), headers=headers)
        error_of(reply, 413, "request_too_large")


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        b'{"name": ' + DEEP + b"}",
        b'{"metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b'{"name": "\xff\xfe"}',
        b'{"name": "\\ud800"}',
        b'{"name": "a\\u0000b"}',
        b'{"expires_after": {"anchor": "last_active_at", "days": 1e999}}',
        b'{"name": NaN}',
        b"\xef\xbb\xbf[",
    ],
)
async def test_json_that_is_deep_or_not_utf8_or_holds_what_no_database_can_is_400(
    desk: Alone, content: bytes
) -> None:
    headers = {"Content-Type": "application/json"}
    for path in ("/v1/vector_stores", f"/v1/vector_stores/{STORE}/search"):
        reply = await desk.http.post(path, content=content, headers=headers)
        assert reply.status_code == 400, reply.text
        assert reply.json()["error"]["code"]


FORM = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nA note.\r\n'
FIELD = b'--edge\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'


@pytest.mark.parametrize(
    ("kind", "content", "says"),
    [
        ("multipart/form-data; boundary=edge", FORM + FORM + b"--edge--\r\n", "twice"),
        (
            "multipart/form-data; boundary=edge",
            FORM + FIELD % (b"purpose", b"batch") * 2 + b"--edge--\r\n",
            "twice",
        ),
        ("multipart/form-data; boundary=other", FORM + b"--edge--\r\n", "malformed"),
        ("multipart/form-data", FORM + b"--edge--\r\n", "boundary"),
        ("multipart/form-data; boundary=edge", FORM, "cut"),
        ("multipart/form-data; boundary=edge", b"", "cut"),
        (
            "multipart/form-data; boundary=edge",
            FORM + FIELD % (b"expires_after", b'{"anchor": "created_at"') + b"--edge--\r\n",
            "expires_after",
        ),
        (
            "multipart/form-data; boundary=edge",
            b"--edge\r\nContent-Disposition: form-data; name=" + b"x" * 100_000 + b"\r\n\r\n",
            "header",
        ),
    ],
)
async def test_a_form_that_cannot_be_right_is_refused_and_leaves_nothing(
    desk: Alone, kind: str, content: bytes, says: str
) -> None:
    reply = await desk.http.post("/v1/files", content=content, headers={"Content-Type": kind})
    assert reply.status_code == 400, reply.text
    assert says in reply.json()["error"]["message"]
    assert [path for path in encrypted_blobs_dir(desk.services.settings).rglob("*") if path.is_file()] == []


async def test_the_description_of_the_api_is_whole_and_for_key_holders(desk: Alone) -> None:
    document = (await desk.http.get("/openapi.json")).json()
    for operations in document["paths"].values():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            assert operation["responses"]["default"]["content"]["application/json"]["schema"]
    stranger = await desk.http.get("/openapi.json", headers={"Authorization": "Bearer x"})
    assert stranger.status_code == 401
