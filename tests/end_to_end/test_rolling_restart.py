"""The apis of the compose file's profile `scale-cpu`, restarted in turn behind their proxy."""

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.compose import LOOPBACK, ComposedStack, composed, read_compose
from tests.end_to_end.test_compose import FILE, HAPROXY, box_of, postgres_service
from tests.postgres import PostgresServer
from tests.stack import free_port

__all__ = ["postgres_service"]

pytestmark = pytest.mark.processes


@pytest.fixture
def scaled(postgres_service: PostgresServer, tmp_path: Path) -> Iterator[ComposedStack]:
    """Two api processes behind their proxy; without workers, models and engines."""
    if not HAPROXY.exists():
        pytest.skip("haproxy is not installed: make test-packages")
    published = free_port()
    services = read_compose(FILE, {"PUBLISH": f"{LOOPBACK}:{published}"}, profile="scale-cpu")
    names = ("postgres", "migrate", "api-1", "api-2", "proxy")
    box = box_of(tmp_path, {"postgres": postgres_service.port, "proxy": published})
    with composed({name: services[name] for name in names}, box, within_s=120) as running:
        yield running


def test_each_api_is_restarted_in_turn_without_a_failed_request(scaled: ComposedStack) -> None:
    url = f"http://{LOOPBACK}:{scaled.ports['proxy']}"
    key = (scaled.folder / "data" / "keys" / "admin.key").read_text().strip()
    made: list[str] = []
    failed: list[str] = []
    over = threading.Event()

    def ask(client: int) -> None:
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=20) as http:
            while not over.is_set():
                name = f"{client}-{len(made)}"
                try:
                    reply = http.post("/v1/vector_stores", json={"name": name})
                    reply.raise_for_status()
                    made.append(reply.json()["id"])
                    http.get(f"/v1/vector_stores/{made[-1]}").raise_for_status()
                    sent = http.post("/v1/files", files={"file": ("note.txt", b"x" * 100_000)})
                    sent.raise_for_status()
                except httpx.HTTPError as error:
                    failed.append(repr(error))

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for each in clients:
        each.start()
    for name in ("api-1", "api-2"):
        before = len(made)
        scaled.restart(name, within_s=60)
        assert len(made) > before, "nothing was asked meanwhile"
    over.set()
    for each in clients:
        each.join()
    assert failed == []
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as http:
        listed: list[str] = []
        page = {"has_more": True, "last_id": None}
        while page["has_more"]:
            after = {"after": page["last_id"]} if page["last_id"] else {}
            page = http.get("/v1/vector_stores", params={"limit": 100, **after}).raise_for_status().json()
            listed += [each["id"] for each in page["data"]]
    assert sorted(listed) == sorted(made), "something was done twice, or is lost"
