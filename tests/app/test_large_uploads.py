"""Files of 600 MB, through /v1/files and in parts: streamed to disk in bounded memory, and resumed after a kill."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.api_role import ApiRole

pytestmark = [pytest.mark.processes, pytest.mark.long]

MIB = 1 << 20
SIZE_BYTES = 600 * MIB
PART_BYTES = 60 * MIB
MOST_GROWTH_BYTES = 150 * MIB
"""Of the process: a part, let alone a file, would not fit."""


@pytest.fixture(scope="module")
def letter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No two of its blocks are alike."""
    path = tmp_path_factory.mktemp("large") / "letter.txt"
    with path.open("wb") as file:
        for number in range(SIZE_BYTES // MIB):
            file.write((b"Line %07d of a letter.\n" % number * MIB)[:MIB])
    yield path
    path.unlink()


@pytest.fixture
def role(tmp_path: Path) -> Iterator[ApiRole]:
    with ApiRole(tmp_path / "data") as started:
        started.start()
        yield started


def client(role: ApiRole) -> httpx.Client:
    return httpx.Client(base_url=role.url, headers=role.headers, timeout=300)


def peak_bytes(role: ApiRole) -> int:
    status = Path(f"/proc/{role.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def digest_of(pieces: Iterator[bytes]) -> str:
    digest = hashlib.md5()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return digest_of(iter(lambda: file.read(MIB), b""))


def downloaded_digest(http: httpx.Client, file_id: str) -> str:
    with http.stream("GET", f"/v1/files/{file_id}/content") as reply:
        assert int(reply.headers["content-length"]) == SIZE_BYTES
        return digest_of(reply.iter_bytes())


def test_a_large_file_goes_to_disk_and_back_without_being_held_in_memory(role: ApiRole, letter: Path) -> None:
    before = psutil.Process(role.pid).memory_info().rss
    with client(role) as http, letter.open("rb") as content:
        sent = {"file": (letter.name, content, "text/plain")}
        reply = http.post("/v1/files", files=sent, data={"purpose": "assistants"})
        assert (reply.status_code, reply.json()["bytes"]) == (200, SIZE_BYTES), reply.text
        assert downloaded_digest(http, reply.json()["id"]) == digest_of_file(letter)
    assert peak_bytes(role) - before < MOST_GROWTH_BYTES


def test_parts_that_were_acknowledged_outlive_a_kill_and_make_the_whole_file(
    role: ApiRole, letter: Path
) -> None:
    announced = {
        "filename": letter.name,
        "purpose": "assistants",
        "bytes": SIZE_BYTES,
        "mime_type": "text/plain",
    }
    with client(role) as http:
        upload_id = http.post("/v1/uploads", json=announced).json()["id"]
        part_ids = [send_part(http, upload_id, letter, number) for number in range(4)]
        with pytest.raises(httpx.TransportError):
            http.post(
                f"/v1/uploads/{upload_id}/parts",
                content=half_a_part(role),
                headers={"Content-Type": "multipart/form-data; boundary=b"},
            )
    role.start()
    before = psutil.Process(role.pid).memory_info().rss
    with client(role) as http:
        assert http.get(f"/v1/uploads/{upload_id}").json()["status"] == "pending"
        part_ids += [
            send_part(http, upload_id, letter, number) for number in range(4, SIZE_BYTES // PART_BYTES)
        ]
        whole = {"part_ids": part_ids, "md5": digest_of_file(letter)}
        reply = http.post(f"/v1/uploads/{upload_id}/complete", json=whole)
        assert reply.json()["status"] == "completed", reply.text
        assert downloaded_digest(http, reply.json()["file"]["id"]) == whole["md5"]
    assert peak_bytes(role) - before < MOST_GROWTH_BYTES


def send_part(http: httpx.Client, upload_id: str, letter: Path, number: int) -> str:
    with letter.open("rb") as file:
        file.seek(number * PART_BYTES)
        part = file.read(PART_BYTES)
    reply = http.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("blob", part)})
    assert reply.status_code == 200, reply.text
    return str(reply.json()["id"])


def half_a_part(role: ApiRole) -> Iterator[bytes]:
    """Whose sender's server is killed meanwhile."""
    yield b'--b\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\n'
    for number in range(PART_BYTES // MIB):
        if number == PART_BYTES // MIB // 2:
            role.kill()
        yield b"x" * MIB
