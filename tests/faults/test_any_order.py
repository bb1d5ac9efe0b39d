"""Uploads, updates, deletions, grants, crashes, rebuilds, backups and restores in any order, against a model in a dict.

`STEPS=50 EXAMPLES=1000` in the environment makes it long.
"""

import asyncio
import os
import shutil
import tempfile
import time
from contextlib import AsyncExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.access.auth import DEFAULT_TENANT
from app.settings import read_settings
from app.storage.backup import back_up, restore
from app.storage.opening import open_storage
from retrieval.tables import Role
from tests.app.alone import Alone, api_alone
from tests.app.test_deleting import upkeep

STEPS = int(os.environ.get("STEPS", "15"))  # noqa: TID251 - how long a test is, not a setting
EXAMPLES = int(os.environ.get("EXAMPLES", "5"))  # noqa: TID251
SHADES = ("red", "green", "blue")


@dataclass
class Model:
    """What there must be."""

    files: dict[str, str] = field(default_factory=dict)
    """Contents, by the file's id."""
    shades: dict[str, str] = field(default_factory=dict)
    """An attribute of those that are in the store."""
    keys: dict[str, str] = field(default_factory=dict)
    """Texts of the keys that are good, by id."""


class AnyOrder(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._folder = Path(tempfile.mkdtemp())
        self._homes = self._backups = 0
        self._made = 0
        self._model = Model()
        self._gone: set[str] = set()
        self._detached: set[str] = set()
        self._revoked: dict[str, str] = {}
        self._backup: tuple[Path, Model] | None = None

    @initialize()
    def open_and_make_a_store(self) -> None:
        self._open(self._home())
        store = self._ask("POST", "/v1/vector_stores", json={"name": "ships"})
        self._store = store["id"]

    @rule(shade=st.sampled_from(SHADES), length=st.sampled_from((1, 40)))
    def add(self, shade: str, length: int) -> None:
        self._made += 1
        content = f"Ship number{self._made} is moored at the quay.\n\n" * length
        file_id = self._ask("POST", "/v1/files", files={"file": ("a.txt", content.encode())})["id"]
        body = {"file_id": file_id, "attributes": {"shade": shade}}
        self._ask("POST", f"/v1/vector_stores/{self._store}/files", json=body)
        self._run(self._alone.worker.drain())
        self._model.files[file_id] = content
        self._model.shades[file_id] = shade

    @precondition(lambda self: self._model.shades)
    @rule(pick=st.integers(0), shade=st.sampled_from(SHADES))
    def update(self, pick: int, shade: str) -> None:
        file_id = self._one_of(self._model.shades, pick)
        path = f"/v1/vector_stores/{self._store}/files/{file_id}"
        self._ask("POST", path, json={"attributes": {"shade": shade}})
        self._model.shades[file_id] = shade

    @precondition(lambda self: self._model.shades)
    @rule(pick=st.integers(0))
    def detach(self, pick: int) -> None:
        file_id = self._one_of(self._model.shades, pick)
        self._ask("DELETE", f"/v1/vector_stores/{self._store}/files/{file_id}")
        del self._model.shades[file_id]
        self._detached.add(file_id)

    @precondition(lambda self: self._model.files)
    @rule(pick=st.integers(0))
    def delete(self, pick: int) -> None:
        file_id = self._one_of(self._model.files, pick)
        self._ask("DELETE", f"/v1/files/{file_id}")
        del self._model.files[file_id]
        self._model.shades.pop(file_id, None)
        self._gone.add(file_id)

    @rule()
    def grant(self) -> None:
        with self._alone.services.database.write() as session:
            key, text = self._alone.services.keys.add(
                session, tenant_name=DEFAULT_TENANT, name="k", role=Role.READER, now=time.time()
            )
            self._model.keys[key.id] = text

    @precondition(lambda self: self._model.keys)
    @rule(pick=st.integers(0))
    def revoke(self, pick: int) -> None:
        key_id = self._one_of(self._model.keys, pick)
        with self._alone.services.database.write() as session:
            self._alone.services.keys.revoke(session, key_id, now=time.time())
        self._revoked[key_id] = self._model.keys.pop(key_id)

    @rule()
    def crash(self) -> None:
        """What is on disk now is what a power cut would leave."""
        home = self._home()
        shutil.copytree(self._at, home)
        self._close()
        self._open(home)

    @rule()
    def restart(self) -> None:
        self._close()
        self._open(self._at)

    @rule()
    def tidy(self) -> None:
        self._run(upkeep(self._alone.services))

    @rule(size=st.sampled_from((100, 400)))
    def rebuild(self, size: int) -> None:
        """Cuts all anew; answers from it as soon as all of it is there."""
        static = {"max_chunk_size_tokens": size, "chunk_overlap_tokens": 0}
        body = {"chunking_strategy": {"type": "static", "static": static}}
        reply = self._send("POST", f"/v1/vector_stores/{self._store}/generations", json=body)
        assert reply.status_code in (200, 409), reply.text
        self._run(self._alone.worker.drain())

    @rule()
    def back_up(self) -> None:
        self._backups += 1
        archive = self._folder / f"{self._backups}.strongroom"

        def made() -> None:
            with open_storage(self._settings(self._at)) as storage:
                back_up(self._settings(self._at), storage, archive)

        self._run(asyncio.to_thread(made))
        self._backup = (archive, deepcopy(self._model))

    @precondition(lambda self: self._backup is not None)
    @rule()
    def go_back(self) -> None:
        """To the backup: what was deleted or revoked since stays so, by the ledger."""
        assert self._backup is not None
        archive, then = self._backup
        home = self._home()
        (home / "keys").mkdir(parents=True)
        shutil.copy(self._at / "keys" / "master.key", home / "keys" / "master.key")
        self._close()
        restored = restore(self._settings(home), archive, newer_ledger=self._at / "deletions.ledger")
        assert restored.differences == []
        then = deepcopy(then)
        for file_id in self._gone:
            then.files.pop(file_id, None)
            then.shades.pop(file_id, None)
        for key_id in self._revoked:
            then.keys.pop(key_id, None)
        # What was taken out of the store is a deletion too.
        for file_id in self._detached:
            then.shades.pop(file_id, None)
        self._model = then
        self._open(home)

    @invariant()
    def all_is_as_it_must_be(self) -> None:
        if not hasattr(self, "_store"):
            return
        model = self._model
        assert self._found() == set(model.shades)
        for shade in SHADES:
            wanted = {each for each, its in model.shades.items() if its == shade}
            assert self._found({"type": "eq", "key": "shade", "value": shade}) == wanted
        for file_id, content in model.files.items():
            assert self._send("GET", f"/v1/files/{file_id}/content").text == content
        for file_id in self._gone:
            assert self._send("GET", f"/v1/files/{file_id}/content").status_code == 404
        counts = self._ask("GET", f"/v1/vector_stores/{self._store}")["file_counts"]
        assert counts["completed"] == counts["total"] == len(model.shades)
        assert self._ask("GET", "/v1/verify")["differences"] == []
        for text, status in (
            *((each, 200) for each in model.keys.values()),
            *((each, 401) for each in self._revoked.values()),
        ):
            self._alone.services.keys._remembered.clear()
            asked = self._send("GET", "/v1/files", headers={"authorization": f"Bearer {text}"})
            assert asked.status_code == status

    def teardown(self) -> None:
        if hasattr(self, "_alone"):
            self._close()
        self._runner.close()
        shutil.rmtree(self._folder)

    def _home(self) -> Path:
        self._homes += 1
        return self._folder / f"home-{self._homes}"

    @staticmethod
    def _settings(home: Path) -> Any:
        return read_settings().with_options(storage={"data_dir": str(home), "reserve_bytes": 0})

    def _open(self, home: Path) -> None:
        async def opened() -> Alone:
            self._stack = AsyncExitStack()
            return await self._stack.enter_async_context(api_alone(home))

        self._at = home
        self._alone = self._run(opened())

    def _close(self) -> None:
        self._run(self._stack.aclose())

    def _run(self, what: Any) -> Any:
        return self._runner.run(what)

    def _send(self, method: str, path: str, **more: Any) -> Any:
        return self._run(self._alone.http.request(method, path, **more))

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        reply = self._send(method, path, **more)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def _found(self, filters: Any = None) -> set[str]:
        body = {"query": "moored quay", "search_mode": "keyword", "max_num_results": 50, "filters": filters}
        found = self._ask("POST", f"/v1/vector_stores/{self._store}/search", json=body)
        return {each["file_id"] for each in found["data"]}

    @staticmethod
    def _one_of(there: dict[str, str], pick: int) -> str:
        return sorted(there)[pick % len(there)]


AnyOrder.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize="EXAMPLES" not in os.environ,  # noqa: TID251
)
TestAnyOrder = AnyOrder.TestCase
