"""Zero data retention and the audit log with real role processes and the real engine."""

import resource

import httpx
import psutil
import pytest
from openai import OpenAI

from tests.app.test_at_rest import holding
from tests.app.test_deleting import pages_of
from tests.stack import Stack

pytestmark = pytest.mark.engine

PROMPT = "quillfeather"
NOTHING = {"x-strongroom-retention": "none"}


def test_no_role_and_no_engine_writes_down_what_is_asked_and_none_can_dump_its_memory(
    stack: Stack, client: OpenAI
) -> None:
    ready = httpx.get(f"{stack.url}/ready").json()
    assert ready["modes"]["zero_data_retention"] == {"can_be_promised": True, "obstacles": []}
    messages = [{"role": "user", "content": f"Repeat the word {PROMPT}."}]
    served = next(model.id for model in client.models.list() if "SmolLM2" in model.id)
    for model in (served, "rag"):
        body = {"model": model, "messages": messages, "max_tokens": 20}
        headers = {**NOTHING, "Authorization": f"Bearer {client.api_key}"}
        reply = httpx.post(f"{stack.url}/v1/chat/completions", json=body, headers=headers, timeout=120)
        assert reply.status_code == 200, reply.text
        assert reply.headers["x-strongroom-receipt"].count(".") == 2
    assert holding(stack.folder, PROMPT) == []
    assert PROMPT not in stack.log.read_text().lower()
    assert PROMPT.encode() not in pages_of(stack.folder).lower()
    processes = psutil.Process(stack.process.pid).children(recursive=True)
    assert len(processes) >= 4
    assert {process.rlimit(resource.RLIMIT_CORE) for process in processes} <= {(1, 1), (0, 0)}
