"""A data folder, a quick models server and a worker as processes, without an api: what is killed and compared."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
from sqlalchemy import func, select

from app.access.auth import DEFAULT_TENANT
from app.settings import read_settings
from app.storage.opening import open_storage
from retrieval.catalog import NewFile, add_file, attach_file, create_collection, lock_collection
from retrieval.scope import Scope
from retrieval.tables import (
    Chunk,
    Collection,
    Document,
    DocumentStatus,
    File,
    Job,
    ParsedPart,
    Role,
    Tenant,
)
from tests.faults.quick_models import ALIAS, DIMENSIONS
from tests.stack import ROOT, eventually, free_port, printed

NOWHERE = "http://127.0.0.1:9"
START_S = 60.0
AUTO = {"type": "auto"}

ChunkRow = tuple[int, int, str, int, int, tuple[str, ...], int, bytes]
"""Generation, position, text, start, end, headings, tokens, embedding."""


@contextmanager
def quick_models(
    log: Path, *, delay_s: float = 0.0, dimensions: int = DIMENSIONS, traces: str = ""
) -> Iterator[str]:
    """The URL of a quick models server."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "tests.faults.quick_models",
        "--port",
        str(port),
        "--delay-s",
        str(delay_s),
        "--traces",
        traces,
        "--dimensions",
        str(dimensions),
    ]
    with log.open("ab") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
    try:
        eventually(lambda: _answers(f"{url}/ready"), within_s=START_S)
        yield url
    finally:
        process.kill()
        process.wait()


class Ingesting:
    """A migrated data folder, and the worker that runs on it."""

    def __init__(self, folder: Path, models_url: str, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.log = folder.with_suffix(".log")
        self.temporary = folder.with_suffix(".tmp")
        self.temporary.mkdir()
        self._environment = os.environ | {  # noqa: TID251 - the children's environment
            "STRONGROOM_STORAGE__DATA_DIR": str(folder),
            "STRONGROOM_MODELS__URL": models_url,
            "STRONGROOM_MODELS__EMBEDDING": ALIAS,
            "STRONGROOM_ENGINE__URL": NOWHERE,
            "STRONGROOM_INGEST__LEASE_S": "1",
            "TMPDIR": str(self.temporary),
            **(settings or {}),
        }
        self._command("migrate")
        self._open = ExitStack()
        kept = read_settings().with_options(storage={"data_dir": str(folder)})
        storage = self._open.enter_context(open_storage(kept))
        self.database, self._blobs = storage.database, storage.blobs
        with self.database.read() as session:
            tenant_id = session.scalars(select(Tenant.id).where(Tenant.name == DEFAULT_TENANT)).one()
        self._scope = Scope(tenant_id=tenant_id, key_id="", role=Role.WRITER)
        self._worker: subprocess.Popen[bytes] | None = None

    def add(self, collection: str, files: Mapping[str, str]) -> None:
        """Uploads texts by name, as the api role does, into a new collection."""
        now = time.time()
        with self.database.write() as session:
            store = create_collection(
                session, self._scope, name=collection, attributes={}, embedding_model=ALIAS, now=now
            )
            collection_id = store.id
        for name, text in files.items():
            with self._blobs.receive(limit_bytes=1 << 30) as receiver, self.database.write() as session:
                receiver.write(text.encode())
                received = receiver.finish()
                blob = self._blobs.row(session, self._scope.tenant_id, received)
                new = NewFile(name, "assistants", "text/plain", blob)
                file, is_new_blob = add_file(session, self._scope, new, now=now)
                if is_new_blob:
                    self._blobs.keep(received)
                attach_file(
                    session,
                    self._scope,
                    collection=lock_collection(session, self._scope, collection_id),
                    file=file,
                    attributes={},
                    chunking=AUTO,
                    now=now,
                )

    def start_worker(self) -> None:
        with self.log.open("ab") as output:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "worker"],
                cwd=ROOT,
                env=self._environment,
                stdout=output,
                stderr=output,
            )

    def kill_worker(self) -> None:
        """With SIGKILL. Fails when it had ended by itself, or when its parsers outlive it."""
        assert self._worker is not None
        assert self._worker.poll() is None, self.log.read_text()[-3000:]
        descendants = psutil.Process(self._worker.pid).children(recursive=True)
        self._worker.send_signal(signal.SIGKILL)
        self._worker.wait()
        self._worker = None
        eventually(lambda: not any(_runs(each) for each in descendants), within_s=10)

    def stop_worker(self) -> None:
        """As an operator would."""
        if self._worker is not None:
            self._worker.terminate()
            self._worker.wait(timeout=30)
            self._worker = None

    def jobs(self) -> int:
        """Documents that are not done with."""
        with self.database.read() as session:
            return session.scalar(select(func.count()).select_from(Job)) or 0

    def kept(self) -> tuple[int, ...]:
        """Counts that change whenever a step's result is kept."""
        counted = [select(func.count()).select_from(table) for table in (Job, ParsedPart, Chunk)]
        with self.database.read() as session:
            return tuple(session.scalar(count) or 0 for count in counted)

    def wait_until_done(self, *, within_s: float) -> None:
        eventually(lambda: self.jobs() == 0, within_s=within_s)

    def statuses(self) -> dict[DocumentStatus, int]:
        counted = select(Document.status, func.count()).group_by(Document.status)
        with self.database.read() as session:
            return dict(session.execute(counted).all())

    def chunks(self) -> dict[tuple[str, str], list[ChunkRow]]:
        """Of each document, by the names of its collection and file."""
        query = (
            select(Collection.name, File.filename, Chunk)
            .join(Document, Document.id == Chunk.document_id)
            .join(File, File.id == Document.file_id)
            .join(Collection, Collection.id == Document.collection_id)
            .order_by(Document.id, Chunk.generation, Chunk.position)
        )
        found: dict[tuple[str, str], list[ChunkRow]] = {}
        with self.database.read() as session:
            for collection, filename, chunk in session.execute(query):
                found.setdefault((collection, filename), []).append(_row(chunk))
        return found

    def verify(self) -> str:
        """What `strongroom verify` says of the folder at rest. Fails unless it finds nothing."""
        return self._command("verify", "--url", NOWHERE)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
        self._open.close()

    def _command(self, *arguments: str) -> str:
        return printed(self._environment, *arguments)


def _row(chunk: Chunk) -> ChunkRow:
    return (
        chunk.generation,
        chunk.position,
        chunk.text,
        chunk.start_char,
        chunk.end_char,
        tuple(chunk.headings),
        chunk.token_count,
        chunk.embedding,
    )


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
