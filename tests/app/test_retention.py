"""Zero data retention: what is asked and answered gets to no disk, what would keep it is refused, and receipts tell."""

import asyncio
import json
import logging
import resource
import tempfile
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from app.access.auth import REMEMBER_S
from app.access.retention import machine_obstacles
from app.logs import EventFormatter
from app.running.core_dumps import forbid_core_dumps
from app.settings import read_settings
from ingest.sandbox import ParserPool
from retrieval.tables import AuditEvent, Key, Role, Tenant
from tests.app.alone import Alone, api_alone
from tests.app.conftest import Api, opened_api
from tests.app.test_audit import entries, key_of, run
from tests.app.test_deleting import pages_of
from tests.fakes import ScriptedEngine
from tests.serving.hosting import MINILM

NOTHING = {"x-strongroom-retention": "none"}
PROMPT, ANSWER = "quillfeather", "marmotstone"
"""In nothing but what is asked, and what is answered."""
DOCUMENT = "The harbour office opens at nine. Its key hangs in the hall."
QUESTION = f"Where does the key of the harbour office hang, {PROMPT}?"
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(autouse=True, scope="module")
def no_core_dumps() -> None:
    forbid_core_dumps()


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Alone]:
    async with (
        ScriptedEngine(answer=lambda _: f"It is the {ANSWER}.") as engine,
        api_alone(folder, engine={"url": engine.url, "keeps_nothing": True}) as alone,
    ):
        yield alone


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Alone]:
    async with opened(tmp_path / "data") as each:
        yield each


async def ask_everything(http: httpx.AsyncClient, store_id: str) -> list[httpx.Response]:
    """Whatever takes a question and need not keep it, plain and from documents, streamed and whole."""
    tools = [{"type": "file_search", "vector_store_ids": [store_id]}]
    bodies: list[tuple[str, dict[str, Any]]] = []
    for model in ("scripted", "rag"):
        for stream in (False, True):
            bodies += [
                ("/v1/chat/completions", {"model": model, "messages": MESSAGES, "stream": stream}),
                ("/v1/responses", {"model": model, "input": QUESTION, "stream": stream}),
            ]
    bodies += [
        ("/v1/responses", {"model": "scripted", "input": QUESTION, "tools": tools, "store": False}),
        ("/v1/responses/compact", {"model": "scripted", "input": QUESTION}),
        ("/v1/completions", {"model": "scripted", "prompt": QUESTION}),
        ("/v1/embeddings", {"model": MINILM.name, "input": QUESTION}),
        (f"/v1/vector_stores/{store_id}/search", {"query": QUESTION, "rewrite_query": True}),
    ]
    # And what goes wrong with them, of which a log might tell.
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"model": PROMPT, "messages": MESSAGES}),
        ("/v1/chat/completions", {"model": "scripted", "messages": MESSAGES, PROMPT: 1}),
        ("/v1/responses", {"model": "scripted", "input": QUESTION, "previous_response_id": f"resp_{PROMPT}"}),
        ("/v1/embeddings", {"model": PROMPT, "input": QUESTION}),
    ]
    replies = [await http.post(path, json=body, headers=NOTHING) for path, body in bodies]
    assert [
        (path, reply.status_code, reply.text)
        for (path, _), reply in zip(bodies, replies, strict=True)
        if reply.status_code != 200
    ] == []
    refused = [await http.post(path, json=body, headers=NOTHING) for path, body in wrong]
    assert {reply.status_code for reply in refused} <= {400, 404}
    return replies + refused


async def add_document(api: Api) -> str:
    store_id = await api.store()
    await api.add_document(store_id, "office.txt", DOCUMENT)
    return store_id


def on_disk(place: Path, folder: Path, word: str) -> list[str]:
    """Files below, as they are, with those in memory; and the database of the data folder, page by page, decrypted."""
    needle = word.encode()
    memory = read_settings().encryption.memory_folder
    found = [
        str(path)
        for each in (place, memory)
        for path in each.rglob("*")
        if path.is_file() and (needle in path.read_bytes().lower() or needle in str(path).encode())
    ]
    return [*found, "the database"] if needle in pages_of(folder).lower() else found


@pytest.mark.slow
async def test_no_byte_on_any_disk_or_in_any_log_holds_what_is_asked_or_answered(
    models_url: str,
    parsers: ParserPool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG, logger="strongroom")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    async with opened_api(models_url, parsers, tmp_path, embedding=str(MINILM), keeps_nothing=True) as api:
        folder = api.settings.storage.data_dir
        api.engine.answer = lambda _: f"It hangs in the hall, says the {ANSWER}."
        store_id = await add_document(api)
        replies = await ask_everything(api.http, store_id)
        assert any(ANSWER in reply.text for reply in replies)
        assert all(reply.headers["x-strongroom-receipt"] for reply in replies)
        await api.services.audit.settle()
        for word in (PROMPT, ANSWER):
            assert on_disk(tmp_path, folder, word) == []
        told = "".join(EventFormatter("api").format(each) for each in caplog.records)
        told += (await api.http.get("/metrics")).text
        assert PROMPT not in told
        assert ANSWER not in told
        # The same without the header is found, so the search for it is none for nothing.
        body = {"model": "scripted", "input": QUESTION}
        assert (await api.http.post("/v1/responses", json=body)).status_code == 200
        for word in (PROMPT, ANSWER):
            assert on_disk(tmp_path, folder, word) == ["the database"]


async def test_the_header_a_key_and_a_tenant_each_ask_for_it(alone: Alone) -> None:
    body = {"model": "scripted", "messages": MESSAGES}
    plain = await alone.http.post("/v1/chat/completions", json=body)
    assert "x-strongroom-receipt" not in plain.headers
    by_header = await alone.http.post("/v1/chat/completions", json=body, headers=NOTHING)
    assert by_header.headers["x-strongroom-receipt"]
    of_key, of_tenant = key_of(alone, Role.WRITER), key_of(alone, Role.WRITER, "south")
    with alone.services.database.write() as session:
        session.query(Key).order_by(Key.created_at).filter(Key.name == "tests").first().keeps_nothing = True  # type: ignore[union-attr]
        session.query(Tenant).filter(Tenant.name == "south").one().keeps_nothing = True
    for headers in (of_key, of_tenant):
        reply = await alone.http.post("/v1/chat/completions", json=body, headers=headers)
        assert reply.status_code == 200
        assert reply.headers["x-strongroom-receipt"]
        stored = await alone.http.post("/v1/chat/completions", json={**body, "store": True}, headers=headers)
        assert stored.status_code == 403
    wrong = await alone.http.get("/v1/files", headers={"x-strongroom-retention": "some"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "x-strongroom-retention")


async def test_what_would_keep_something_is_refused_by_the_field_that_would(alone: Alone) -> None:
    item = {"type": "message", "role": "user", "content": QUESTION}
    chat = {"model": "scripted", "messages": MESSAGES}
    response = {"model": "scripted", "input": QUESTION}
    conversation = (await alone.http.post("/v1/conversations", json={})).json()["id"]
    kept = (await alone.http.post("/v1/chat/completions", json={**chat, "store": True})).json()["id"]
    batch_file = {"files": {"file": ("a.jsonl", QUESTION.encode())}, "data": {"purpose": "batch"}}
    upload = {"filename": "a.jsonl", "purpose": "batch", "bytes": 9, "mime_type": "text/plain"}
    batch = {"input_file_id": "file-a", "endpoint": "/v1/responses", "completion_window": "24h"}
    before = len(pages_tables(alone))
    for path, sent, param in (
        ("/v1/chat/completions", {"json": {**chat, "store": True}}, "store"),
        ("/v1/responses", {"json": {**response, "store": True}}, "store"),
        ("/v1/responses", {"json": {**response, "background": True}}, "background"),
        ("/v1/responses", {"json": {**response, "conversation": conversation}}, "conversation"),
        ("/v1/responses", {"json": {**response, "tools": [{"type": "mcp", "server_label": "crm"}]}}, "tools"),
        ("/v1/conversations", {"json": {"items": [item]}}, "conversation"),
        (f"/v1/conversations/{conversation}", {"json": {"metadata": {"a": PROMPT}}}, "metadata"),
        (f"/v1/conversations/{conversation}/items", {"json": {"items": [item]}}, "items"),
        (f"/v1/chat/completions/{kept}", {"json": {"metadata": {"a": PROMPT}}}, "metadata"),
        ("/v1/batches", {"json": batch}, "input_file_id"),
        ("/v1/files", batch_file, "purpose"),
        ("/v1/uploads", {"json": upload}, "purpose"),
    ):
        reply = await alone.http.post(path, headers=NOTHING, **sent)
        assert reply.status_code == 403, (path, reply.text)
        error = reply.json()["error"]
        assert (error["code"], error["param"]) == ("zero_data_retention", param), path
    assert len(pages_tables(alone)) == before
    # Documents are there to be kept.
    kept_file = await alone.http.post(
        "/v1/files",
        files={"file": ("a.txt", DOCUMENT.encode())},
        data={"purpose": "assistants"},
        headers=NOTHING,
    )
    assert kept_file.status_code == 200


def pages_tables(alone: Alone) -> list[str]:
    """Ids of all that a person's words are stored with."""
    with alone.services.database.read() as session:
        return [
            row[0]
            for table in (
                "responses",
                "conversations",
                "items",
                "stored_completions",
                "batches",
                "files",
                "uploads",
            )
            for row in session.connection().exec_driver_sql(f"select id from {table}")
        ]


async def test_batches_and_background_responses_of_before_end_when_a_key_keeps_nothing(alone: Alone) -> None:
    headers = key_of(alone, Role.WRITER)
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    asked = json.dumps({**line, "body": {"model": "scripted", "messages": MESSAGES}}).encode()
    file = await alone.http.post(
        "/v1/files", files={"file": ("a.jsonl", asked)}, data={"purpose": "batch"}, headers=headers
    )
    with alone.services.database.write() as session:
        session.query(Key).filter(Key.name == "tests").one().keeps_nothing = True
    # The key is remembered for a moment, in which it may still ask.
    new = {"input_file_id": file.json()["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = (await alone.http.post("/v1/batches", json=new, headers=headers)).json()
    async with asyncio.timeout(20):
        while batch["status"] not in ("completed", "failed"):
            await asyncio.sleep(0.1)
            batch = (await alone.http.get(f"/v1/batches/{batch['id']}")).json()
    assert batch["request_counts"]["failed"] == 1
    failures = (await alone.http.get(f"/v1/files/{batch['error_file_id']}/content")).text
    assert "zero_data_retention" in failures
    assert ANSWER not in failures
    assert REMEMBER_S < 1


async def test_a_receipt_is_verified_offline_and_names_all_that_was_kept(alone: Alone) -> None:
    body = {"model": "scripted", "messages": MESSAGES}
    reply = await alone.http.post("/v1/chat/completions", json=body, headers=NOTHING)
    (jwk,) = (await alone.http.get("/v1/audit/key")).json()["keys"]
    public = Ed25519PublicKey.from_public_bytes(_unbase64(jwk["x"]))
    signed, _, signature = reply.headers["x-strongroom-receipt"].rpartition(".")
    public.verify(_unbase64(signature), signed.encode())
    head, payload = (json.loads(_unbase64(part)) for part in signed.split("."))
    assert (head["alg"], head["kid"]) == ("EdDSA", jwk["kid"])
    assert payload["request_id"] == reply.headers["x-request-id"]
    (kept,) = payload["kept"]["audit_entries"]
    (entry,) = await entries(alone, event=AuditEvent.NOTHING_KEPT.value)
    assert (entry["seq"], entry["hash"]) == (kept["seq"], kept["hash"])
    assert (entry["objects"], entry["details"]) == ([payload["request_id"]], {})
    # Nothing else of this request is in the log.
    assert await entries(alone, event="answer") == []
    with pytest.raises(InvalidSignature):
        public.verify(_unbase64(signature), signed[:-4].encode())


def _unbase64(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


async def test_where_it_cannot_be_promised_the_mode_is_refused_and_the_server_goes_on(tmp_path: Path) -> None:
    body = {"model": "scripted", "messages": MESSAGES}
    async with ScriptedEngine() as engine:
        told = {"url": engine.url}
        cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
            (told, {}, "engine.keeps_nothing"),
            ({**told, "keeps_nothing": True, "extra_args": "--enable_log_requests"}, {}, "engine.extra_args"),
            ({**told, "keeps_nothing": True}, {"enabled": False}, "encryption.enabled"),
        ]
        for settings, encryption, reason in cases:
            async with api_alone(tmp_path / reason, engine=settings, **encryption) as alone:
                refused = await alone.http.post("/v1/chat/completions", json=body, headers=NOTHING)
                error = refused.json()["error"]
                assert (refused.status_code, error["code"]) == (503, "zero_data_retention_unavailable")
                assert reason in error["message"]
                assert (await alone.http.post("/v1/chat/completions", json=body)).status_code == 200
                mode = (await alone.http.get("/ready")).json()["modes"]["zero_data_retention"]
                assert mode["can_be_promised"] is False
                assert reason in mode["obstacles"][0]


async def test_an_engine_that_was_added_since_is_vouched_for_by_nobody(alone: Alone) -> None:
    url = "http://127.0.0.1:9"
    await alone.http.post("/v1/engines", json={"url": url})
    body = {"model": "scripted", "messages": MESSAGES}
    refused = await alone.http.post("/v1/chat/completions", json=body, headers=NOTHING)
    assert refused.status_code == 503
    assert "was added while the server runs" in refused.json()["error"]["message"]
    await alone.http.delete("/v1/engines", params={"url": url})
    assert (await alone.http.post("/v1/chat/completions", json=body, headers=NOTHING)).status_code == 200


def machine(folder: Path, *, swaps: str = "", core_pattern: str = "core", crypt: str | None = None) -> Path:
    """A root folder with what the kernel tells."""
    (folder / "proc/sys/kernel").mkdir(parents=True)
    (folder / "proc/swaps").write_text(f"Filename Type Size Used Priority\n{swaps}")
    (folder / "proc/sys/kernel/core_pattern").write_text(core_pattern)
    if crypt is not None:
        (folder / "sys/block/dm-0/dm").mkdir(parents=True)
        (folder / "sys/block/dm-0/dm/uuid").write_text(crypt)
    return folder


def test_swap_stands_in_the_way_unless_it_is_memory_or_encrypted(tmp_path: Path) -> None:
    assert machine_obstacles(machine(tmp_path / "a")) == []
    assert machine_obstacles(machine(tmp_path / "b", swaps="/dev/zram0 partition 1 0 1\n")) == []
    sealed = machine(tmp_path / "c", swaps="/dev/dm-0 partition 1 0 1\n", crypt="CRYPT-PLAIN-swap")
    assert machine_obstacles(sealed) == []
    for number, swaps in enumerate(
        ("/dev/sda2 partition 1 0 1\n", "/swapfile file 1 0 1\n", "/dev/dm-0 p 1 0 1\n")
    ):
        (obstacle,) = machine_obstacles(machine(tmp_path / str(number), swaps=swaps, crypt="LVM-abc"))
        assert "not encrypted" in obstacle
    (untold, _) = machine_obstacles(tmp_path / "nowhere")
    assert "cannot be told" in untold


def test_core_dumps_are_off_for_files_and_pipes(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_CORE)[0] in (0, 1)
    piped = machine(tmp_path / "piped", core_pattern="|/usr/lib/systemd/systemd-coredump %P")
    is_zero = resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
    assert bool(machine_obstacles(piped)) is is_zero


async def test_the_commands_set_check_and_verify_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with opened(data) as alone:
        body = {"model": "scripted", "messages": MESSAGES}
        receipt = (await alone.http.post("/v1/chat/completions", json=body, headers=NOTHING)).headers[
            "x-strongroom-receipt"
        ]
        assert run(data, "retention", "set", "none", "--tenant", "default")[0] == 0
        await asyncio.sleep(REMEMBER_S)
        reply = await alone.http.post("/v1/chat/completions", json=body)
        assert reply.headers["x-strongroom-receipt"]
        assert run(data, "retention", "set", "usual", "--tenant", "default")[0] == 0
        changes = await entries(alone, event="retention.changed")
        assert [each["details"]["retention"] for each in changes] == ["none", "usual"]
    code, told = run(data, "retention", "verify", receipt)
    assert (code, json.loads(told)["retention"]) == (0, "none")
    assert run(data, "retention", "verify", receipt[:-3] + "AAA")[0] == 2
    assert run(data, "retention", "verify", "nonsense")[0] == 2
    assert run(data, "retention", "set", "none")[0] == 2
    assert run(data, "retention", "set", "none", "--key", "key_none")[0] != 0
    code, told = run(data, "retention", "check")
    assert (code, "It can be promised" in told) == (0, True), told
