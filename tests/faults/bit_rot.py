"""Flips single bits in a data folder and starts on it: `python -m tests.faults.bit_rot --times 1000`.

Whatever bit it is, what is served afterwards is what was stored, or an error; and `verify` names what is damaged.
"""

import argparse
import asyncio
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.access.key_files import KeysUnusable
from app.storage.opening import StorageRefused
from retrieval.database import DatabaseUnavailable
from tests.app.alone import Alone, api_alone
from tests.faults.report import Row

FILES = 12
TOLD_AT_START = (DatabaseUnavailable, KeysUnusable, StorageRefused)
QUERY = {"query": "moored north quay", "search_mode": "keyword", "max_num_results": 50}


@dataclass(frozen=True)
class Stored:
    """What was put into the folder."""

    folder: Path
    key: str
    store_id: str
    contents: dict[str, bytes]
    """By the file's id."""


class ServedWrong(AssertionError):
    """Something was served that was never stored, or was left out in silence."""


async def fill(folder: Path) -> Stored:
    """A data folder with a store of a few files, and snapshots of its indexes."""
    contents = {}
    async with api_alone(folder) as alone:
        store_id = (await alone.client.vector_stores.create(name="quays")).id
        for number in range(FILES):
            text = f"Ship {number} is moored at the north quay.\n\n" + f"Cargo {number}. " * 300 * number
            file = await alone.client.files.create(
                file=(f"{number}.txt", text.encode()), purpose="assistants"
            )
            await alone.client.vector_stores.files.create(store_id, file_id=file.id)
            contents[file.id] = text.encode()
        await alone.worker.drain()
        assert len(await found(alone.http, store_id)) == FILES
        key = alone.key
    return Stored(folder, key, store_id, contents)


async def found(http: httpx.AsyncClient, store_id: str) -> set[str]:
    reply = await http.post(f"/v1/vector_stores/{store_id}/search", json=QUERY)
    return {each["file_id"] for each in reply.raise_for_status().json()["data"]}


async def judge(stored: Stored, folder: Path) -> str:
    """How the damage showed: at the start, in a reply, to `verify`; or that it did no harm. Raises ServedWrong."""
    try:
        async with api_alone(folder) as alone:
            return await _asked(stored, alone)
    except TOLD_AT_START:
        return "told at the start"


async def _asked(stored: Stored, alone: Alone) -> str:
    transport = httpx.ASGITransport(alone.app, raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {stored.key}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://strongroom", headers=headers) as http:
        if (await http.get("/v1/files")).status_code in (401, 503):
            return "told in a reply"
        errors = 0
        for file_id, content in stored.contents.items():
            reply = await http.get(f"/v1/files/{file_id}/content")
            errors += reply.status_code >= 500
            if reply.status_code < 500 and reply.content != content:
                raise ServedWrong(f"{file_id}: {reply.status_code}, {len(reply.content)} bytes")
        try:
            if await found(http, stored.store_id) != set(stored.contents):
                raise ServedWrong("a search leaves files out")
        except httpx.HTTPStatusError:
            errors += 1
        told, audit = await http.get("/v1/verify"), await http.get("/v1/audit/verify")
    if errors:
        return "told in a reply"
    is_told = told.status_code >= 500 or told.json()["differences"]
    is_told = is_told or audit.status_code >= 500 or audit.json()["problem"] is not None
    return "told by verify" if is_told else "did no harm"


def flip(path: Path, chance: random.Random) -> str:
    """Some bit of some file, each folder and the database with the same chance. Returns which."""
    files = sorted(
        each
        for each in path.rglob("*")
        # The first key's file is for people; no role reads it.
        if each.is_file() and each.stat().st_size and each.name != "admin.key"
    )
    places = sorted({each.relative_to(path).parts[0] for each in files})
    place = chance.choice(places)
    file = chance.choice([each for each in files if each.relative_to(path).parts[0] == place])
    content = bytearray(file.read_bytes())
    bit = chance.randrange(len(content) * 8)
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    return f"{file.relative_to(path)} bit {bit}"


async def rot(folder: Path, *, times: int, seed: int, say: Callable[[str], None]) -> Counter[str]:
    """How often the damage showed how. Raises ServedWrong."""
    stored = await fill(folder / "sound")
    chance, outcomes = random.Random(seed), Counter[str]()
    for number in range(1, times + 1):
        damaged = folder / "damaged"
        shutil.copytree(stored.folder, damaged)
        what = flip(damaged, chance)
        try:
            outcome = await judge(stored, damaged)
        except ServedWrong as error:
            raise ServedWrong(f"{what}: {error}") from error
        shutil.rmtree(damaged)
        outcomes[outcome] += 1
        say(f"{number}/{times} {what}: {outcome}")
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args()
    print(f"seed {asked.seed}")
    with tempfile.TemporaryDirectory() as folder:
        outcomes = asyncio.run(rot(Path(folder), times=asked.times, seed=asked.seed, say=print))
    harmless = outcomes.pop("did no harm", 0)
    told = ", ".join(f"{count} {how}" for how, count in sorted(outcomes.items()))
    figures = f"{told}; {harmless} changed nothing that is read"
    Row("F5 single bits flipped in any file", asked.times, 0, None, figures).show()


if __name__ == "__main__":
    main()
