"""Ingestion on a real database and real blobs, with a parser of paragraphs and an embedder without a model."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from ingest import jobs
from ingest.elements import ElementKind, Openable, Parsed, ParseOptions
from ingest.jobs import ClaimedJob
from ingest.parse.build import DocumentBuilder, Line
from ingest.parsed_files import ParsedFiles, Parser
from ingest.pipeline import Pipeline
from ingest.sealing import Sealer
from ingest.worker import Worker
from retrieval.blobs import BlobStore
from retrieval.catalog import NewFile, add_file, get_document
from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.tables import Base, Chunk, Collection, Document, File, Job
from retrieval.wakes import Listener
from serving.protocols import ModelUnknown
from tests.fakes import FakeEmbedder
from tests.retrieval.library import attach, new_collection

PARAGRAPHS = (
    "The vault of the archive opens at nine every morning.",
    "The key to the cellar hangs in the hall by the door.",
    "Whales feed on krill, which they strain from the cold sea.",
)
"""Each fills a chunk of 16 tokens."""
TEXT = "\n\n".join(PARAGRAPHS)
LEASE_S = 30.0
SEALER = Sealer(bytes(32))


async def nothing(_: str) -> None:
    pass


@dataclass
class ParagraphParser:
    """A Parser of UTF-8 text in paragraphs; a line that begins with `# ` is a heading."""

    calls: list[str] = field(default_factory=list)
    meanwhile: Callable[[str], Awaitable[None]] = nothing
    """Awaited with the text while it is parsed; what it raises, parsing fails with."""

    async def parse(
        self,
        content: Openable,
        media_type: str,  # noqa: ARG002
        options: ParseOptions,  # noqa: ARG002
    ) -> AsyncGenerator[Parsed]:
        with content.open("rb") as file:
            text = file.read().decode()
        self.calls.append(text)
        await self.meanwhile(text)
        builder = DocumentBuilder()
        for paragraph in text.split("\n\n"):
            if paragraph.startswith("# "):
                builder.add_heading([Line(paragraph[2:])], level=0)
            else:
                builder.add(ElementKind.TEXT, [Line(paragraph)])
        for part in builder.finish():
            yield part


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class Stack:
    """What a test of ingestion needs, for one tenant."""

    def __init__(
        self, database: Database, scope: Scope, folder: Path, *, parser: Parser | None = None
    ) -> None:
        """`parser` takes the place of the parser of paragraphs."""
        self.database = database
        self.scope = scope
        self.folder = folder
        self.blobs = BlobStore(folder)
        self.parser = ParagraphParser()
        self._parser = parser or self.parser
        self.embedder = FakeEmbedder(max_tokens=16)
        self.clock = Clock()
        self.pipeline = self.pipeline_with(self.embedder)
        self.collection = new_collection(database, scope)

    def pipeline_with(self, *embedders: FakeEmbedder, parsers: int = 8) -> Pipeline:
        """The first is the default."""
        by_alias = {embedder.name: embedder for embedder in embedders}

        def embedder_of(alias: str) -> FakeEmbedder:
            if alias not in by_alias:
                raise ModelUnknown(alias, list(by_alias))
            return by_alias[alias]

        default = embedders[0].name
        parsed_files = ParsedFiles(
            self.database, self.blobs, self._parser, SEALER, ocr_languages="eng", clock=self.clock
        )
        return Pipeline(
            self.database,
            self.blobs,
            parsed_files,
            embedder_of,
            default_embedding=default,
            parsers=parsers,
            clock=self.clock,
        )

    def worker(
        self,
        *,
        concurrency: int = 2,
        lease_s: float = LEASE_S,
        listener: Listener | None = None,
        clock: Callable[[], float] | None = None,
    ) -> Worker:
        return Worker(
            self.database,
            self.pipeline,
            concurrency=concurrency,
            lease_s=lease_s,
            isolated=True,
            listener=listener,
            clock=clock or self.clock,
        )

    def upload(self, text: str = TEXT) -> File:
        with self.blobs.receive(limit_bytes=1_000_000) as receiver, self.database.write() as session:
            receiver.write(text.encode())
            received = receiver.finish()
            blob = self.blobs.row(session, self.scope.tenant_id, received)
            new = NewFile("a.txt", "assistants", "text/plain", blob)
            file, is_new_blob = add_file(session, self.scope, new, now=self.clock())
            if is_new_blob:
                self.blobs.keep(received)
            return file

    def attach(
        self, file: File, *, collection: Collection | None = None, chunking: dict[str, Any] | None = None
    ) -> Document:
        into = (collection or self.collection).id
        with self.database.write() as session:
            return attach(session, self.scope, into, file.id, chunking=chunking, now=self.clock())

    def add(self, text: str = TEXT) -> Document:
        return self.attach(self.upload(text))

    def claim(self) -> ClaimedJob:
        with self.database.write() as session:
            (job,) = jobs.claim(session, now=self.clock(), lease_s=LEASE_S)
        return job

    def document(self, document: Document) -> Document:
        """As it is now."""
        with self.database.read() as session:
            return get_document(session, self.scope, document.collection_id, document.file_id)

    def chunks(self, document: Document) -> list[Chunk]:
        with self.database.read() as session:
            query = select(Chunk).where(Chunk.document_id == document.id).order_by(Chunk.position)
            return list(session.scalars(query))

    def job(self, document: Document) -> Job | None:
        with self.database.read() as session:
            return session.scalar(select(Job).where(Job.document_id == document.id))

    def count(self, table: type[Base]) -> int:
        with self.database.read() as session:
            return session.scalar(select(func.count()).select_from(table)) or 0
