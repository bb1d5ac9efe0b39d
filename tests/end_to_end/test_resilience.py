"""Whatever is killed, what was acknowledged is still there, and nothing is left behind."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import InternalServerError, OpenAI

from tests.stack import MODELS, ROOT, Stack, eventually

WITHOUT_ENGINE = ("database", "models", "worker")
NO_ENGINE = {"STRONGROOM_ENGINE__URL": "http://127.0.0.1:9"}


def add_note(client: OpenAI, store_id: str, folder: Path, number: int) -> None:
    """Uploads and attaches a note without waiting for it."""
    path = folder / f"note-{number}.txt"
    path.write_text(f"The password of locker {number} is the word marigold{number}.")
    file = client.files.create(file=path, purpose="assistants")
    client.vector_stores.files.create(vector_store_id=store_id, file_id=file.id)


def completed(client: OpenAI, store_id: str) -> int:
    return client.vector_stores.retrieve(store_id).file_counts.completed


def answers(client: OpenAI, model: str) -> bool:
    """False while the engine is away, which /ready may learn a moment later than we do."""
    asked: Any = {"role": "user", "content": "What is the password of locker 3?"}
    try:
        return bool(client.chat.completions.create(model=model, messages=[asked]).choices[0].message.content)
    except InternalServerError:
        return False


@pytest.mark.engine
@pytest.mark.parametrize("role", ["worker", "models", "api", "engine"])
def test_what_was_acknowledged_survives_a_kill_of_each_role(stack: Stack, tmp_path: Path, role: str) -> None:
    client = stack.client()
    store = client.vector_stores.create(name=f"killed-{role}")
    for number in range(6):
        add_note(client, store.id, tmp_path, number)
    stack.kill(role)
    stack.wait_ready()
    eventually(lambda: completed(client, store.id) == 6, within_s=60)
    for number in range(6):
        found = client.vector_stores.search(
            store.id, query=f"password of locker {number}", max_num_results=50
        )
        texts = [result.content[0].text for result in found.data]
        assert len(texts) == 6
        assert any(f"marigold{number}" in text for text in texts)
    eventually(lambda: answers(client, f"rag/killed-{role}"), within_s=120)
    with stack.http() as http:
        assert http.get("/v1/verify").json()["differences"] == []


@pytest.fixture
def small_stack(tmp_path: Path) -> Stack:
    """Without an engine: it starts in seconds. The test starts and ends it."""
    if not (MODELS / "all-MiniLM-L6-v2").is_dir():
        pytest.skip("The demo models are missing: run `make setup`.")
    return Stack(tmp_path / "data", NO_ENGINE)


@pytest.mark.processes
def test_a_killed_supervisor_leaves_no_process_and_the_next_start_has_everything(
    small_stack: Stack, tmp_path: Path
) -> None:
    small_stack.start(roles=WITHOUT_ENGINE)
    client = small_stack.client()
    store = client.vector_stores.create(name="kept")
    for number in range(4):
        add_note(client, store.id, tmp_path, number)
    descendants = psutil.Process(small_stack.process.pid).children(recursive=True)
    small_stack.process.kill()
    small_stack.process.wait()
    eventually(lambda: not any(each.is_running() for each in descendants), within_s=5)

    small_stack.start(roles=WITHOUT_ENGINE)
    try:
        eventually(lambda: completed(client, store.id) == 4, within_s=60)
        found = client.vector_stores.search(store.id, query="password of locker 2")
        assert "marigold" in found.data[0].content[0].text
        with small_stack.http() as http:
            assert http.get("/v1/verify").json()["differences"] == []
    finally:
        took_s = small_stack.stop()
    assert took_s < 10
    assert small_stack.process.returncode == 0


@pytest.mark.processes
def test_secrets_are_the_owners_inner_ports_want_a_token_and_sigterm_ends_all_in_time(
    small_stack: Stack,
) -> None:
    small_stack.start(roles=WITHOUT_ENGINE)
    descendants = psutil.Process(small_stack.process.pid).children(recursive=True)
    try:
        keys = small_stack.folder / "keys"
        assert {each.name for each in keys.iterdir()} == {
            "admin.key",
            "audit.key",
            "master.key",
            "root.key",
            "server.secret",
        }
        assert {each.stat().st_mode & 0o777 for each in keys.iterdir()} == {0o600}
        assert keys.stat().st_mode & 0o077 == 0
        ports = {
            connection.laddr.port
            for each in descendants
            for connection in each.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert small_stack.port in ports
        for port in ports - {small_stack.port}:
            assert httpx.post(f"http://127.0.0.1:{port}/embed", json={"texts": ["x"]}).status_code == 401
    finally:
        took_s = small_stack.stop()
    assert took_s < 10
    assert not any(each.is_running() for each in descendants)


def start_in_vain(tmp_path: Path, *options: str, **settings: str) -> str:
    """What a start that is refused says: one line."""
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "app.cli", "serve", "--data-dir", str(tmp_path / "data"), *options],
        cwd=ROOT,
        env=os.environ | NO_ENGINE | settings,  # noqa: TID251 - the child's environment
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2
    assert time.monotonic() - started < 10
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    return lines[0]


@pytest.mark.processes
def test_a_start_that_cannot_work_is_refused_in_one_line_that_names_the_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "server.port" in start_in_vain(tmp_path, "--port", str(taken.getsockname()[1]))
    assert "models.folder" in start_in_vain(tmp_path, STRONGROOM_MODELS__FOLDER=str(tmp_path / "none"))
    assert "models.embedding" in start_in_vain(tmp_path, STRONGROOM_MODELS__EMBEDDING="no-such-model")
    assert "engine.python" in start_in_vain(
        tmp_path, STRONGROOM_ENGINE__URL="", STRONGROOM_ENGINE__PYTHON=str(tmp_path / "python")
    )
    assert "server.prot" in start_in_vain(tmp_path, STRONGROOM_SERVER__PROT="1")
    assert "STRONGROOM_SEVER__PORT" in start_in_vain(tmp_path, STRONGROOM_SEVER__PORT="1")
    assert "server.port" in start_in_vain(tmp_path, STRONGROOM_SERVER__PORT="http")
    assert not (tmp_path / "data").exists()
    (tmp_path / "data").write_text("a file where the folder should be")
    assert "storage.data_dir" in start_in_vain(tmp_path)


@pytest.mark.processes
def test_a_database_from_a_newer_version_is_refused(small_stack: Stack) -> None:
    from sqlalchemy import text

    migrated = [sys.executable, "-m", "app.cli", "migrate", "--data-dir", str(small_stack.folder)]
    subprocess.run(migrated, cwd=ROOT, check=True, capture_output=True)
    with small_stack.database() as database, database.write() as session:
        session.execute(text("update alembic_version set version_num = '9999'"))
    assert "newer version" in start_in_vain(small_stack.folder.parent)


def test_an_old_python_is_refused_by_name() -> None:
    pretend = "import sys; sys.version_info = (3, 9, 1, 'final', 0); import app"
    ended = subprocess.run(
        [sys.executable, "-c", pretend], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.stderr.strip() == "Strongroom needs Python 3.11 or newer; this is Python 3.9.1"
