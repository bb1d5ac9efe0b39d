"""Two machines with an api and a worker each, on one PostgreSQL and one folder: they are one Strongroom."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from sqlalchemy import create_engine, text

from tests.faults.ingesting import quick_models
from tests.faults.quick_models import ALIAS
from tests.hosts import Host, NoHosts, hosts
from tests.postgres import PostgresServer
from tests.stack import eventually, free_port, printed

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

NOWHERE = "http://127.0.0.1:9"
START_S = 90.0
LEASE_S = 10.0
"""Of who leads: after this and a beat, another does."""


class TwoHosts:
    """The processes, and a client of each api."""

    def __init__(self, machines: list[Host], server: PostgresServer, models_url: str, folder: Path) -> None:
        self.machines = machines
        self.database_port = server.port
        self.folder = folder
        self._server = server
        self._models_port = int(models_url.rpartition(":")[2])
        self._port = free_port()
        self.database = server.create_database()
        self.workers: list[subprocess.Popen[bytes]] = []
        self.apis: list[httpx.Client] = []

    def start(self) -> None:
        printed(self._environment("127.0.0.1"), "migrate")
        key = (self.folder / "data" / "keys" / "admin.key").read_text().strip()
        for number, machine in enumerate(self.machines):
            machine.passage(self.database_port)
            machine.passage(self._models_port)
            environment = self._environment(machine.outside)
            role = [sys.executable, "-m", "app.cli"]
            machine.start([*role, "api"], environment, self.folder / f"api-{number}.log")
            self.workers.append(machine.start([*role, "worker"], environment, self.worker_log(number)))
            self.apis.append(
                httpx.Client(
                    base_url=f"http://{machine.inside}:{self._port}",
                    headers={"Authorization": f"Bearer {key}"},
                    timeout=30,
                )
            )
        eventually(lambda: all(map(is_up, self.apis)), within_s=START_S)
        eventually(lambda: self.leader() is not None, within_s=START_S)

    def close(self) -> None:
        for api in self.apis:
            api.close()

    def worker_log(self, number: int) -> Path:
        return self.folder / f"worker-{number}.log"

    def events(self, number: int, name: str) -> list[dict[str, Any]]:
        """Of that machine's worker."""
        lines = self.worker_log(number).read_bytes().splitlines()
        return [event for event in map(orjson.loads, lines) if event.get("event") == name]

    def leader(self) -> int | None:
        """Whose worker began to lead last."""
        began = [(event["fence"], number) for number in (0, 1) for event in self.events(number, "leading")]
        return max(began)[1] if began else None

    def rows(self, query: str) -> list[Any]:
        url = self._server.url(self.database).replace("postgresql://", "postgresql+psycopg://")
        engine = create_engine(url)
        with engine.connect() as connection:
            found = list(connection.execute(text(query)))
        engine.dispose()
        return found

    def _environment(self, outside: str) -> dict[str, str]:
        return os.environ | {  # noqa: TID251 - the children's environment
            "STRONGROOM_SERVER__HOST": "0.0.0.0",
            "STRONGROOM_SERVER__PORT": str(self._port),
            "STRONGROOM_STORAGE__DATA_DIR": str(self.folder / "data"),
            "STRONGROOM_STORAGE__DATABASE_URL": (
                f"postgresql://postgres@{outside}:{self.database_port}/{self.database}"
            ),
            "STRONGROOM_MODELS__URL": f"http://{outside}:{self._models_port}",
            "STRONGROOM_MODELS__EMBEDDING": ALIAS,
            "STRONGROOM_ENGINE__URL": NOWHERE,
        }


@pytest.fixture(scope="module")
def two(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    folder = tmp_path_factory.mktemp("two")
    try:
        with hosts(2) as machines, quick_models(folder / "models.log") as models_url:
            running = TwoHosts(machines, postgres_server, models_url, folder)
            running.start()
            yield running
            running.close()
    except NoHosts as error:
        pytest.skip(str(error))


def is_up(api: httpx.Client) -> bool:
    try:
        return api.get("/health").status_code == 200
    except httpx.HTTPError:
        return False


def add(api: httpx.Client, store: str, name: str, content: str) -> str:
    """Returns once that api says that it is completed."""
    file_id: str = (
        api.post("/v1/files", files={"file": (name, content.encode())}).raise_for_status().json()["id"]
    )
    place = f"/v1/vector_stores/{store}/files"
    api.post(place, json={"file_id": file_id}).raise_for_status()
    eventually(
        lambda: api.get(f"{place}/{file_id}").raise_for_status().json()["status"] == "completed", within_s=60
    )
    return file_id


def found(api: httpx.Client, store: str, words: str) -> set[str]:
    body = {"query": words, "search_mode": "keyword"}
    reply = api.post(f"/v1/vector_stores/{store}/search", json=body).raise_for_status()
    return {each["file_id"] for each in reply.json()["data"]}


def new_store(api: httpx.Client) -> str:
    store: str = api.post("/v1/vector_stores", json={"name": "shared"}).raise_for_status().json()["id"]
    return store


def test_what_one_adds_or_deletes_counts_for_the_others_next_search(two: TwoHosts) -> None:
    one, other = two.apis
    store = new_store(one)
    for number in range(10):
        word = f"halcyon{number}"
        here, there = (one, other) if number % 2 else (other, one)
        file_id = add(here, store, f"{word}.txt", f"The ferry {word} leaves at dawn.")
        assert found(there, store, word) == {file_id}
        there.delete(f"/v1/files/{file_id}").raise_for_status()
        assert found(here, store, word) == set()


def test_two_workers_share_the_jobs_and_run_each_once(two: TwoHosts) -> None:
    one, other = two.apis
    store = new_store(one)
    ids = [
        one.post(
            "/v1/files", files={"file": (f"{number}.txt", f"Entry {number}. {secrets.token_hex(8)}".encode())}
        )
        .raise_for_status()
        .json()["id"]
        for number in range(60)
    ]
    before = [len(two.events(number, "document_completed")) for number in (0, 1)]
    batch = (
        one.post(f"/v1/vector_stores/{store}/file_batches", json={"file_ids": ids}).raise_for_status().json()
    )
    place = f"/v1/vector_stores/{store}/file_batches/{batch['id']}"
    eventually(lambda: other.get(place).json()["file_counts"]["completed"] == len(ids), within_s=120)
    done = [len(two.events(number, "document_completed")) - before[number] for number in (0, 1)]
    assert sum(done) == len(ids)
    assert min(done) > 0
    # Each document's chunks were logged once, and none were taken back.
    raw = store.removeprefix("vs_")
    ((added, distinct, others),) = two.rows(
        "select count(*) filter (where op = 'add'), count(distinct chunk_id), count(*) filter (where op <> 'add') "
        f"from chunk_log where collection_id = '{raw}' or collection_id = '{store}'"
    )
    assert (added, distinct, others) == (len(ids), len(ids), 0)


def test_a_host_that_loses_its_database_comes_back_and_has_missed_nothing(two: TwoHosts) -> None:
    cut_off, other = two.apis
    store = new_store(other)
    first = add(other, store, "before.txt", "The quay was swept.")
    assert found(cut_off, store, "quay") == {first}
    passage = two.machines[0].passage(two.database_port)
    passage.cut()
    try:
        began = time.monotonic()
        reply = cut_off.post(f"/v1/vector_stores/{store}/search", json={"query": "quay"})
        assert reply.status_code == 503, reply.text
        assert time.monotonic() - began < 15
        second = add(other, store, "meanwhile.txt", "The quay was painted.")
        other.delete(f"/v1/files/{first}").raise_for_status()
    finally:
        passage.mend()
    eventually(
        lambda: cut_off.post(f"/v1/vector_stores/{store}/search", json={"query": "quay"}).status_code == 200,
        within_s=30,
    )
    assert found(cut_off, store, "quay") == {second}
    # Its worker came back too.
    third = add(cut_off, store, "after.txt", "The quay was closed.")
    assert found(other, store, "closed") == {third}


def test_another_worker_leads_when_the_leader_dies(two: TwoHosts) -> None:
    leader = two.leader()
    assert leader is not None
    two.workers[leader].kill()
    eventually(lambda: two.leader() == 1 - leader, within_s=2 * LEASE_S + 10)
    assert [len({event["fence"] for event in two.events(number, "leading")}) > 0 for number in (0, 1)]
    # And goes on alone.
    one = two.apis[0]
    store = new_store(one)
    file_id = add(one, store, "alone.txt", "The lighthouse stands alone.")
    assert found(two.apis[1], store, "lighthouse") == {file_id}
