"""Commands that people and scripts type, run as processes against a running api."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.app.conftest import Api
from tests.serving.hosting import served
from tests.stack import ROOT

pytestmark = pytest.mark.processes
HARBOUR = "The harbour master of Vellmouth is Ondine Marsh."


async def strongroom(
    api: Api, *arguments: str, typed: str = "", stderr: int = subprocess.STDOUT
) -> tuple[int, str]:
    """Exit status and what was printed."""
    key_file = api.settings.storage.data_dir / "keys" / "admin.key"
    async with served(api.app, is_started=True) as url:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app.cli", *arguments, "--url", url, "--key-file", str(key_file)),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
        out, _ = await process.communicate(typed.encode())
    assert process.returncode is not None
    return process.returncode, out.decode()


async def as_json(api: Api, *arguments: str) -> tuple[int, Any]:
    status, out = await strongroom(api, *arguments, "--json", stderr=subprocess.DEVNULL)
    return status, orjson.loads(out)


async def test_ask_streams_with_citations_and_fails_when_the_documents_do_not_say(api: Api) -> None:
    await api.add_document(await api.store("harbour"), "harbour.txt", HARBOUR)
    api.engine.answer = lambda _: f"{HARBOUR} [1]"
    status, out = await strongroom(api, "ask", "Who is the harbour master?", "--collection", "harbour")
    assert status == 0, out
    assert "[1] harbour.txt" in out
    assert f"“{HARBOUR}”" in out
    assert "/citations/" in out
    status, told = await as_json(api, "ask", "Who is the harbour master?")
    assert (status, told["grounded"]) == (0, True)
    assert told["citations"][0]["quote"] == HARBOUR
    status, told = await as_json(api, "ask", "How many moons has Jupiter?")
    assert (status, told["grounded"], told["citations"]) == (1, False, [])


async def test_a_sentence_that_the_documents_do_not_support_is_told(api: Api) -> None:
    await api.add_document(await api.store("harbour"), "harbour.txt", HARBOUR)
    invented = "Three giraffes painted the quay in 1820."
    api.engine.answer = lambda _: f"{HARBOUR} [1] {invented}"
    _, out = await strongroom(api, "ask", "Who is the harbour master?")
    assert f"The documents do not say: “{invented}”" in out
    status, told = await as_json(api, "ask", "Who is the harbour master?")
    assert (status, told["grounded"], told["unsupported"]) == (0, True, [invented])


async def test_a_chat_goes_on_from_what_was_said(api: Api) -> None:
    await api.add_document(await api.store("harbour"), "harbour.txt", HARBOUR)
    api.engine.answer = lambda _: f"{HARBOUR} [1]"
    typed = "Who is the harbour master of Vellmouth?\nWho is the master of the harbour there?\n\n"
    status, out = await strongroom(api, "chat", typed=typed)
    assert status == 0, out
    assert out.count("harbour.txt") == 2
    roles = [message["role"] for message in api.engine.requests[-1]["messages"]]
    assert [role for role in roles if role != "system"] == ["user", "assistant", "user"]


async def test_search_explains_its_scores(api: Api) -> None:
    await api.add_document(await api.store("harbour"), "harbour.txt", HARBOUR)
    asked = ("search", "harbour master", "--collection", "harbour")
    status, out = await strongroom(api, *asked, "--explain")
    assert status == 0, out
    assert "1. harbour.txt" in out
    assert "meaning" in out
    assert "words" in out
    status, found = await as_json(api, *asked)
    assert (status, found["data"][0]["filename"]) == (0, "harbour.txt")
    status, out = await strongroom(api, "search", "harbour", "--collection", "none")
    assert (status, out.strip()) == (2, "strongroom: There is no collection 'none'.")


async def test_jobs_are_listed_cancelled_and_tried_again(api: Api) -> None:
    store = await api.store("harbour")
    broken = await api.add_document(store, "broken.pdf", b"%PDF-1.4 and nothing more")
    again = (await api.upload("b.txt", b"Another one.")).json()["id"]
    attached = {"file_id": again, "attributes": {"year": 1}}
    await api.http.post(f"/v1/vector_stores/{store}/files", json=attached)

    status, listed = await as_json(api, "jobs", "list")
    assert status == 1
    states = {each["id"]: each["status"] for each in listed}
    assert states == {again: "in_progress", broken: "failed"}
    _, out = await strongroom(api, "jobs", "list", "--collection", "harbour")
    assert broken in out

    assert (await strongroom(api, "jobs", "cancel", "--collection", "harbour"))[1] == "1 cancelled.\n"
    _, out = await strongroom(api, "jobs", "retry", again, "--collection", "harbour")
    assert out == "1 will be tried again.\n"
    await api.worker.drain()
    document = (await api.http.get(f"/v1/vector_stores/{store}/files/{again}")).json()
    assert (document["status"], document["attributes"]) == ("completed", {"year": 1})


async def test_scripts_add_list_and_remove_collections(api: Api, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(HARBOUR)
    (tmp_path / "empty.txt").write_text("")
    pattern = str(tmp_path / "*.txt")
    working = asyncio.create_task(api.worker.run())
    status, added = await as_json(api, "add", pattern, "--collection", "harbour")
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    assert (status, added["files"], added["completed"]) == (1, 2, 1)
    assert [each["path"] for each in added["failed"]] == [str(tmp_path / "empty.txt")]
    status, listed = await as_json(api, "collections", "list")
    assert status == 0
    assert [(each["name"], each["file_counts"]["completed"]) for each in listed] == [("harbour", 1)]
    assert listed[0]["id"] in (await strongroom(api, "collections", "list"))[1]
    status, generations = await as_json(api, "collections", "status", "harbour")
    assert (status, generations[0]["state"]) == (0, "active")
    assert (await strongroom(api, "collections", "remove", "harbour"))[0] == 0
    assert await as_json(api, "collections", "list") == (0, [])
    assert await as_json(api, "sources", "list") == (0, [])


async def test_keys_are_made_and_ended_from_another_machine(api: Api) -> None:
    async def works(text: str) -> bool:
        headers = {"Authorization": f"Bearer {text}"}
        return (await api.http.get("/v1/models", headers=headers)).status_code == 200

    status, text = await strongroom(api, "keys", "add", "reading room", "--group", "board")
    assert status == 0, text
    assert await works(text.strip())
    _, listed = await as_json(api, "keys", "list")
    (key,) = [each for each in listed if each["name"] == "reading room"]
    assert (key["role"], key["groups"]) == ("reader", ["board"])
    assert key["id"] in (await strongroom(api, "keys", "list"))[1]
    _, again = await strongroom(api, "keys", "rotate", key["id"])
    assert await works(again.strip())
    _, out = await strongroom(api, "keys", "expire", key["id"], "--at", "2999-01-31")
    assert "active until 2999-01-31" in out
    _, out = await strongroom(api, "keys", "quotas", key["id"], "--streams", "2")
    assert (await api.http.get(f"/v1/keys/{key['id']}")).json()["quotas"] == {"streams": 2}, out
    assert (await strongroom(api, "keys", "revoke", key["id"]))[0] == 0
    assert not await works(again.strip())
    status, out = await strongroom(api, "keys", "add", "for others", "--tenant", "others")
    assert (status, out.startswith("strongroom: --tenant")) == (2, True)


def test_completion_is_offered_for_shells() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "app.cli", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--install-completion" in told.stdout
