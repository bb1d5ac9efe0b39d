"""A disk that is full: nothing is accepted that is not kept, what is there is found, and deleting makes room."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.app.alone import Alone, api_alone

DISK_MIB = 48
RESERVE_BYTES = 8 << 20
MOORED = "The {name} is moored at the north quay."


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("A disk of its own needs the right to mount one.")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Takes what is left, to the last block."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return filler


async def test_a_full_disk_refuses_what_it_cannot_keep_and_still_answers_and_deletes(
    small_disk: Path,
) -> None:
    async with api_alone(small_disk / "data", reserve_bytes=RESERVE_BYTES) as alone:
        store_id = (await alone.client.vector_stores.create(name="quays")).id
        files = {name: await add(alone, store_id, name) for name in ("Halcyon", "Petrel", "Curlew")}
        filler = fill(small_disk)

        refused = await upload(alone, "Heron")
        assert refused.status_code == 503, refused.text
        error = refused.json()["error"]
        assert (error["code"], refused.headers["retry-after"]) == ("disk_full", "5")
        assert "delete" in error["message"]
        made = await alone.http.post("/v1/vector_stores", json={"name": "another"})
        assert (made.status_code, made.json()["error"]["code"]) == (503, "disk_full")
        assert await found(alone, store_id) == set(files)

        for path in (f"/v1/vector_stores/{store_id}/files/{files['Petrel']}", f"/v1/files/{files['Petrel']}"):
            assert (await alone.http.delete(path)).status_code == 200
        assert await found(alone, store_id) == {"Halcyon", "Curlew"}
        assert (await alone.http.get(f"/v1/files/{files['Petrel']}/content")).status_code == 404
        # What was held back for deletions is for them alone.
        assert (await upload(alone, "Heron")).json()["error"]["code"] == "disk_full"

    async with api_alone(small_disk / "data", reserve_bytes=RESERVE_BYTES) as alone:
        assert await found(alone, store_id) == {"Halcyon", "Curlew"}
        assert (await alone.http.delete(f"/v1/files/{files['Halcyon']}")).status_code == 200
        assert await found(alone, store_id) == {"Curlew"}

        filler.unlink()
        await add(alone, store_id, "Heron")
        assert await found(alone, store_id) == {"Curlew", "Heron"}
        # And room for deletions is held back anew.
        fill(small_disk)
        assert (await alone.http.delete(f"/v1/files/{files['Curlew']}")).status_code == 200


async def upload(alone: Alone, name: str) -> httpx.Response:
    content = (MOORED.format(name=name).encode() + b"\n\n") + os.urandom(20_000).hex().encode()
    return await alone.http.post("/v1/files", files={"file": (f"{name}.txt", content)})


async def add(alone: Alone, store_id: str, name: str) -> str:
    reply = await upload(alone, name)
    assert reply.status_code == 200, reply.text
    file_id: str = reply.json()["id"]
    attached = await alone.http.post(f"/v1/vector_stores/{store_id}/files", json={"file_id": file_id})
    assert attached.status_code == 200, attached.text
    await alone.worker.drain()
    return file_id


async def found(alone: Alone, store_id: str) -> set[str]:
    body = {"query": "moored north quay", "search_mode": "keyword", "max_num_results": 50}
    reply = await alone.http.post(f"/v1/vector_stores/{store_id}/search", json=body)
    assert reply.status_code == 200, reply.text
    return {each["filename"].removesuffix(".txt") for each in reply.json()["data"]}
