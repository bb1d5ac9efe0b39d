"""`readers` and `writers` over the API: in attaching, changing, searching, asking, citing, and in links and files."""

import io
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from app.access.auth import REMEMBER_S
from retrieval.tables import File
from tests.app.conftest import Api

Json = dict[str, Any]
SECRET, OPEN = "The seal of the vault lies in the clock tower.", "The seal of the mill lies in the barn."
QUESTION = "Where does the seal of the vault lie?"


class Desk:
    """Keys of several groups, and a store with an open document and one for the board."""

    def __init__(
        self,
        api: Api,
        client: Callable[..., Awaitable[httpx.AsyncClient]],
        ids: dict[httpx.AsyncClient, str],
    ) -> None:
        self.api, self.client, self.ids = api, client, ids

    async def open(self) -> None:
        self.board = await self.client("board", role="reader", groups=["board"])
        self.staff = await self.client("staff", role="reader", groups=["staff"])
        self.writer = await self.client("writer", role="writer", groups=["board"])
        self.store = await self.api.store()
        self.secret = await self.attach(SECRET, readers=["board"])
        self.open_file = await self.attach(OPEN)

    async def attach(self, content: str, **said: Any) -> str:
        file_id: str = (await self.api.upload("seal.txt", content.encode())).json()["id"]
        body = {"file_id": file_id, **said}
        reply = await self.api.http.post(f"/v1/vector_stores/{self.store}/files", json=body)
        assert reply.status_code == 200, reply.text
        await self.api.worker.drain()
        return file_id

    async def change(self, **said: Any) -> httpx.Response:
        path = f"/v1/vector_stores/{self.store}/files/{self.secret}"
        return await self.api.http.post(path, json=said)

    async def found(self, http: httpx.AsyncClient) -> set[str]:
        reply = await http.post(f"/v1/vector_stores/{self.store}/search", json={"query": QUESTION})
        assert reply.status_code == 200, reply.text
        return {each["content"][0]["text"] for each in reply.json()["data"]}

    async def asked(self, http: httpx.AsyncClient) -> Json:
        body = {"model": "rag", "messages": [{"role": "user", "content": QUESTION}]}
        message: Json = (await http.post("/v1/chat/completions", json=body)).json()["choices"][0]["message"]
        return message


@pytest.fixture
async def desk(api: Api) -> AsyncIterator[Desk]:
    ids: dict[httpx.AsyncClient, str] = {}
    async with AsyncExitStack() as stack:

        async def client(name: str, **said: Any) -> httpx.AsyncClient:
            key = (await api.http.post("/v1/keys", json={"name": name, **said})).json()
            http = httpx.AsyncClient(
                transport=httpx.ASGITransport(api.app),
                base_url="http://strongroom",
                headers={"Authorization": f"Bearer {key['value']}"},
            )
            ids[http] = key["id"]
            return await stack.enter_async_context(http)

        desk = Desk(api, client, ids)
        await desk.open()
        yield desk


async def test_readers_restrict_searches_answers_lists_and_contents(desk: Desk) -> None:
    assert await desk.found(desk.board) == {SECRET, OPEN}
    assert await desk.found(desk.staff) == {OPEN}
    desk.api.engine.answer = lambda _: f"{SECRET} [1]"
    said = await desk.asked(desk.board)
    assert [each["quote"] for each in said["annotations"]] == [SECRET]
    before = len(desk.api.engine.requests)
    said = await desk.asked(desk.staff)
    assert said["annotations"] == []
    assert SECRET not in str(desk.api.engine.requests[before:])
    store = f"/v1/vector_stores/{desk.store}"
    assert (await desk.board.get(store)).json()["file_counts"]["total"] == 2
    assert (await desk.staff.get(store)).json()["file_counts"]["total"] == 1
    for path in (
        f"{store}/files/{desk.secret}",
        f"{store}/files/{desk.secret}/content",
        f"{store}/files/{desk.secret}/events",
        f"/v1/files/{desk.secret}",
        f"/v1/files/{desk.secret}/content",
    ):
        assert (await desk.board.get(path)).status_code == 200
        hidden, absent = await desk.staff.get(path), await desk.staff.get(path.replace(desk.secret, "file-0"))
        assert (hidden.status_code, hidden.text.replace(desk.secret, "file-0")) == (404, absent.text)
    for path in ("/v1/files", f"{store}/files"):
        assert desk.secret in (await desk.board.get(path)).text
        assert desk.secret not in (await desk.staff.get(path)).text


async def test_a_citations_link_shows_what_its_key_may_read_when_it_is_opened(desk: Desk) -> None:
    desk.api.engine.answer = lambda _: f"{SECRET} [1]"
    said = await desk.asked(desk.board)
    link = said["annotations"][0]["url_citation"]["url"].partition("#")[0]
    path = link.removeprefix(desk.api.settings.public_url)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(desk.api.app), base_url="http://strongroom"
    ) as browser:
        assert SECRET in (await browser.get(path)).text
        await desk.change(readers=["staff"])
        for each in (path, f"{path}/source"):
            reply = await browser.get(each)
            assert (reply.status_code, SECRET in reply.text) == (404, False)
        await desk.change(readers=None)
        assert SECRET in (await browser.get(path)).text
        key_id = desk.ids[desk.board]
        await desk.change(readers=["board"])
        await desk.api.http.post(f"/v1/keys/{key_id}", json={"groups": []})
        assert (await browser.get(path)).status_code == 404


async def test_who_reads_changes_with_the_groups_of_a_key_within_a_second(desk: Desk) -> None:
    await desk.api.http.post(f"/v1/keys/{desk.ids[desk.staff]}", json={"groups": ["board"]})
    desk.api.services.keys._remembered.clear()  # As time does.
    assert await desk.found(desk.staff) == {SECRET, OPEN}
    assert REMEMBER_S <= 1


async def test_readers_are_shown_kept_changed_and_taken_away(desk: Desk) -> None:
    path = f"/v1/vector_stores/{desk.store}/files/{desk.secret}"
    assert (await desk.board.get(path)).json()["readers"] == ["board"]
    assert (await desk.change(attributes={"year": 1843})).json()["readers"] == ["board"]
    changed = (await desk.change(readers=["staff", "board", "staff"])).json()
    assert (changed["readers"], changed["attributes"]) == (["board", "staff"], {"year": 1843})
    assert (await desk.change(readers=None)).json()["readers"] is None
    assert await desk.found(desk.staff) == {SECRET, OPEN}
    hidden = await desk.writer.post(path, json={"readers": ["staff"]})
    assert (hidden.status_code, hidden.json()["readers"]) == (200, ["staff"])
    assert (await desk.writer.get(path)).status_code == 404


@pytest.mark.parametrize("readers", [[], ["*"], "board", [""], ["a\x00"], ["x" * 65], [1]])
async def test_readers_that_are_no_groups_are_refused_by_name(desk: Desk, readers: object) -> None:
    reply = await desk.change(readers=readers)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith("readers")


async def test_stores_name_their_readers_and_writers_and_admins_change_them(desk: Desk) -> None:
    path = f"/v1/vector_stores/{desk.store}"
    for said in ({"readers": ["board"]}, {"writers": None}):
        refused = await desk.writer.post(path, json=said)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_role")
    shown = (await desk.api.http.post(path, json={"readers": ["staff"], "writers": ["office"]})).json()
    assert (shown["readers"], shown["writers"]) == (["staff"], ["office"])
    assert (await desk.writer.get(path)).status_code == 404
    assert "rag/notes" not in (await desk.writer.get("/v1/models")).text
    assert (await desk.asked(desk.board))["annotations"] == []
    assert await desk.found(desk.staff) == {OPEN}
    shown = (await desk.api.http.post(path, json={"readers": None})).json()
    assert (shown["readers"], shown["writers"]) == (None, ["office"])
    refused = await desk.writer.post(path, json={"name": "mine"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_granted")
    made = (await desk.writer.post("/v1/vector_stores", json={"name": "b", "readers": ["board"]})).json()
    assert (await desk.board.get(f"/v1/vector_stores/{made['id']}")).status_code == 200
    assert (await desk.staff.get(f"/v1/vector_stores/{made['id']}")).status_code == 404


async def test_a_stored_response_is_for_keys_with_all_groups_of_its_own(desk: Desk) -> None:
    desk.api.engine.answer = lambda _: f"{SECRET} [1]"
    made = (await desk.board.post("/v1/responses", json={"model": "rag", "input": QUESTION})).json()
    path = f"/v1/responses/{made['id']}"
    assert (await desk.staff.get(path)).status_code == 404
    assert (await desk.staff.get(f"{path}/input_items")).status_code == 404
    assert SECRET in (await desk.writer.get(path)).text
    goes_on = {"model": "scripted", "input": "And?", "previous_response_id": made["id"]}
    assert (await desk.staff.post("/v1/responses", json=goes_on)).status_code == 400


async def test_a_message_shows_no_file_that_is_not_the_keys_to_read(desk: Desk) -> None:
    part = {"type": "file", "file": {"file_id": desk.secret}}
    body = {"model": "scripted", "messages": [{"role": "user", "content": [part]}]}
    assert (await desk.board.post("/v1/chat/completions", json=body)).status_code == 200
    assert (await desk.staff.post("/v1/chat/completions", json=body)).status_code == 404


async def test_files_inside_an_archive_are_read_by_who_reads_the_archive(desk: Desk) -> None:
    """From the moment that they are there, before they have documents of their own."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writing:
        writing.writestr("seal.txt", "The seal of the bank lies in the well.")
    file_id = (await desk.api.upload("letters.zip", archive.getvalue())).json()["id"]
    body = {"file_id": file_id, "readers": ["board"]}
    await desk.api.http.post(f"/v1/vector_stores/{desk.store}/files", json=body)
    await desk.api.worker.drain()
    listed = (await desk.board.get("/v1/files")).json()["data"]
    (inner,) = [each for each in listed if each["parent_file_id"] == file_id]
    assert inner["id"] not in (await desk.staff.get("/v1/files")).text
    assert await desk.found(desk.staff) == {OPEN}
    with desk.api.services.database.read() as session:
        assert session.get_one(File, inner["id"]).readers == ["board"]
