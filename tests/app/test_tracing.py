"""Traces go from the api to models and engine, and by the job to worker and models; they tell no word of anybody's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from opentelemetry.context import Context
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, ParentBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from app.observing.tracing import Paced
from serving.tracing import span, traceparent
from tests.fakes import ScriptedEngine
from tests.serving.hosting import MINILM, NO_MINILM
from tests.stack import Stack, free_port

CANARY = "zanzibarquux"
UPLOAD = "4bf92f3577b34da6a3ce929d0e0e4736"
"""The trace that a client began for its upload."""


@dataclass
class Collector:
    """Takes traces over OTLP/HTTP."""

    url: str
    bodies: list[bytes] = field(default_factory=list)

    def spans(self) -> list[tuple[str, Span]]:
        """Each with the name of its role."""
        found = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                told = {each.key: each.value.string_value for each in resource.resource.attributes}
                for scope in resource.scope_spans:
                    found += [(told["service.name"], each) for each in scope.spans]
        return found


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    port = free_port()
    collector = Collector(f"http://127.0.0.1:{port}/v1/traces")

    async def take(request: web.Request) -> web.Response:
        collector.bodies.append(await request.read())
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield collector
    await runner.cleanup()


def test_without_a_collector_nothing_is_recorded_or_passed_on() -> None:
    with span("anything"):
        assert traceparent() == {}


def test_traces_begin_at_their_pace_and_callers_traces_go_on() -> None:
    now = 0.0
    sampler = ParentBased(Paced(ALWAYS_ON, per_second=2, clock=lambda: now))

    def taken(requests: int, parent: Context | None = None) -> int:
        decided = (sampler.should_sample(parent, 1, "request").decision for _ in range(requests))
        return sum(each is not Decision.DROP for each in decided)

    assert taken(10) == 2
    now = 0.5
    assert taken(10) == 1
    now = 60.0
    assert taken(10) == 2
    of_caller = SpanContext(1, 1, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    assert taken(10, set_span_in_context(NonRecordingSpan(of_caller))) == 10


@pytest.mark.processes
async def test_a_chat_is_one_trace_through_the_roles_and_an_upload_with_its_ingestion_another(
    tmp_path: Path,
) -> None:
    if not MINILM.is_dir():
        pytest.skip(NO_MINILM)
    async with ScriptedEngine() as engine, collecting() as collector:
        engine.answer = lambda _: f"The harbour master is {CANARY} [1]."
        settings = {
            "STRONGROOM_TRACES__ENDPOINT": collector.url,
            "STRONGROOM_ENGINE__URL": engine.url,
            "STRONGROOM_MODELS__EMBEDDING": str(MINILM),
            "STRONGROOM_INGEST__PARSERS": "1",
        }
        stack = Stack(tmp_path / "data", settings)
        await asyncio.to_thread(stack.start)
        try:
            await used(stack)
        finally:
            # Each role sends what it still has as it ends.
            await asyncio.to_thread(stack.stop)

    spans = collector.spans()
    chat = next(each for _, each in spans if each.name == "POST /v1/chat/completions")
    of_chat = {(role, each.name) for role, each in spans if each.trace_id == chat.trace_id}
    assert ("strongroom-models", "POST /embed") in of_chat
    assert {name for role, name in of_chat if role == "strongroom-api"} >= {"embed", "generate", "load"}
    asked = engine.headers[-1]["traceparent"]
    assert chat.trace_id.hex() in asked
    of_upload = {each.name: (role, each) for role, each in spans if each.trace_id.hex() == UPLOAD}
    assert {("POST /v1/files", "api"), ("POST /embed", "models"), ("ingest document", "worker")} <= {
        (name, role.removeprefix("strongroom-")) for name, (role, _) in of_upload.items()
    }
    parents = {"ingest document": "POST /v1/vector_stores", "POST /embed": "embed"}
    parents |= dict.fromkeys(("parse", "chunk", "embed", "write"), "ingest document")
    for name, parent in parents.items():
        assert of_upload[name][1].parent_span_id == of_upload[parent][1].span_id, name
    of_worker = [line for line in stack.log.read_text().splitlines() if "document_completed" in line]
    assert of_worker
    assert all(UPLOAD in line for line in of_worker)
    refused = next(each for _, each in spans if each.name == "GET /v1/files/{file_id}")
    assert 404 in [each.value.int_value for each in refused.attributes]
    assert not any(CANARY.encode() in body or stack.key.encode() in body for body in collector.bodies)


async def used(stack: Stack) -> None:
    """Everything that people write has the canary in it."""
    async with httpx.AsyncClient(
        base_url=stack.url, headers={"Authorization": f"Bearer {stack.key}"}, timeout=60
    ) as http:
        file = {"file": (f"{CANARY}.txt", f"The harbour master is {CANARY}.".encode())}
        begun = {"traceparent": f"00-{UPLOAD}-00f067aa0ba902b7-01", "X-Request-Id": UPLOAD}
        file_id = (await http.post("/v1/files", files=file, headers=begun)).json()["id"]
        store = {"name": CANARY, "file_ids": [file_id]}
        store = (await http.post("/v1/vector_stores", json=store, headers=begun)).json()
        async with asyncio.timeout(60):
            while (await http.get(f"/v1/vector_stores/{store['id']}")).json()["file_counts"]["completed"] < 1:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        question = {"role": "user", "content": f"Who is {CANARY}?"}
        chat = await http.post("/v1/chat/completions", json={"model": "rag", "messages": [question]})
        cited = chat.json()["choices"][0]["message"]["annotations"][0]
        assert CANARY in (await http.get(cited["url_citation"]["url"])).text
        assert (await http.get(f"/v1/files/file-{CANARY}")).status_code == 404
        await http.post(f"/v1/vector_stores/{store['id']}/search", json={"query": CANARY, CANARY: 1})
        call = {"name": CANARY, "arguments": {"query": CANARY}}
        await http.post(
            "/mcp",
            headers={"Accept": "application/json, text/event-stream", "baggage": f"word={CANARY}"},
            json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call},
        )
