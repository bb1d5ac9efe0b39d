"""schemathesis over our own OpenAPI document, on the served application: `python -m tests.contracts.fuzz`.

Its examples, its boundary values, random requests for what is there and for what is not, and chains of requests that
follow the document's links. Besides its own checks each reply is judged by OpenAI's document, where that is there.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from schemathesis import Case, CheckContext, HookContext, Response, check, hook

from app.responses.items import FOREIGN
from tests.app.conftest import Api
from tests.contracts.exchanges import Recorder
from tests.contracts.openai_spec import SPEC, Spec, openai_judge
from tests.serving.hosting import MINILM, served

LEFT_OUT = (
    # A document cannot say which ids exist, what a query means together with its filters, or how much is too much.
    "positive_data_acceptance",
)
LEFT_OUT_PATH = "/v1/engines"
"""It would make the gateway connect to whatever address it is given."""
PRESENT = "FUZZ_PRESENT"
"""The environment variable that tells schemathesis' process what there is, by the name that a request has for it."""


def _present() -> dict[str, str]:
    told: dict[str, str] = json.loads(os.environ.get(PRESENT, "{}"))  # noqa: TID251 - from the process above
    return told


@hook
def map_path_parameters(context: HookContext, path_parameters: Any) -> Any:
    """Random ids are nobody's. Most are put to what is there, but where that would delete it."""
    operation = context.operation
    if (
        operation is None
        or not path_parameters
        or operation.method == "delete"
        or operation.path.endswith(("/cancel", "/complete"))
    ):
        return path_parameters
    present = _present()
    if operation.path.startswith("/v1/batches"):
        present["batch_id"] = present.get("request_batch_id", "")
    return {
        name: present[name] if name in present and _is_well_formed(each) and len(each) % 5 else each
        for name, each in path_parameters.items()
    }


@hook
def map_body(context: HookContext, body: Any) -> Any:
    """The same for files that a body names; and a model, which no document can tell, is one that is there."""
    if not isinstance(body, dict):
        return body
    body = {
        name: _without_foreign(each) if name in ("items", "input") else each for name, each in body.items()
    }
    if len(str(body)) % 5 == 0:
        return body
    present, path = _present(), context.operation.path if context.operation is not None else ""
    file_id = present.get("file_id", "")
    put: dict[str, Any] = {"file_id": file_id, "file_ids": [file_id], "embedding_model": None}
    put["model"] = present.get("embedding_model" if path == "/v1/embeddings" else "model", "")
    put["input_file_id"] = present.get("input_file_id", "")
    put |= {"previous_response_id": None, "conversation": None}
    return {
        name: put[name] if name in put and _is_replaced(name, each) else each for name, each in body.items()
    }


@hook
def filter_body(context: HookContext, body: Any) -> bool:
    """A form cannot hold an empty list: it would come as nothing, which is fine."""
    is_form = context.operation is not None and context.operation.path == "/v1/files"
    return not (is_form and isinstance(body, dict) and [] in body.values())


def _without_foreign(items: Any) -> Any:
    """What another service's tool did is kept as it came: whether that is OpenAI's form is its sender's affair."""
    if not isinstance(items, list):
        return items
    return [each for each in items if not (isinstance(each, dict) and each.get("type") in FOREIGN)]


def _is_replaced(name: str, value: Any) -> bool:
    if name not in ("file_id", "file_ids"):
        return isinstance(value, str)
    return all(map(_is_well_formed, value)) if isinstance(value, list) else _is_well_formed(value)


def _is_well_formed(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[a-z]+[-_][A-Za-z0-9_-]{1,64}", value) is not None


if SPEC.is_file():

    @check
    def reply_is_openais(ctx: CheckContext, response: Response, case: Case[Any]) -> bool | None:
        """Every reply of an operation that OpenAI's document has is as it says."""
        kind = (response.headers.get("content-type") or [""])[0]
        wrong = openai_judge().errors(
            case.method, case.formatted_path, response.status_code, kind, response.content
        )
        assert not wrong, wrong[0]
        return None


def command_of(
    url: str, key: str, *, cases: int, max_time_s: int | None, phases: str, seed: int | None
) -> list[str]:
    """schemathesis' command line. `cases` is how many random requests there are, of all operations together."""
    return [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
        *("-H", f"Authorization: Bearer {key}", "--checks", "all", "--exclude-checks", ",".join(LEFT_OUT)),
        *("--phases", phases, "--max-examples", str(max(1, cases // OPERATIONS)), "--request-timeout", "60"),
        *("--max-response-time", "60"),
        *("--generation-database", "none", "--suppress-health-check", "all", "--warnings", "off"),
        *(("--max-time", str(max_time_s)) if max_time_s is not None else ()),
        *(("--seed", str(seed)) if seed is not None else ()),
        *("--exclude-path", LEFT_OUT_PATH),
        "--continue-on-failure",
    ]


HOOKS = {"SCHEMATHESIS_HOOKS": "tests.contracts.fuzz", "PYTHONPATH": str(Path(__file__).parents[2])}
OPERATIONS = 40
"""About as many as there are."""


async def fuzz(
    *,
    cases: int,
    max_time_s: int | None = None,
    phases: str = "examples,coverage,fuzzing,stateful",
    seed: int | None = None,
) -> tuple[int, str]:
    """The exit status and what was said, the seed of a random run too. A worker runs beside the application."""
    # Only here, as it takes long to import, and schemathesis imports this module for its check.
    from tests.contracts.openai_journey import opened

    with tempfile.TemporaryDirectory() as folder:
        async with opened(Path(folder)) as api, served(recorder := Recorder(api.app), is_started=True) as url:
            working = asyncio.create_task(api.worker.run())
            key = api.http.headers["authorization"].removeprefix("Bearer ")
            command = command_of(url, key, cases=cases, max_time_s=max_time_s, phases=phases, seed=seed)
            running = await asyncio.create_subprocess_exec(
                *command,
                env=os.environ | HOOKS | {PRESENT: json.dumps(await _populate(api))},  # noqa: TID251 - the child's environment
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,  # It leaves a cache there.
            )
            said, _ = await running.communicate()
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
    assert running.returncode is not None
    return running.returncode, said.decode() + _summary(api.app, recorder)


async def _populate(api: Api) -> dict[str, str]:
    """A store with a file that has been ingested, an upload that has a part, and what was asked and is kept."""
    store_id = await api.store()
    file_id = await api.add_document(store_id, "letter.txt", "The harbour master is Ondine Marsh.")
    batch = await api.http.post(f"/v1/vector_stores/{store_id}/file_batches", json={"file_ids": [file_id]})
    announced = {"filename": "a.txt", "purpose": "assistants", "bytes": 5, "mime_type": "text/plain"}
    upload_id = (await api.http.post("/v1/uploads", json=announced)).json()["id"]
    await api.http.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("x", b"hello")})
    chat = {"model": "scripted", "messages": [{"role": "user", "content": "Hello"}]}
    kept = await api.http.post("/v1/chat/completions", json={**chat, "store": True})
    response = await api.http.post("/v1/responses", json={"model": "scripted", "input": "Hello"})
    talk = await api.http.post("/v1/conversations", json={"items": [{"role": "user", "content": "Hello"}]})
    items = await api.http.get(f"/v1/conversations/{talk.json()['id']}/items")
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": chat}
    lines = await api.upload("lines.jsonl", json.dumps(line).encode(), purpose="batch")
    wanted = {"input_file_id": lines.json()["id"], "endpoint": line["url"], "completion_window": "24h"}
    requests = await api.http.post("/v1/batches", json=wanted)
    return {
        "vector_store_id": store_id,
        "file_id": file_id,
        "batch_id": batch.json()["id"],
        "upload_id": upload_id,
        "completion_id": kept.json()["id"],
        "response_id": response.json()["id"],
        "conversation_id": talk.json()["id"],
        "item_id": items.json()["data"][0]["id"],
        "input_file_id": lines.json()["id"],
        "request_batch_id": requests.json()["id"],
        "model": "scripted",
        "embedding_model": MINILM.name,
    }


def _summary(app: FastAPI, recorder: Recorder) -> str:
    """Of each operation, how often it answered with which status: what never succeeds is hardly tested."""
    ours = Spec(app.openapi())
    counts: dict[str, Counter[int]] = {}
    for each in recorder.exchanges:
        operation = ours.operation_of(each.method, each.path)
        if operation is not None:
            name = f"{operation.method.upper()} {operation.path}"
            counts.setdefault(name, Counter())[each.status] += 1
    return "\n".join(
        f"{name:<75}" + ", ".join(f"{status}: {count}" for status, count in sorted(counts[name].items()))
        for name in sorted(counts)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzzes the API by its own description.")
    parser.add_argument(
        "--cases", type=int, default=20_000, help="random requests, of all operations together"
    )
    parser.add_argument("--max-time", type=int, help="seconds, at most")
    parser.add_argument("--phases", default="examples,coverage,fuzzing,stateful")
    parser.add_argument("--seed", type=int, help="of a run that is to be repeated; its end tells it")
    asked = parser.parse_args()
    began = time.monotonic()
    status, said = asyncio.run(
        fuzz(cases=asked.cases, max_time_s=asked.max_time, phases=asked.phases, seed=asked.seed)
    )
    print(said)
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(status)


if __name__ == "__main__":
    main()
