"""A batch outlives the process that runs it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api_role import ApiRole
from tests.fakes import ScriptedEngine

LINES = 60

pytestmark = pytest.mark.processes


async def test_a_batch_goes_on_after_kill_9_where_it_was(tmp_path: Path) -> None:
    async with ScriptedEngine() as engine:
        role = ApiRole(tmp_path / "data", {"STRONGROOM_ENGINE__URL": engine.url})
        client = httpx.AsyncClient(base_url=role.url, headers=role.headers, timeout=30)

        async def batch_of(batch_id: str) -> dict[str, Any]:
            told: dict[str, Any] = (await client.get(f"/v1/batches/{batch_id}")).json()
            return told

        async with client:
            with role:
                await asyncio.to_thread(role.start)
                lines = [
                    {
                        "custom_id": f"ask-{number}",
                        "method": "POST",
                        "url": "/v1/chat/completions",
                        "body": {"model": "scripted", "messages": [{"role": "user", "content": f"{number}"}]},
                    }
                    for number in range(LINES)
                ]
                content = "\n".join(map(json.dumps, lines)).encode()
                sent = {"file": ("b.jsonl", content)}
                file = (await client.post("/v1/files", files=sent, data={"purpose": "batch"})).json()
                engine.answer = lambda asked: asked["messages"][0]["content"]
                engine.between_words_s = 0.2
                body = {
                    "input_file_id": file["id"],
                    "endpoint": "/v1/chat/completions",
                    "completion_window": "24h",
                }
                batch_id = (await client.post("/v1/batches", json=body)).json()["id"]
                for _ in range(200):
                    before = (await batch_of(batch_id))["request_counts"]["completed"]
                    if before >= 16:
                        break
                    await asyncio.sleep(0.05)
                role.kill()
            assert 16 <= before < LINES
            await asyncio.sleep(0.5)  # Until the engine has read what had been sent to it.
            asked_before = len(engine.requests)
            engine.between_words_s = 0.0
            with role:
                await asyncio.to_thread(role.start)
                for _ in range(600):
                    batch = await batch_of(batch_id)
                    if batch["status"] not in ("validating", "in_progress", "finalizing"):
                        break
                    await asyncio.sleep(0.1)
                assert batch["status"] == "completed"
                assert batch["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
                output = (await client.get(f"/v1/files/{batch['output_file_id']}/content")).text
        told = [json.loads(each) for each in output.splitlines()]
        answers = {
            each["custom_id"]: each["response"]["body"]["choices"][0]["message"]["content"] for each in told
        }
        assert answers == {f"ask-{number}": str(number) for number in range(LINES)}
        assert len(told) == LINES
        # What was answered before is not asked again, but for what was under way.
        assert len(engine.requests) - asked_before <= LINES - before
