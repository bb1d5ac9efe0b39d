"""A folder as a source of a collection, swept step by step on a real database, with ingestion behind it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ingest.sources import registry
from ingest.sources.entries import Source
from ingest.sources.local import LocalFolder
from ingest.sources.patterns import PathFilter
from ingest.sources.registry import NewSource
from ingest.sources.sweep import Report, Sweep, SweptSource
from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.tables import Chunk, Document, DocumentStatus, File, SourceEntry
from tests.ingest.stack import SEALER, Stack

FAR_AHEAD = 1e11
"""A time at which every file is old, and so not taken for one that is being written."""


def allow(_: Session) -> None:
    pass


class Watched:
    """A folder `root` and the collection that it is swept into."""

    def __init__(
        self, database: Database, scope: Scope, folder: Path, files: Source | None = None, **source: Any
    ) -> None:
        """`source` is what its row has else than usual."""
        self.root = folder / "root"
        self.root.mkdir()
        self.stack = Stack(database, scope, folder / "blobs")
        self.stack.clock.now = FAR_AHEAD + 1
        self.files = files or LocalFolder(self.root)
        self.database = database
        self.scope = scope
        self.source_id = self.add_source(**source)

    def add_source(self, *, options: Mapping[str, str] | None = None, **changed: Any) -> str:
        source_id = registry.new_source_id()
        with self.database.write() as session:
            new = NewSource(
                **{
                    "collection_id": self.stack.collection.id,
                    "url": self.root.as_uri(),
                    "options": sealed(options, source_id),
                    "include": [],
                    "exclude": [],
                    "max_bytes": 10_000,
                    "every_s": None,
                    "cron": None,
                    "is_watched": False,
                    "attributes": {"from": "folder"},
                    "chunking": {"type": "auto"},
                    **changed,
                }
            )
            return registry.add_source(session, self.scope, source_id, new, now=1.0).id

    def write(self, path: str, content: str | bytes) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        return target

    def sweep(
        self,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        check: Callable[[Session], None] = allow,
        stopping: Event | None = None,
        clock: Callable[[], float] | None = None,
        is_dry: bool = False,
        may_empty: bool = False,
    ) -> Report:
        """With a clock that is far ahead unless another is given."""
        source = SweptSource(
            source_id=self.source_id,
            scope=self.scope,
            collection_id=self.stack.collection.id,
            wanted=PathFilter(include, exclude),
            max_bytes=10_000,
            attributes={"from": "folder"},
            chunking={"type": "auto"},
        )
        sweep = Sweep(
            self.database,
            self.stack.blobs,
            source,
            self.files,
            check=check,
            stopping=stopping or Event(),
            clock=clock or (lambda: FAR_AHEAD),
        )
        return sweep.run(is_dry=is_dry, may_empty=may_empty)

    async def swept(self, **options: Any) -> dict[str, int]:
        """Sweeps and ingests. Returns the counts that are not zero."""
        counts = self.sweep(**options).counts
        await self.stack.worker().drain()
        return {name: count for name, count in counts.items() if count}

    def answers(self) -> dict[str, str]:
        """By path, the text of each document that can be searched, from its chunks."""
        with self.database.read() as session:
            rows = session.execute(
                select(File.path, File.filename, Chunk.text)
                .join(Document, Document.file_id == File.id)
                .join(Chunk, Chunk.document_id == Document.id)
                .where(
                    Document.collection_id == self.stack.collection.id,
                    Document.status == DocumentStatus.COMPLETED,
                )
                .order_by(File.path, Document.id, Chunk.position)
            )
            found: dict[str, list[str]] = {}
            for path, filename, text in rows:
                assert path is not None
                assert path.rpartition("/")[2] == filename
                found.setdefault(path, []).append(text)
            return {path: "\n\n".join(texts) for path, texts in found.items()}

    def on_disk(self) -> dict[str, str]:
        paths = (path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink())
        return {str(path.relative_to(self.root)): path.read_text() for path in paths}

    def on_disk_paths(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()}

    def files_by_path(self) -> dict[str | None, File]:
        with self.database.read() as session:
            return {file.path: file for file in session.scalars(select(File))}

    def chunk_ids(self, path: str) -> list[int]:
        with self.database.read() as session:
            return list(
                session.scalars(
                    select(Chunk.id)
                    .join(Document, Document.id == Chunk.document_id)
                    .join(File, File.id == Document.file_id)
                    .where(File.path == path)
                    .order_by(Chunk.id)
                )
            )

    def refusals(self) -> dict[str, str]:
        with self.database.read() as session:
            return dict(registry.refusals(session, self.source_id))

    def entries(self) -> list[str]:
        with self.database.read() as session:
            query = select(SourceEntry.path).where(SourceEntry.source_id == self.source_id)
            return sorted(session.scalars(query))

    def blob_count(self) -> int:
        return len(list(self.stack.blobs.ids()))


def sealed(options: Mapping[str, str] | None, source_id: str) -> bytes | None:
    return SEALER.seal(json.dumps(dict(options)), owner=source_id) if options else None


def replace_in_place(path: Path, content: str) -> None:
    """As careful programs write: to another name, then renamed."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(content)
    beside.replace(path)
