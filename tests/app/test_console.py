"""The console without a browser: who gets in, what a request must bring, what is kept, and what is gone."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import orjson
import pytest

from app.access.auth import DEFAULT_TENANT
from app.console import overview
from app.console.assets import STATIC, read_assets
from app.console.invitations import LASTS_S, Invitations
from app.console.opening import MODULES
from app.console.scripts import HTMX, SCRIPTS, ScriptsMissing, read_script
from app.console.search_lab import columns_of
from app.console.session import COOKIE, PATH
from app.console.views import ConsoleRoute
from app.evaluation.questions import read_questions
from app.routes.sources import AddSource, add
from ingest.sandbox import ParserPool
from retrieval.places import Place
from retrieval.search import FoundChunk
from retrieval.tables import Role
from tests.app.conftest import Api, opened_api
from tests.app.visitor import visiting
from tests.serving.hosting import MINILM, served

HARBOUR = "The harbour master of Vellmouth is Ondine Marsh. She lives at the quay."
QUESTION = "Who is the harbour master of Vellmouth?"
OWN_JS_BYTES, ALL_JS_BYTES = 30_000, 120_000
IDS = {
    "collection_id": "vs_" + "0" * 24,
    "file_id": "file-" + "0" * 24,
    "conversation_id": "conv_" + "0" * 24,
    "source_id": "source_" + "0" * 24,
    "key_id": "key_" + "0" * 24,
    "question_id": "question_" + "0" * 24,
    "set_name": "vault",
    "upload_id": "upload_" + "0" * 24,
    "number": "1",
    "action": "delete",
    "name": "console.css",  # And of a report: none has it.
}
PUBLIC = {
    "/",
    "/console/sign-in",
    "/console/sign-in/begin",
    "/console/sign-in/return",
    "/console/static/{name}",
    "/console/reports",
    # It takes a key, as the API does.
    "/console/invitations",
}


@pytest.fixture(scope="module")
async def module_api(
    models_url: str, parsers: ParserPool, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Api]:
    folder = tmp_path_factory.mktemp("console")
    async with opened_api(models_url, parsers, folder, embedding=str(MINILM)) as opened:
        yield opened


@pytest.fixture
async def api(module_api: Api) -> AsyncIterator[Api]:
    """One for all of these tests, without what the one before left in it."""
    yield module_api
    module_api.engine.answer, module_api.engine.between_words_s = (lambda _: "It is so."), 0.0
    module_api.engine.requests.clear()
    module_api.engine.departures = 0
    await module_api.worker.drain()
    for store in (await module_api.http.get("/v1/vector_stores")).json()["data"]:
        await module_api.http.delete(f"/v1/vector_stores/{store['id']}")


def key_of(api: Api) -> str:
    return (api.settings.storage.data_dir / "keys" / "admin.key").read_text().strip()


def guarded_routes() -> Iterator[tuple[str, str]]:
    """Method and path of each."""
    for route in (route for module in MODULES for route in module.router.routes):
        assert isinstance(route, ConsoleRoute)
        if route.path not in PUBLIC:
            yield from ((method, route.path.format(**IDS)) for method in route.methods or ())


def new_key(api: Api, role: Role, tenant: str = DEFAULT_TENANT) -> tuple[str, str]:
    """Its id and its text."""
    with api.services.storage.database.write() as session:
        key, text = api.services.keys.add(
            session, tenant_name=tenant, name="of a test", role=role, now=time.time()
        )
        return key.id, text


@pytest.fixture
async def visitor(api: Api) -> AsyncIterator[httpx.AsyncClient]:
    async with visiting(api, key_of(api)) as client:
        yield client


async def ask(visitor: httpx.AsyncClient, question: str = QUESTION, **more: object) -> list[dict[str, str]]:
    """The lines of the answer."""
    reply = await visitor.post("/console/ask", json={"question": question, **more})
    assert reply.status_code == 200, reply.text
    return [orjson.loads(line) for line in reply.text.splitlines()]


async def test_the_cookie_names_a_key_and_holds_none(api: Api) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(api.app), base_url="http://strongroom"
    ) as client:
        reply = await client.post("/console/sign-in", data={"key": key_of(api)})
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert f"Path={PATH}" in cookie
    assert "Secure" not in cookie  # This is no TLS.
    assert key_of(api) not in cookie


async def test_under_tls_the_cookie_goes_by_tls_alone(api: Api) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(api.app), base_url="https://strongroom"
    ) as client:
        reply = await client.post("/console/sign-in", data={"key": key_of(api)})
    assert "Secure" in reply.headers["set-cookie"]


async def test_a_wrong_key_opens_nothing(api: Api) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(api.app), base_url="http://strongroom"
    ) as client:
        reply = await client.post("/console/sign-in", data={"key": "sr-wrong"})
        assert reply.status_code == 401
        assert "set-cookie" not in reply.headers


async def test_no_route_of_the_console_answers_who_is_not_signed_in(api: Api) -> None:
    asked = 0
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(api.app), base_url="http://strongroom"
    ) as client:
        for method, path in guarded_routes():
            for cookie in ("", "forged", "Zm9yZ2Vk"):
                headers = {"Cookie": f"{COOKIE}={cookie}"} if cookie else {}
                reply = await client.request(method, path, headers=headers)
                assert reply.status_code == 401, (method, path, reply.text)
                asked += 1
    assert asked > 60


async def test_a_page_that_tells_of_an_error_leads_on(
    api: Api, visitor: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    html = {"accept": "text/html"}
    _, reader = new_key(api, Role.READER)
    for path in ("/console/collections/vs_none", "/console/nowhere", "/console/no/where"):
        page = await visitor.get(path, headers=html)
        assert page.status_code == 404, path
        assert 'aria-label="Pages"' in page.text, path
        assert "Sign out" in page.text, path
    async with visiting(api, reader) as reading:
        page = await reading.get("/console/admin", headers=html)
        assert page.status_code == 403
        assert 'href="/console/collections"' in page.text
        # And offers nothing that would lead to the same again.
        assert 'href="/console/admin"' not in page.text

    def broken(*_: object) -> None:
        raise RuntimeError("Nobody expected this.")

    monkeypatch.setattr(overview, "_counts", broken)
    page = await visitor.get("/console/overview", headers=html)
    assert page.status_code == 500
    assert 'aria-label="Pages"' in page.text
    assert "Try again" in page.text
    assert "Nobody expected" not in page.text
    # Who is signed out is led to sign in, and from there on.
    visitor.cookies.clear()
    for path in ("/console/admin", "/console/nowhere"):
        assert (await visitor.get(path, headers=html)).headers["location"] == "/console/sign-in"


async def test_the_cookie_opens_nothing_of_the_api(api: Api, visitor: httpx.AsyncClient) -> None:
    cookie = next(iter(visitor.cookies.jar))
    headers = {"Cookie": f"{cookie.name}={cookie.value}"}
    for path in ("/v1/vector_stores", "/v1/files", "/v1/models", "/v1/sources", "/metrics", "/openapi.json"):
        assert (await visitor.get(path, headers=headers)).status_code == 401


async def test_what_changes_something_needs_the_token_of_the_page(
    api: Api, visitor: httpx.AsyncClient
) -> None:
    asked = 0
    for method, path in guarded_routes():
        if method == "GET":
            continue
        for headers in ({"X-CSRF-Token": ""}, {"X-CSRF-Token": "0" * 64}, {"Origin": "http://evil.test"}):
            reply = await visitor.request(method, path, headers=headers)
            assert reply.status_code == 403, (method, path, reply.text)
            asked += 1
    assert asked > 30


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "null"}, {"Origin": "http://evil.test"}, {"Sec-Fetch-Site": "cross-site"}],
)
async def test_another_site_signs_nobody_in(api: Api, headers: dict[str, str]) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(api.app), base_url="http://strongroom"
    ) as client:
        reply = await client.post("/console/sign-in", data={"key": key_of(api)}, headers=headers)
    assert reply.status_code == 403


async def test_a_link_signs_in_once(api: Api) -> None:
    link = (await api.http.post("/console/invitations")).json()["url"]
    code = link.partition("?once=")[2]
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(api.app), base_url="http://strongroom"
    ) as client:
        assert (await client.post("/console/invitations")).status_code == 401
        shown = await client.get(f"/console/sign-in?once={code}")
        assert f'value="{code}"' in shown.text
        assert (await client.post("/console/sign-in", data={"once": code})).status_code == 303
        assert (await client.get("/console")).status_code == 200
        assert (await client.post("/console/sign-in", data={"once": code})).status_code == 401


def test_a_link_lasts_a_while() -> None:
    now = [0.0]
    invitations = Invitations(clock=lambda: now[0])
    code = invitations.make("key_1")
    late = invitations.make("key_1")
    assert invitations.take(code) == "key_1"
    now[0] = LASTS_S + 1
    assert invitations.take(late) is None


async def test_a_session_ends_with_its_key(api: Api) -> None:
    key_id, text = new_key(api, Role.READER)
    async with visiting(api, text) as visitor:
        with api.services.storage.database.write() as session:
            api.services.keys.revoke(session, key_id, now=time.time())
        assert (await visitor.get("/console")).status_code == 401
        page = await visitor.get("/console", headers={"accept": "text/html"})
        assert (page.status_code, page.headers["location"]) == (303, "/console/sign-in")
        fragment = await visitor.get("/console", headers={"HX-Request": "true"})
        assert fragment.headers["HX-Redirect"] == "/console/sign-in"


async def test_each_reply_says_what_a_browser_may_load_and_run(visitor: httpx.AsyncClient) -> None:
    for path in (
        "/console",
        "/console/sign-in",
        "/console/collections/vs_none",
        "/console/static/console.css",
    ):
        reply = await visitor.get(path, headers={"accept": "text/html"})
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert "unsafe" not in policy


async def test_a_reader_reads_and_changes_nothing(api: Api) -> None:
    store = await api.store()
    file_id = await api.add_document(store, "harbour.txt", HARBOUR)
    _, text = new_key(api, Role.READER)
    async with visiting(api, text) as visitor:
        assert (await visitor.get(f"/console/collections/{store}")).status_code == 200
        refused = [
            await visitor.post("/console/collections", data={"name": "mine"}),
            await visitor.delete(f"/console/collections/{store}"),
            await visitor.post(f"/console/collections/{store}/upload", content=b"x"),
            await visitor.post(f"/console/collections/{store}/selected/delete", data={"file": file_id}),
            await visitor.get("/console/admin"),
            await visitor.post("/console/admin/keys", data={"name": "more", "role": "admin"}),
        ]
        assert {reply.status_code for reply in refused} == {403}


async def test_another_tenant_finds_nothing(api: Api) -> None:
    store = await api.store()
    file_id = await api.add_document(store, "harbour.txt", HARBOUR)
    async with visiting(api, key_of(api)) as owner:
        api.engine.answer = lambda _: "It is Ondine Marsh."
        conversation = (await ask(owner))[0]["conversation"]
    key_id, text = new_key(api, Role.ADMIN, tenant="another")
    with api.services.storage.database.read() as session:
        admin_id = (await api.services.keys.scope_of(key_of(api))).key_id
        assert session is not None
    async with visiting(api, text) as visitor:
        file = f"/console/collections/{store}/files/{file_id}"
        hidden = [
            await visitor.get(f"/console/collections/{store}"),
            await visitor.get(f"/console/collections/{store}/live?file={file_id}"),
            await visitor.get(file),
            await visitor.get(f"{file}/quote?start=0&end=5"),
            await visitor.get(f"{file}/pages/1.png"),
            await visitor.get(f"{file}/original"),
            await visitor.post(f"{file}/attributes", data={"attributes": "a = b"}),
            await visitor.post(f"/console/collections/{store}/upload", content=b"x"),
            await visitor.delete(f"/console/collections/{store}"),
            await visitor.get(f"/console/conversations/{conversation}"),
            await visitor.get(f"/console/conversations/{conversation}/export"),
            await visitor.delete(f"/console/conversations/{conversation}"),
            await visitor.delete(f"/console/admin/keys/{admin_id}"),
        ]
        told = {reply.status_code for reply in hidden}
        assert told <= {404, 200}
        assert [reply.status_code for reply in hidden if reply.status_code == 200] == [200]
        assert HARBOUR not in "".join(reply.text for reply in hidden)
        assert "harbour" not in (await visitor.get("/console/collections")).text
        assert conversation not in (await visitor.get("/console")).text
        assert key_id in (await visitor.get("/console/admin")).text
        assert admin_id not in (await visitor.get("/console/admin")).text


async def test_conversations_are_of_one_key(api: Api, visitor: httpx.AsyncClient) -> None:
    await api.add_document(await api.store(), "harbour.txt", HARBOUR)
    conversation = (await ask(visitor))[0]["conversation"]
    _, text = new_key(api, Role.ADMIN)
    async with visiting(api, text) as another:
        assert (await another.get(f"/console/conversations/{conversation}")).status_code == 404
        assert conversation not in (await another.get("/console")).text


async def test_an_answer_comes_with_chips_sources_and_marks_and_is_kept(
    api: Api, visitor: httpx.AsyncClient
) -> None:
    store = await api.store()
    file_id = await api.add_document(store, "harbour.txt", HARBOUR)
    api.engine.answer = lambda _: (
        "The harbour master of Vellmouth is Ondine Marsh [1]. She has seven green parrots."
    )
    first, *painted, closing = await ask(visitor)
    assert len(painted) > 1  # It came in pieces.
    page = await visitor.get(f"/console/conversations/{first['conversation']}")
    for shown in ("".join(each for line in painted for each in line["blocks"]), page.text):
        assert re.search(r'<button[^>]*data-cite="0"[^>]*>1</button>', shown)
        assert re.search(r'class="unsupported"[^>]*>She has seven green parrots', shown)
    assert f"/console/collections/{store}/files/{file_id}/quote?start=0&amp;end=48" in painted[-1]["sources"]
    assert "The harbour master of Vellmouth is Ondine Marsh." in painted[-1]["sources"]
    assert closing == {"closing": "\n"} or "No evidence" not in closing["closing"]
    exported = await visitor.get(f"/console/conversations/{first['conversation']}/export")
    assert exported.text.startswith(f"# {QUESTION}\n\n## {QUESTION}\n\nThe harbour master")
    assert "- [1] harbour.txt: “The harbour master of Vellmouth is Ondine Marsh.”" in exported.text


async def test_a_conversation_keeps_no_text_of_documents(api: Api, visitor: httpx.AsyncClient) -> None:
    store = await api.store()
    file_id = await api.add_document(store, "harbour.txt", HARBOUR)
    api.engine.answer = lambda _: "The harbour master of Vellmouth is Ondine Marsh [1]."
    conversation = (await ask(visitor))[0]["conversation"]
    await visitor.post(f"/console/collections/{store}/selected/delete", data={"file": file_id})
    page = await visitor.get(f"/console/conversations/{conversation}")
    assert "The document was deleted." in page.text
    assert (await api.http.get(f"/v1/files/{file_id}")).status_code == 404


async def test_a_question_that_no_document_bears_on_is_told_so_with_the_nearest_passages(
    api: Api, visitor: httpx.AsyncClient
) -> None:
    await api.add_document(await api.store(), "harbour.txt", HARBOUR)
    *_, closing = await ask(visitor, "How do quarks bind in a proton?")
    assert "Not in the documents." in closing["closing"]
    assert "harbour.txt" in closing["closing"]
    assert api.engine.requests == []


async def test_the_next_question_goes_on_from_the_conversation(api: Api, visitor: httpx.AsyncClient) -> None:
    await api.add_document(await api.store(), "harbour.txt", HARBOUR)
    first = (await ask(visitor))[0]
    again = (await ask(visitor, "And where does she live?", conversation=first["conversation"]))[0]
    assert again["conversation"] == first["conversation"]
    sent = [message["content"] for message in api.engine.requests[-1]["messages"]]
    assert any(QUESTION in content for content in sent)


async def test_a_question_that_is_asked_again_replaces_its_turn_and_what_follows(
    api: Api, visitor: httpx.AsyncClient
) -> None:
    await api.add_document(await api.store(), "harbour.txt", HARBOUR)
    first = (await ask(visitor))[0]
    in_it = {"conversation": first["conversation"]}
    second = (await ask(visitor, "Where does the harbour master live?", **in_it))[0]
    await ask(visitor, "Is the harbour master at the quay?", **in_it)
    api.engine.requests.clear()
    third = (await ask(visitor, "Does the harbour master live at sea?", instead_of=second["turn"], **in_it))[
        0
    ]
    sent = "".join(str(message["content"]) for message in api.engine.requests[-1]["messages"])
    assert QUESTION in sent
    assert "Where does" not in sent
    page = (await visitor.get(f"/console/conversations/{first['conversation']}")).text
    assert re.findall(r'data-turn="(msg_\w+)"', page) == [first["turn"], third["turn"]]
    items = (await api.http.get(f"/v1/conversations/{first['conversation']}/items")).json()["data"]
    assert len(items) == 4
    gone = {"question": QUESTION, "instead_of": second["turn"]}
    assert (await visitor.post("/console/ask", json={**gone, **in_it})).status_code == 404
    assert (await visitor.post("/console/ask", json=gone)).status_code == 400


async def test_only_the_chosen_collections_are_searched_and_the_chosen_model_answers(
    api: Api, visitor: httpx.AsyncClient
) -> None:
    harbour, mill = await api.store("harbour"), await api.store("mill")
    await api.add_document(harbour, "harbour.txt", HARBOUR)
    await api.add_document(mill, "mill.txt", "The harbour master of Vellmouth sold the mill in spring.")
    page = (await visitor.get("/console")).text
    assert f'name="collections" value="{harbour}"' in page
    for chosen, name, other in ((harbour, "harbour.txt", "mill.txt"), (mill, "mill.txt", "harbour.txt")):
        await ask(visitor, collections=[chosen], model="scripted")
        asked = api.engine.requests[-1]
        assert asked["model"] == "scripted"
        told = "".join(str(message["content"]) for message in asked["messages"])
        assert name in told
        assert other not in told
    refused = await visitor.post("/console/ask", json={"question": QUESTION, "model": "absent"})
    assert "absent" in refused.text


async def test_a_conversation_is_renamed_and_deleted(api: Api, visitor: httpx.AsyncClient) -> None:
    await api.add_document(await api.store(), "harbour.txt", HARBOUR)
    conversation = (await ask(visitor))[0]["conversation"]
    await visitor.post(f"/console/conversations/{conversation}/rename", data={"title": "The quay"})
    assert "The quay" in (await visitor.get("/console")).text
    await visitor.delete(f"/console/conversations/{conversation}")
    assert "The quay" not in (await visitor.get("/console")).text
    assert (await api.http.get(f"/v1/conversations/{conversation}")).status_code == 404


async def test_who_stops_an_answer_stops_the_engine_and_keeps_what_came(
    api: Api, visitor: httpx.AsyncClient
) -> None:
    await api.add_document(await api.store(), "harbour.txt", HARBOUR)
    api.engine.answer = lambda _: "The harbour master is " + "Ondine " * 400
    api.engine.between_words_s = 0.02
    async with (
        served(api.app, is_started=True) as url,
        httpx.AsyncClient(base_url=url, headers=visitor.headers) as client,
    ):
        cookie = next(iter(visitor.cookies.jar))
        headers = {"Cookie": f"{cookie.name}={cookie.value}", "host": "strongroom"}
        async with client.stream(
            "POST", "/console/ask", json={"question": QUESTION}, headers=headers
        ) as reply:
            lines = reply.aiter_lines()
            conversation = orjson.loads(await anext(lines))["conversation"]
            await anext(lines)
        left = time.monotonic()
        while not api.engine.departures:
            assert time.monotonic() - left < 1.0, "the engine still computes"
            await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            while "was stopped" not in (await visitor.get(f"/console/conversations/{conversation}")).text:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_files_come_with_their_folders_and_a_refused_one_says_why(
    api: Api, visitor: httpx.AsyncClient
) -> None:
    store = await api.store()
    upload = f"/console/collections/{store}/upload"
    taken = await visitor.post(
        upload, content=HARBOUR.encode(), headers={"X-File-Path": "port/Gr%C3%BC%C3%9Fe.txt"}
    )
    refused = await visitor.post(
        upload, content=b"\x7fELF\x02\x01\x01" + bytes(200), headers={"X-File-Path": "run"}
    )
    too_large = await visitor.post(upload, content=bytes(200_001), headers={"X-File-Path": "zeros.txt"})
    assert (taken.status_code, refused.status_code, too_large.status_code) == (201, 415, 413)
    assert "program" in refused.text
    await api.worker.drain()
    table = (await visitor.get(f"/console/collections/{store}")).text
    assert "Grüße.txt" in table
    assert "port" in table
    assert "1 completed" in table


async def test_a_file_in_parts_goes_on_from_what_is_there(api: Api, visitor: httpx.AsyncClient) -> None:
    store = await api.store()
    here = f"/console/collections/{store}/uploads"
    content = (HARBOUR * 900).encode()
    named = {"X-File-Path": "port/harbour.txt"}
    begun = await visitor.post(f"{here}?bytes={len(content)}", headers=named)
    upload = f"{here}/{begun.json()['id']}"
    part = content[:40_000]
    assert (await visitor.post(f"{upload}/parts?after=0", content=part)).json() == {"received": 40_000}
    # Its answer was lost: the same part comes again, and is told what is there.
    assert (await visitor.post(f"{upload}/parts?after=0", content=part)).json() == {"received": 40_000}
    assert (await visitor.post(f"{upload}/complete", headers=named)).status_code == 400
    assert (await visitor.get(upload)).json() == {"received": 40_000}
    rest = await visitor.post(f"{upload}/parts?after=40000", content=content[40_000:])
    assert rest.json() == {"received": len(content)}
    done = await visitor.post(f"{upload}/complete", headers=named)
    again = await visitor.post(f"{upload}/complete", headers=named)
    assert (done.status_code, again.status_code) == (201, 201)
    assert done.json() == again.json()
    assert (await visitor.get(upload)).json() == {"received": len(content)}
    stored = await api.http.get(f"/v1/files/{done.json()['id']}/content")
    assert stored.content == content
    table = (await visitor.get(f"/console/collections/{store}")).text
    assert table.count("harbour.txt</a>") == 1
    assert "port" in table


async def test_the_same_file_at_the_same_place_is_one_document(api: Api, visitor: httpx.AsyncClient) -> None:
    store = await api.store()
    ids = [
        (
            await visitor.post(
                f"/console/collections/{store}/upload", content=content, headers={"X-File-Path": path}
            )
        ).json()["id"]
        for content, path in (
            (b"The quay.", "port/quay.txt"),
            (b"The quay.", "port/quay.txt"),
            (b"The quay.", "quay.txt"),
            (b"The quay!", "port/quay.txt"),
        )
    ]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    listed = (await api.http.get(f"/v1/vector_stores/{store}/files")).json()["data"]
    assert {each["id"] for each in listed} == set(ids)
    assert {each["id"] for each in (await api.http.get("/v1/files")).json()["data"]} >= set(ids)


async def test_of_a_file_in_parts_that_is_refused_nothing_stays(api: Api, visitor: httpx.AsyncClient) -> None:
    here = f"/console/collections/{await api.store()}/uploads"
    content = b"\x7fELF\x02\x01\x01" + bytes(200)
    begun = await visitor.post(f"{here}?bytes={len(content)}", headers={"X-File-Path": "run"})
    upload = f"{here}/{begun.json()['id']}"
    await visitor.post(f"{upload}/parts?after=0", content=content)
    assert (await visitor.post(f"{upload}/complete", headers={"X-File-Path": "run"})).status_code == 415
    gone = await visitor.get(upload)
    assert (gone.status_code, "cancelled" in gone.text) == (400, True)
    assert (await visitor.post(f"{here}?bytes=200001")).status_code == 413


async def test_an_upload_of_another_tenant_is_not_there(api: Api, visitor: httpx.AsyncClient) -> None:
    store = await api.store()
    begun = await visitor.post(f"/console/collections/{store}/uploads?bytes=9")
    _, text = new_key(api, Role.ADMIN, tenant="another")
    async with visiting(api, text) as another:
        upload = f"/console/collections/{store}/uploads/{begun.json()['id']}"
        told = [
            await another.get(upload),
            await another.post(f"{upload}/parts?after=0", content=b"x"),
            await another.post(f"{upload}/complete"),
            await another.post(f"/console/collections/{store}/uploads?bytes=9"),
        ]
    assert {reply.status_code for reply in told} == {404}


async def test_all_of_a_list_is_retried_cancelled_and_deleted(api: Api, visitor: httpx.AsyncClient) -> None:
    store = await api.store()
    here = f"/console/collections/{store}"
    for number in range(60):
        await visitor.post(
            f"{here}/upload", content=b"%PDF-1.4\nno", headers={"X-File-Path": f"broken-{number}.pdf"}
        )
    await visitor.post(f"{here}/upload", content=HARBOUR.encode(), headers={"X-File-Path": "harbour.txt"})
    await api.worker.drain()
    assert "60 failed" in (await visitor.get(here)).text
    await visitor.post(f"{here}/matching/retry", data={"named": "broken-1"})
    table = (await visitor.get(here)).text
    assert "11 in progress" in table
    assert "49 failed" in table
    await visitor.post(f"{here}/matching/cancel")
    assert "11 cancelled" in (await visitor.get(here)).text
    await visitor.post(f"{here}/matching/retry")
    assert "60 in progress" in (await visitor.get(here)).text
    await api.worker.drain()
    await visitor.post(f"{here}/matching/delete", data={"status": "failed"})
    table = (await visitor.get(here)).text
    assert "failed</span> &ensp;" not in table
    assert "1 completed" in table
    assert (await visitor.post(f"{here}/matching/burn")).status_code == 400


async def test_what_failed_says_what_to_do_and_is_tried_again(api: Api, visitor: httpx.AsyncClient) -> None:
    store = await api.store()
    file_id = await api.add_document(store, "broken.pdf", b"%PDF-1.4\nnothing")
    table = (await visitor.get(f"/console/collections/{store}")).text
    assert "Save or export it again." in table
    reply = await visitor.post(f"/console/collections/{store}/selected/retry", data={"file": file_id})
    assert reply.headers["HX-Trigger"] == "documents-changed"
    assert "1 in progress" in (await visitor.get(f"/console/collections/{store}")).text
    await visitor.post(f"/console/collections/{store}/selected/cancel", data={"file": file_id})
    assert "1 cancelled" in (await visitor.get(f"/console/collections/{store}")).text


async def test_a_table_is_told_of_its_documents_until_all_are_done(
    api: Api, visitor: httpx.AsyncClient
) -> None:
    store = await api.store()
    taken = await visitor.post(
        f"/console/collections/{store}/upload", content=HARBOUR.encode(), headers={"X-File-Path": "a.txt"}
    )
    file_id = taken.json()["id"]

    async def work() -> None:
        await asyncio.sleep(0.2)
        await api.worker.drain()

    working = asyncio.create_task(work())
    told = await visitor.get(f"/console/collections/{store}/live?file={file_id}")
    await working
    events = told.text.split("\n\n")
    assert f'<tr id="{file_id}" hx-swap-oob="true">' in events[0]
    assert "in progress" in events[0]
    assert "completed" in events[-3]
    assert events[-2].startswith("event: done")


async def test_a_collection_goes_with_the_files_that_no_other_holds(
    api: Api, visitor: httpx.AsyncClient
) -> None:
    first, second = await api.store("first"), await api.store("second")
    both = await api.add_document(first, "both.txt", HARBOUR)
    await api.http.post(f"/v1/vector_stores/{second}/files", json={"file_id": both})
    alone = await api.add_document(first, "alone.txt", "Only here.")
    await visitor.delete(f"/console/collections/{first}")
    assert (await api.http.get(f"/v1/vector_stores/{first}")).status_code == 404
    assert (await api.http.get(f"/v1/files/{alone}")).status_code == 404
    assert (await api.http.get(f"/v1/files/{both}")).status_code == 200


async def test_attributes_are_written_as_lines_and_kept_as_what_they_are(
    api: Api, visitor: httpx.AsyncClient
) -> None:
    store = await api.store()
    file_id = await api.add_document(store, "a.txt", HARBOUR)
    here = f"/console/collections/{store}/files/{file_id}"
    lines = 'author = Ada\nyear = 1931\nis_draft = true\nname = "12"'
    await visitor.post(f"{here}/attributes", data={"attributes": lines})
    document = (await api.http.get(f"/v1/vector_stores/{store}/files/{file_id}")).json()
    assert document["attributes"] == {"author": "Ada", "year": 1931, "is_draft": True, "name": "12"}
    shown = (await visitor.get(f"{here}?view=attributes")).text
    assert "year = 1931" in shown
    assert "name = &#34;12&#34;" in shown
    refused = await visitor.post(f"{here}/attributes", data={"attributes": "no sign"})
    assert refused.status_code == 400


async def test_a_source_begins_paused_with_a_dry_run(
    api: Api, visitor: httpx.AsyncClient, tmp_path: Path
) -> None:
    store = await api.store()
    told = {"url": str(tmp_path), "collection": store, "when": "1h", "tries_first": "true"}
    refused = await visitor.post("/console/sources", data=told)
    assert refused.status_code == 400
    assert "sources.roots" in refused.text
    scope = await api.services.keys.scope_of(key_of(api))
    body = AddSource(url=f"file://{tmp_path}", collection=store, every="1h")
    source = await asyncio.to_thread(add, api.services, scope, body, by_owner=True, tries_first=True)
    page = (await visitor.get("/console/sources")).text
    assert "paused" in page
    assert "dry run, waiting" in page
    await visitor.post(f"/console/sources/{source['id']}/resume")
    assert "kept equal" in (await visitor.get("/console/sources")).text
    await visitor.delete(f"/console/sources/{source['id']}")
    assert source["id"] not in (await visitor.get("/console/sources")).text


def test_our_scripts_are_small_and_so_are_all_of_them() -> None:
    assets = read_assets()
    own = [assets.get(path.name) for path in STATIC.glob("*.js")]
    third_party = [assets.get(script.name) for script in SCRIPTS]
    own_bytes = sum(len(asset.compressed) for asset in own if asset is not None)
    all_bytes = own_bytes + sum(len(asset.compressed) for asset in third_party if asset is not None)
    assert len(own) >= 4
    assert sum(len(asset.content) for asset in own if asset is not None) <= OWN_JS_BYTES
    assert all_bytes <= ALL_JS_BYTES


def test_a_script_that_is_not_the_pinned_one_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(ScriptsMissing, match="Install npm"):
        read_script(HTMX, tmp_path)
    (tmp_path / HTMX.name).write_bytes(read_script(HTMX) + b" ")
    with pytest.raises(ScriptsMissing):
        read_script(HTMX, tmp_path)


async def test_without_its_scripts_the_console_says_so_and_the_api_works(api: Api) -> None:
    views = api.app.state.console_views
    api.app.state.console_views = ScriptsMissing("htmx.min.js")
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(api.app), base_url="http://strongroom"
    ) as client:
        reply = await client.get("/console/sign-in", headers={"accept": "text/html"})
    api.app.state.console_views = views
    assert reply.status_code == 503
    assert "python -m app.console.scripts" in reply.text
    assert (await api.http.get("/v1/files")).status_code == 200


async def search(visitor: httpx.AsyncClient, query: str, **more: str) -> httpx.Response:
    return await visitor.post("/console/search", data={"query": query, "dense_weight": "0.5", **more})


async def test_the_lab_takes_the_filters_of_the_api(api: Api, visitor: httpx.AsyncClient) -> None:
    store = await api.store()
    other = "Keld has a harbour too, whose master nobody has met since the flood took the pier away."
    for name, author, text in (("harbour.txt", "ada", HARBOUR), ("quay.txt", "bob", other)):
        file_id = await api.add_document(store, name, text)
        await api.http.post(
            f"/v1/vector_stores/{store}/files/{file_id}", json={"attributes": {"author": author}}
        )
    everything = (await search(visitor, QUESTION)).text
    assert "harbour.txt" in everything
    assert "quay.txt" in everything
    by_ada = (await search(visitor, QUESTION, filters='{"type": "eq", "key": "author", "value": "ada"}')).text
    assert "harbour.txt" in by_ada
    assert "quay.txt" not in by_ada
    for wrong, told in (("{", "not JSON"), ('{"type": "like", "key": "a", "value": 1}', "filters")):
        refused = await search(visitor, QUESTION, filters=wrong)
        assert refused.status_code == 400
        assert told in refused.text


async def test_eval_reads_what_the_lab_saved(api: Api, visitor: httpx.AsyncClient, tmp_path: Path) -> None:
    store = await api.store()
    file_id = await api.add_document(store, "harbour.txt", HARBOUR)
    found = await search(visitor, QUESTION)
    (right,) = set(re.findall(r'name="right" value="([^"]+)"', found.text))
    here, told = "/console/search/questions", {"query": QUESTION, "set_name": "harbour 1"}
    answered = {**told, "answer": "Ondine Marsh", "right": right}
    assert (await visitor.post(here, data=answered)).status_code == 200
    unanswered = {**told, "query": "How deep is the sea?"}
    shown = await visitor.post(here, data=unanswered)
    assert "2 questions" in shown.text
    for wrong in ({**told, "answer": "Ondine"}, {**told, "right": right}, {**answered, "right": "x"}):
        assert (await visitor.post(here, data=wrong)).status_code == 400
    path = tmp_path / "harbour.jsonl"
    path.write_bytes((await visitor.get("/console/search/sets/harbour%201")).content)
    first, second = read_questions(path).questions.values()
    assert (first.question, first.answers, first.documents) == (QUESTION, ("Ondine Marsh",), (file_id,))
    assert first.passage is not None
    assert first.passage.text == HARBOUR[first.passage.start_char : first.passage.end_char]
    assert (second.question, second.is_answerable) == ("How deep is the sea?", False)
    # They are the tenant's, and go with their documents.
    _, text = new_key(api, Role.ADMIN, tenant="another")
    async with visiting(api, text) as another:
        assert (await another.get("/console/search/sets/harbour%201")).status_code == 404
        assert (await another.delete(f"{here}/{first.id}")).status_code == 404
        assert QUESTION not in (await another.get("/console/search")).text
    await api.http.delete(f"/v1/vector_stores/{store}/files/{file_id}")
    page = (await visitor.get("/console/search")).text
    assert "Ondine Marsh" not in page
    assert "1 question<" in page
    await visitor.delete(f"{here}/{second.id}")
    assert (await visitor.get("/console/search/sets/harbour%201")).status_code == 404


def test_the_labs_columns_are_the_rankings_with_what_moved() -> None:
    first = found(1, dense=2, words=1, fused=1, rerank=0.2)
    second = found(2, dense=1, words=None, fused=2, rerank=0.9)
    columns = columns_of([second, first])
    assert [each.chunk.chunk_id for each in columns["By meaning"]] == [2, 1]
    assert [each.chunk.chunk_id for each in columns["By words (BM25)"]] == [1]
    assert [each.chunk.chunk_id for each in columns["Fused"]] == [1, 2]
    assert [(each.chunk.chunk_id, each.moved) for each in columns["Reranked"]] == [(2, 1), (1, -1)]


def found(chunk_id: int, *, dense: int, words: int | None, fused: int, rerank: float) -> FoundChunk:
    return FoundChunk(
        chunk_id=chunk_id,
        document_id=1,
        collection_id="vs_1",
        file_id="file-1",
        filename="a.txt",
        attributes={},
        generation=0,
        position=chunk_id,
        text="text",
        start_char=0,
        end_char=4,
        headings=(),
        places=(Place(0, 4),),
        token_count=1,
        score=rerank,
        dense_score=1 / dense,
        dense_rank=dense,
        keyword_score=None if words is None else 1 / words,
        keyword_rank=words,
        fused_score=1 / fused,
        fused_rank=fused,
        rerank_score=rerank,
    )
