"""Every kind of source, followed on a real server: what changes there, who is let in, and what when nobody answers."""

import asyncio
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from sqlalchemy import select, update

from ingest.leadership import Election
from ingest.schedules import Schedules
from ingest.sources import addresses, registry, repository
from ingest.sources.addresses import BACKENDS, open_source, read_address
from ingest.sources.entries import SourceRefused, SourceUnavailable
from ingest.sources.runs import reason_waiting
from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.tables import Source, Sweep
from tests.ingest.sources.servers import (
    SERVERS,
    SMB_STRANGER,
    MakePlace,
    Place,
    free_port,
    sftp_server,
    silent_server,
    smb_server,
)
from tests.ingest.sources.watched import Watched, sealed
from tests.ingest.stack import SEALER

pytestmark = pytest.mark.slow

VAULT = "The vault of the archive opens at nine."
KEY = "The key to the cellar hangs in the hall by the door."
WHALES = "Whales feed on krill in the cold sea."


class Followed:
    """A place as a source, and the process that leads its sweeps, step by step."""

    def __init__(self, database: Database, scope: Scope, folder: Path, place: Place) -> None:
        self.watched = Watched(
            database,
            scope,
            folder,
            url=place.url,
            options=place.options,
            include=["*.txt", "*.md"],
            exclude=["private/**"],
        )
        self.database = database
        self.source_id = self.watched.source_id
        self._election = Election(database, "schedules", clock=self.watched.stack.clock)
        self._schedules = Schedules(
            database,
            self.watched.stack.blobs,
            SEALER,
            cache=folder / "cache",
            election=self._election,
            clock=self.watched.stack.clock,
        )

    def move_to(self, place: Place) -> None:
        """Another address, or other options."""
        values = {"url": place.url, "options": sealed(place.options, self.source_id)}
        with self.database.write() as session:
            session.execute(update(Source).where(Source.id == self.source_id).values(**values))

    async def sweep(self, *, may_empty: bool = False) -> Sweep:
        """And ingests what it found."""
        self.watched.stack.clock.now += 1
        now = self.watched.stack.clock.now
        with self.database.write() as session:
            registry.ask_sweep(
                session, self.watched.scope, self.source_id, is_dry=False, may_empty=may_empty, now=now
            )
        self._election.beat()
        await self._schedules.tick()
        await self._schedules.settle()
        await self.watched.stack.worker().drain()
        with self.database.read() as session:
            return registry.last_sweeps(session, self.source_id, most=1)[0]

    async def counts(self, *, may_empty: bool = False) -> dict[str, int]:
        """Of a sweep that works: those that are not zero."""
        sweep = await self.sweep(may_empty=may_empty)
        assert sweep.error is None
        return {name: count for name, count in sweep.counts.items() if count}

    @property
    def source(self) -> Source:
        with self.database.read() as session:
            return session.scalars(select(Source)).one()


@pytest.fixture
def database_kind() -> str:
    """One will do: what is asked here is not of SQL."""
    return "sqlite"


@pytest.fixture(scope="session", params=SERVERS)
def make_place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MakePlace]:
    with SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as make:
        yield make


@pytest.fixture
def place(make_place: MakePlace) -> Place:
    return make_place()


@pytest.fixture
def followed(database: Database, scope: Scope, tmp_path: Path, place: Place) -> Followed:
    return Followed(database, scope, tmp_path, place)


async def test_a_collection_is_kept_as_the_place_is(followed: Followed, place: Place) -> None:
    watched, there = followed.watched, place.folder
    there.put("a.txt", VAULT)
    there.put("letters/1920/b é #1.txt", KEY)
    there.put("large.txt", "x" * 10_001)
    there.put("private/c.txt", WHALES)
    there.put("d.pdf", WHALES)
    assert await followed.counts() == {"added": 2, "refused": 1}
    assert watched.answers() == {"a.txt": VAULT, "letters/1920/b é #1.txt": KEY}
    assert "10000 bytes" in watched.refusals()["large.txt"]
    chunks = watched.chunk_ids("letters/1920/b é #1.txt")
    embedded = len(watched.stack.embedder.calls)
    assert await followed.counts() == {"unchanged": 2, "refused": 1}

    there.move("letters/1920/b é #1.txt", "moved/b.txt")
    assert await followed.counts() == {"renamed": 1, "unchanged": 1, "refused": 1}
    assert watched.chunk_ids("moved/b.txt") == chunks
    assert len(watched.stack.embedder.calls) == embedded

    there.put("a.txt", WHALES)
    there.put("e.md", VAULT)
    there.remove("large.txt")
    assert await followed.counts() == {"added": 1, "changed": 1, "unchanged": 1}
    assert watched.answers() == {"a.txt": WHALES, "moved/b.txt": KEY, "e.md": VAULT}

    there.remove("e.md")
    assert await followed.counts() == {"removed": 1, "unchanged": 2}
    for path in ("a.txt", "moved/b.txt", "private/c.txt", "d.pdf"):
        there.remove(path)
    assert "--allow-empty" in ((await followed.sweep()).error or "")
    assert len(watched.answers()) == 2
    assert await followed.counts(may_empty=True) == {"removed": 2}
    assert watched.answers() == {}


async def test_who_is_not_let_in_is_told_what_to_change_and_nothing_is_lost(
    followed: Followed, place: Place, database_url: str
) -> None:
    place.folder.put("a.txt", VAULT)
    await followed.counts()
    followed.move_to(Place(place.url, place.wrong_options, {}, place.folder))
    sweep = await followed.sweep()
    assert (sweep.counts, followed.source.failures) == ({}, 1)
    changed = {name for name, value in place.wrong_options.items() if place.options.get(name) != value}
    assert sweep.error is not None
    assert all(name in sweep.error for name in changed)
    assert "hunter22" not in sweep.error
    stored = Path(database_url.removeprefix("sqlite:///"))
    for file in stored.parent.glob(f"{stored.name}*"):
        assert b"hunter22" not in file.read_bytes()
    assert followed.watched.answers() == {"a.txt": VAULT}
    followed.move_to(place)
    assert await followed.counts() == {"unchanged": 1}
    assert followed.source.failures == 0


async def test_a_server_that_is_away_is_left_alone_for_longer_each_time(
    followed: Followed, place: Place
) -> None:
    place.folder.put("a.txt", VAULT)
    await followed.counts()
    followed.move_to(place.at_port(free_port()))
    with followed.database.write() as session:
        session.execute(update(Source).values(every_s=30.0))
    for failures, wait_s in ((1, 60), (2, 120)):
        began = time.monotonic()
        sweep = await followed.sweep()
        assert time.monotonic() - began < 10
        assert sweep.error is not None
        assert "hunter22" not in sweep.error
        source = followed.source
        assert source.due_at is not None
        assert (source.failures, source.due_at - followed.watched.stack.clock.now) == (failures, wait_s)
    assert "2 sweeps failed" in (reason_waiting(source) or "")
    assert followed.watched.answers() == {"a.txt": VAULT}
    followed.move_to(place)
    assert await followed.counts() == {"unchanged": 1}


async def test_a_server_that_says_nothing_does_not_hold_a_sweep_for_ever(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "CONNECT_S", 0.5)
    monkeypatch.setattr(addresses, "READ_S", 0.5)
    monkeypatch.setattr(repository, "SILENCE_S", 1)
    with silent_server() as port:
        silent = place.at_port(port)
        began = time.monotonic()
        with pytest.raises(SourceUnavailable):
            await asyncio.to_thread(list_once, silent.url, silent.options, tmp_path)
        assert time.monotonic() - began < 10


def list_once(url: str, options: Mapping[str, str], cache: Path) -> list[str]:
    source = open_source(read_address(url, options), cache=cache)
    try:
        return sorted(entry.path for entry in source.listing().entries)
    finally:
        source.close()


def test_every_kind_of_address_is_one_of_the_servers_here() -> None:
    kinds = {
        "gs": "gcs",
        "az": "azure",
        "abfs": "azure",
        "abfss": "azure",
        "https": "http",
        "webdavs": "webdav",
    }
    kinds |= {name: "git" for name in BACKENDS if name.startswith("git+")}
    assert {kinds.get(name, name) for name in BACKENDS} - {"file"} == set(SERVERS)


# What only some kinds can get wrong


def test_a_share_is_read_with_the_sources_own_login_only(tmp_path: Path) -> None:
    with smb_server(tmp_path) as make:
        place = make()
        place.folder.put("a.txt", VAULT)
        reading = open_source(read_address(place.url, place.options), cache=tmp_path)
        assert len(reading.listing().entries) == 1
        # While one source is connected: the same name with another password, and another's own name.
        for login in (place.wrong_options, {"username": SMB_STRANGER, "password": place.options["password"]}):
            with pytest.raises(SourceUnavailable, match="password, username"):
                list_once(place.url, login, tmp_path)
        assert len(reading.listing().entries) == 1
        reading.close()


def test_a_server_with_another_key_gets_no_password(tmp_path: Path) -> None:
    with sftp_server(tmp_path / "a") as make, sftp_server(tmp_path / "b") as make_other:
        place, other = make(), make_other()
        taken = place.options | {"host_key": other.options["host_key"]}
        with pytest.raises(SourceRefused, match="host_key"):
            list_once(place.url, taken, tmp_path)
        named = place.options | {"host_key": f"host.example.org {place.options['host_key']} comment"}
        assert list_once(place.url, named, tmp_path) == []


def test_what_is_no_file_behind_ssh_is_refused_and_never_opened(tmp_path: Path) -> None:
    with sftp_server(tmp_path / "a") as make:
        place = make()
        place.folder.put("a.txt", VAULT)
        root = tmp_path / "a" / place.url.rpartition("/")[2]
        (root / "link.txt").symlink_to("a.txt")
        os.mkfifo(root / "pipe.txt")
        source = open_source(read_address(place.url, place.options), cache=tmp_path)
        refusals = {entry.path: entry.refusal for entry in source.listing().entries}
        source.close()
    assert refusals["a.txt"] is None
    assert "symbolic link" in (refusals["link.txt"] or "")
    assert "no regular file" in (refusals["pipe.txt"] or "")
