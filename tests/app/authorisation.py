"""The authorisation matrix: who may ask which operation of our OpenAPI document about what, and what comes back.

What each operation needs is read from the document. An operation that it has and this module cannot ask fails the test.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import httpx
import orjson

from ingest.sources import registry
from ingest.sources.registry import NewSource
from retrieval.scope import within
from retrieval.tables import Collection, Role
from tests.app.conftest import Api

Json = dict[str, Any]
Ids = Mapping[str, str]
"""By the name of the parameter that asks for it."""

CANARY = "zyzzyva"
"""Stands in content, names and metadata of everything that is for GROUP."""
SENT = "quagga"
"""What callers send themselves."""
GROUP = "staff"
QUESTION = [{"role": "user", "content": "Where does it sing?"}]


class State(Enum):
    LIVE = "live"
    DELETED = "deleted"
    ELSEWHERE = "in another collection or conversation than was named"
    ABSENT = "absent"


@dataclass(frozen=True)
class Caller:
    """`role` is None for one whose key is none. `sees`: what is for GROUP and its tenant."""

    name: str
    http: httpx.AsyncClient
    role: Role | None
    is_of_tenant: bool
    sees: bool = False


@dataclass(frozen=True)
class Operation:
    method: str
    path: str
    role: Role | None
    """The least that it needs, as the document declares it; None needs no key."""
    takes_body: bool

    @property
    def parameters(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.path)

    @property
    def kinds(self) -> list[str]:
        """Of what the parameters name: there are two kinds of batches."""
        is_of_requests = self.path.startswith("/v1/batches")
        return ["request_batch_id" if is_of_requests else each for each in self.parameters]

    def states(self) -> list[State]:
        """Of what its path names; a body may name something too."""
        if not self.parameters:
            return [State.ABSENT, State.LIVE]
        can_be_elsewhere = len(self.parameters) == 2 and "number" not in self.parameters
        return [
            State.ABSENT,
            *([State.DELETED] if not set(self.kinds) & KEPT else []),
            *([State.ELSEWHERE] if can_be_elsewhere else []),
            State.LIVE,
        ]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def message(word: str) -> Json:
    return {"type": "message", "role": "user", "content": f"Where does the {word} sing?"}


def operations_of(document: Json) -> list[Operation]:
    found = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            needs = [roles for each in operation.get("security", []) for roles in each.values()]
            role = Role(needs[0][0]) if needs else None
            found.append(Operation(method.upper(), path, role, "requestBody" in operation))
    return found


def in_order(operations: Sequence[Operation]) -> list[Operation]:
    """Such that none ends what a later one asks for."""

    def rank(each: Operation) -> tuple[int, int]:
        ends = ("/complete", "/switch", "/rotate", "/cancel")
        if each.method == "DELETE":
            is_outermost = each.parameters == ["vector_store_id"]
            return 3 + len(ends), 99 if is_outermost else -each.path.count("/")
        last = next((place for place, end in enumerate(ends) if each.path.endswith(end)), None)
        return (0 if each.method == "GET" else 1, 0) if last is None else (2 + last, 0)

    return sorted(operations, key=rank)


def bodies_of(operation: Operation, ids: Ids) -> list[Json]:
    """Each can be asked; together they name every kind of object that a body of it can."""
    store, file, response = ids["vector_store_id"], ids["file_id"], ids["response_id"]
    search = {"tools": [{"type": "file_search", "vector_store_ids": [store]}]}
    asked = {"model": "scripted", "messages": QUESTION}
    context: list[Json] = [
        {"model": "scripted", "input": "Where?", "previous_response_id": response},
        {"model": "scripted", "input": "Where?", "conversation": ids["conversation_id"]},
        {"model": "scripted", "input": [{"type": "item_reference", "id": ids["item_id"]}]},
    ]
    shown = {"type": "file", "file": {"file_id": file}}
    of: dict[str, list[Json]] = {
        "POST /v1/chat/completions": [
            {**asked, "model": "rag"},
            {**asked, "vector_store_ids": [store]},
            {**asked, **search},
            {**asked, "messages": [{"role": "user", "content": [shown]}]},
        ],
        "POST /v1/completions": [{"model": "scripted", "prompt": "Where?"}],
        "POST /v1/chat/completions/{completion_id}": [{"metadata": {"said": SENT}}],
        "POST /v1/responses": [{"model": "scripted", "input": "Where?", **search}, *context],
        "POST /v1/responses/input_tokens": context,
        "POST /v1/responses/compact": [{"model": "scripted", "previous_response_id": response}],
        "POST /v1/conversations": [{"items": [message(SENT)]}],
        "POST /v1/conversations/{conversation_id}": [{"metadata": {"said": SENT}}],
        "POST /v1/conversations/{conversation_id}/items": [{"items": [message(SENT)]}],
        "POST /v1/embeddings": [{"model": "all-MiniLM-L6-v2", "input": "Where?"}],
        "POST /v1/rerank": [{"model": "none", "query": "Where?", "documents": ["Here."]}],
        "POST /v2/rerank": [{"model": "none", "query": "Where?", "documents": ["Here."]}],
        "POST /v1/vector_stores": [{"name": "more", "file_ids": [file]}],
        "POST /v1/vector_stores/{vector_store_id}": [{"metadata": {"said": SENT}}],
        "POST /v1/vector_stores/{vector_store_id}/search": [{"query": f"Where does the {SENT} sing?"}],
        "POST /v1/vector_stores/{vector_store_id}/files": [{"file_id": file}],
        "POST /v1/vector_stores/{vector_store_id}/files/{file_id}": [{"attributes": {"said": SENT}}],
        "POST /v1/vector_stores/{vector_store_id}/file_batches": [{"file_ids": [file]}],
        "POST /v1/vector_stores/{vector_store_id}/generations": [{}],
        "POST /v1/vector_stores/{vector_store_id}/generations/{number}/switch": [{"force": True}],
        "POST /v1/uploads": [
            {"filename": "a.txt", "purpose": "assistants", "bytes": 5, "mime_type": "text/plain"}
        ],
        "POST /v1/uploads/{upload_id}/complete": [{"part_ids": [ids["part_id"]]}],
        "POST /v1/batches": [
            {
                "input_file_id": ids["input_file_id"],
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
            }
        ],
        "POST /v1/sources": [{"url": "file:///letters", "collection": store}],
        "POST /v1/sources/{source_id}/sweep": [{}],
        "POST /v1/sources/{source_id}/options": [{"url": "file:///letters", "options": {}}],
        "POST /v1/engines": [{"url": "ftp://engine"}],
        "POST /v1/keys": [{"name": "more"}],
        "POST /v1/keys/{key_id}": [{"name": SENT}],
        "POST /v1/keys/{key_id}/rotate": [{}],
    }
    return of[str(operation)]


FORMS = {
    "POST /v1/files": {"file": ("more.txt", b"Nothing.")},
    "POST /v1/uploads/{upload_id}/parts": {"data": ("part", b"12345")},
}
REPLIES: dict[str, set[int]] = {
    "GET /metrics": {403},  # They are of all tenants: no caller here is of the one that came with the server.
    "GET /ready": {503},  # No worker runs.
    "POST /v1/rerank": {400},  # No reranker is served.
    "POST /v2/rerank": {400},
    "DELETE /v1/models/{name}": {403},  # Models stand in the settings.
    "POST /v1/sources": {400},  # The settings allow no folder.
    "POST /v1/sources/{source_id}/options": {400},
    "POST /v1/engines": {400},  # It is none.
    "DELETE /v1/engines": {404},
    "POST /v1/uploads/{upload_id}/cancel": {400},  # It was completed before.
    "POST /v1/vector_stores/{vector_store_id}/generations": {200, 409},  # One at a time.
    "DELETE /v1/vector_stores/{vector_store_id}/generations/{number}": {409},  # It was switched to before.
    "POST /v1/responses/{response_id}/cancel": {400},  # It runs in no background.
}
"""Of who may ask, where they are not 200; and why."""
OF_THE_TENANT = {"upload_id", "part_id", "input_file_id"}
"""What is in no collection yet is for all keys of its tenant."""
KEPT = {"upload_id", "request_batch_id"}
"""Of what has no DELETE."""


async def ask(caller: Caller, operation: Operation, ids: Ids, body: Json | None = None) -> httpx.Response:
    path = operation.path
    for name, kind in zip(operation.parameters, operation.kinds, strict=True):
        path = path.replace(f"{{{name}}}", ids[kind])
    sent: dict[str, Any] = {
        "params": {"url": "http://127.0.0.1:9"} if operation.path == "/v1/engines" else {}
    }
    if str(operation) in FORMS:
        sent["files"] = FORMS[str(operation)]
    elif body is not None:
        sent["json"] = body
    return await caller.http.request(operation.method, path, **sent)


def samples_of(operation: Operation, ids: Ids) -> list[Json | None]:
    if not operation.takes_body or str(operation) in FORMS:
        return [None]
    return list(bodies_of(operation, ids))


def expected(operation: Operation, caller: Caller, state: State, *, names_others: bool) -> set[int]:
    """`names_others`: the body names what is not the caller's to see."""
    if operation.role is None:
        return REPLIES.get(str(operation), {200})
    if caller.role is None:
        return {401}
    roles = list(Role)
    if roles.index(caller.role) < roles.index(operation.role):
        return {403}
    is_open = caller.sees or (caller.is_of_tenant and set(operation.kinds) <= OF_THE_TENANT)
    if operation.parameters and not (state is State.LIVE and is_open):
        return {404}
    if names_others:
        return {400, 404}
    return REPLIES.get(str(operation), {200})


def names_any(body: Json | None, ids: Ids, *, is_of_tenant: bool = False) -> bool:
    """What a key of the tenant may see whatever its groups are left out if the caller is one."""
    told = orjson.dumps(body).decode()
    kinds = set(ids) - (OF_THE_TENANT if is_of_tenant else set())
    return any(len(ids[kind]) > 5 and ids[kind] in told for kind in kinds)


def masked(reply: httpx.Response, *ids: Ids) -> str:
    """The body, with every id that may have been asked for as the same word."""
    text = reply.text
    for each in ids:
        for value in sorted(each.values(), key=len, reverse=True):
            text = text.replace(value, "ID") if len(value) > 3 else text
    return text


def absent(ids: Ids) -> Ids:
    """Ids of the same form that nothing ever had."""
    return {
        name: "4711"
        if name == "number"
        else "rag/absent"
        if name == "name"
        else f"{_prefix(value)}{'0' * 24}"
        for name, value in ids.items()
    }


def _prefix(value: str) -> str:
    return value[: max(value.rfind("_"), value.rfind("-")) + 1]


def elsewhere(ids: Ids, other: Ids) -> Ids:
    """What is inside, named inside of another of the same kind."""
    outer = ("vector_store_id", "conversation_id")
    return {name: other[name] if name in outer else value for name, value in ids.items()}


async def furnish(
    api: Api,
    name: str,
    *,
    word: str,
    groups: Json,
    admin: httpx.AsyncClient,
    writer: httpx.AsyncClient,
    reader: httpx.AsyncClient,
) -> dict[str, str]:
    """One of everything, for those groups: answers are the reader's, batches the writer's, all else the admin's."""

    async def post(http: httpx.AsyncClient, path: str, **sent: Any) -> Json:
        reply = await http.post(path, **sent)
        assert reply.status_code == 200, (path, reply.text)
        made: Json = reply.json()
        return made

    said = {"metadata": {"said": word}}
    store = (await post(admin, "/v1/vector_stores", json={"name": name, **groups, **said}))["id"]
    content = f"The {word} sings at dawn in the tower of {name}.".encode()
    uploaded = {"file": (f"{word}.txt", content)}
    file = (await post(admin, "/v1/files", files=uploaded))["id"]
    attached = {"file_id": file, "readers": groups.get("readers"), "attributes": {"said": word}}
    await post(admin, f"/v1/vector_stores/{store}/files", json=attached)
    await api.worker.drain()
    await post(admin, f"/v1/vector_stores/{store}/generations", json={})
    await api.worker.drain()
    batch = await post(admin, f"/v1/vector_stores/{store}/file_batches", json={"file_ids": [file]})
    announced = {"filename": "a.txt", "purpose": "assistants", "bytes": 5, "mime_type": "text/plain"}
    upload = (await post(admin, "/v1/uploads", json=announced))["id"]
    part = await post(admin, f"/v1/uploads/{upload}/parts", files={"data": ("part", b"12345")})
    line = {"custom_id": word, "method": "POST", "url": "/v1/chat/completions", "body": {}}
    lines = {"file": ("lines.jsonl", orjson.dumps(line))}
    input_file = (await post(writer, "/v1/files", files=lines, data={"purpose": "batch"}))["id"]
    requests = {"input_file_id": input_file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    asked = {"model": f"rag/{store}", "messages": QUESTION, "store": True, **said}
    completion = await post(reader, "/v1/chat/completions", json=asked)
    response = await post(reader, "/v1/responses", json={"model": f"rag/{store}", "input": word, **said})
    conversation = (await post(reader, "/v1/conversations", json={"items": [message(word)]}))["id"]
    items = (await reader.get(f"/v1/conversations/{conversation}/items")).json()["data"]
    key = await post(admin, "/v1/keys", json={"name": word})
    return {
        "vector_store_id": store,
        "file_id": file,
        "batch_id": batch["id"],
        "number": "0",
        "upload_id": upload,
        "part_id": part["id"],
        "input_file_id": input_file,
        "request_batch_id": (await post(writer, "/v1/batches", json=requests))["id"],
        "completion_id": completion["id"],
        "response_id": response["id"],
        "conversation_id": conversation,
        "item_id": items[0]["id"],
        "source_id": _source(api, store, word),
        "key_id": key["id"],
        "name": f"rag/{name}",
    }


def _source(api: Api, store: str, word: str) -> str:
    """As an owner adds one who sits at the machine."""
    new = NewSource(
        collection_id=store,
        url="file:///letters",
        options=None,
        include=[],
        exclude=[],
        max_bytes=9,
        every_s=None,
        cron=None,
        is_watched=False,
        attributes={"said": word},
        chunking={"type": "auto"},
    )
    with api.services.database.write() as session:
        scope = within(session.get_one(Collection, store).tenant_id, "tests")
        return registry.add_source(session, scope, registry.new_source_id(), new, now=4e9).id
