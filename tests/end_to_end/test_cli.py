"""The commands that people type, against the real stack."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.stack import ROOT, Stack, eventually

pytestmark = pytest.mark.engine


def strongroom(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with the stack's data folder and address."""
    address = ["--url", stack.url] if arguments[0] in ("add", "ask", "verify") else []
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments, "--data-dir", str(stack.folder), *address],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_add_takes_a_folder_and_tells_which_file_failed_and_why(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "ferry.md").write_text("# Ferry\n\nThe ferry Tern leaves the east pier at 06:40.")
    (tmp_path / "inner" / "empty.txt").write_text("")
    (tmp_path / "program.exe").write_bytes(b"MZ\0\1")
    added = strongroom(stack, "add", str(tmp_path), "--collection", "ferry")
    assert added.returncode == 1
    assert "2/2" in added.stdout
    assert "empty.txt" in added.stdout
    assert "empty" in added.stdout.replace("empty.txt", "")

    asked = strongroom(
        stack, "ask", "At what time does the ferry Tern leave the east pier?", "--collection", "ferry"
    )
    assert asked.returncode == 0, asked.stderr
    assert "06:40" in asked.stdout
    assert "[1] ferry.md" in asked.stdout
    assert "“The ferry Tern leaves the east pier at 06:40.”" in asked.stdout

    verified = strongroom(stack, "verify")
    assert verified.returncode == 0
    assert f"{stack.url}: 0 differences." in verified.stdout.replace("\n", " ")


def test_a_key_is_shown_once_works_and_stops_working_within_a_second_of_its_revocation(stack: Stack) -> None:
    key = strongroom(stack, "keys", "add", "for the reading room", "--role", "reader").stdout.strip()
    assert key.startswith("sr-")

    def status() -> int:
        return httpx.get(f"{stack.url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code

    assert status() == 200
    listed = strongroom(stack, "keys", "list").stdout
    assert key not in listed
    row = next(line for line in listed.splitlines() if "key_" in line and "reader" in line)
    key_id = next(part for part in row.split() if part.startswith("key_"))
    assert strongroom(stack, "keys", "revoke", key_id).returncode == 0
    eventually(lambda: status() == 401, within_s=1.0, every_s=0.05)


def test_a_command_without_a_server_or_a_key_says_what_to_do(stack: Stack, tmp_path: Path) -> None:
    nowhere = [sys.executable, "-m", "app.cli", "ask", "Anything?", "--data-dir"]
    keyless = subprocess.run([*nowhere, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (keyless.returncode, len(keyless.stderr.strip().splitlines())) == (2, 1)
    assert "--key-file" in keyless.stderr
    unanswered = subprocess.run(
        [*nowhere, str(stack.folder), "--url", "http://127.0.0.1:9"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (unanswered.returncode, len(unanswered.stderr.strip().splitlines())) == (2, 1)
    assert "http://127.0.0.1:9" in unanswered.stderr
