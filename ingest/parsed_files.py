"""Parses a file once, into parts in SQL; what lies inside it becomes files of its own. For the pipeline.

A file that is parsed and embedded in a moment is kept with the chunks of the document that it was parsed for. A larger
one is kept part by part under the lease of the job that parses it, so that others wait for it, or start again if it
dies.
"""

import asyncio
import time
import zlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import delete, exists, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from ingest.elements import Attachment, Openable, Parsed, ParsedPart, ParseOptions, Progress
from ingest.jobs import ClaimedJob, JobProgress, LeaseLost
from ingest.media_types import EmptyFile, UnsupportedMediaType, detect
from ingest.sealing import Sealer
from retrieval.access import readers_of
from retrieval.blobs import BlobStore
from retrieval.catalog import NewFile, add_file, lock_tenant
from retrieval.database import Database
from retrieval.tables import Blob, Collection, Document, File, Job, ParsedFile
from retrieval.tables import ParsedPart as StoredPart
from retrieval.together import in_thread

UNKNOWN_TYPE = "application/octet-stream"
"""Of a file inside another that is of no known type: its document says so."""
LARGEST_ATTACHMENT_BYTES = 512 << 20
COPY_BYTES = 1 << 20
QUICK_S = 0.5
"""What was parsed in less is parsed again after a crash, sooner than a write of its own is paid for each small file."""
DEEPEST = 8
"""Beyond any depth that the parsers open."""


class ParsedElsewhere(Exception):
    """Another job parses the same file just now."""


class _KeptAlready(Exception):
    """Another job was quicker with the same file."""


class Parser(Protocol):
    def parse(self, content: Openable, media_type: str, options: ParseOptions) -> AsyncGenerator[Parsed]:
        """Raises ParseFailed. Closing it early ends the work."""
        ...


@dataclass(frozen=True)
class FileToParse:
    """What the parser is told of a file."""

    file_id: str
    blob_id: str
    media_type: str
    password: bytes | None
    """Sealed."""
    depth: int


class Arrivals:
    """How much of a file is parsed. Its reader waits here for more, in the same event loop."""

    def __init__(self, *, count: int = 0, is_whole: bool = False, attachments: int = 0) -> None:
        self.count = count
        self.is_whole = is_whole
        self.attachments = attachments
        self.only_part: ParsedPart | None = None
        """Of a file that was parsed just now and is one part: saves reading it again."""
        self.page_count: int | None = None
        self.is_kept = True
        """False of a file that was parsed in a moment, until its one part, if it has text, is in SQL."""
        self._news = asyncio.Condition()

    async def has(self, number: int) -> bool:
        """Whether there is a part of this number, as soon as it is known."""
        async with self._news:
            await self._news.wait_for(lambda: self.count > number or self.is_whole)
        return self.count > number

    async def tell(self, *, count: int, is_whole: bool = False) -> None:
        async with self._news:
            self.count, self.is_whole = count, is_whole
            self._news.notify_all()


class ParsedFiles:
    """The parsed form of every file, made when it is first needed."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        parser: Parser,
        sealer: Sealer,
        *,
        ocr_languages: str,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._parser = parser
        self._sealer = sealer
        self._ocr_languages = ocr_languages
        self._clock = clock

    def arrived(self, session: Session, file: FileToParse) -> Arrivals:
        """What is there already. Raises ParsedElsewhere."""
        parsed = session.get(ParsedFile, (file.blob_id, file.media_type))
        if parsed is None:
            return Arrivals()
        if parsed.lease is not None:
            if self._is_held(session, parsed.lease):
                raise ParsedElsewhere
            return Arrivals()
        if parsed.attachments and not _has_inner_files(session, file.blob_id):
            # They went with another file of the same bytes: they have to be taken out again.
            return Arrivals()
        count = session.scalar(
            select(func.count())
            .select_from(StoredPart)
            .where(StoredPart.blob_id == file.blob_id, StoredPart.media_type == file.media_type)
        )
        return Arrivals(count=count or 0, is_whole=True, attachments=parsed.attachments)

    def part(self, file: FileToParse, number: int) -> ParsedPart:
        """Raises LeaseLost when the file is gone."""
        with self._database.read() as session:
            stored = session.get(StoredPart, (file.blob_id, file.media_type, number))
        if stored is None:
            raise LeaseLost
        return ParsedPart.from_json(stored.text, zlib.decompress(stored.elements))

    async def parse(
        self, job: ClaimedJob, file: FileToParse, arrivals: Arrivals, progress: JobProgress
    ) -> None:
        """Has the file parsed, and keeps what comes. Raises ParseFailed, LeaseLost, ParsedElsewhere."""
        options = ParseOptions(
            password=None if file.password is None else self._sealer.open(file.password, owner=file.file_id),
            ocr_languages=self._ocr_languages,
            depth=file.depth,
        )
        progress.step, progress.since = "parsing", self._clock()
        started = time.monotonic()
        page_count: int | None = None
        waiting: ParsedPart | None = None
        count = attachments = 0
        keeps = True
        content = await in_thread(self._content, file)
        async with aclosing(self._parser.parse(content, file.media_type, options)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Attachment):
                    await in_thread(self._keep_attachment, job, file, piece)
                    attachments += 1
                    continue
                page_count = piece.page_count or page_count
                progress.done, progress.total, progress.unit = _place_of(piece)
                if isinstance(piece, Progress):
                    continue
                if waiting is not None:
                    keeps = keeps and await in_thread(self._keep_part, job, file, count, waiting)
                    count += 1
                    await arrivals.tell(count=count)
                waiting = piece
        arrivals.attachments, arrivals.page_count = attachments, page_count
        if waiting is not None and count == 0:
            arrivals.only_part = waiting
        if count == attachments == 0 and time.monotonic() - started < QUICK_S:
            arrivals.is_kept = False
        elif keeps:
            await in_thread(self._keep_rest, job, file, count, waiting, arrivals)
        await arrivals.tell(count=count + (waiting is not None), is_whole=True)

    def keep(self, session: Session, job: ClaimedJob, file: FileToParse, arrivals: Arrivals) -> None:
        """Of a file that was parsed in a moment. Raises ParsedElsewhere."""
        # Another job may be as far with the same bytes: then only this much is undone, and its text is ours too.
        with suppress(IntegrityError, _KeptAlready), session.begin_nested():
            _end(session, self._begin(session, job, file), file, 0, arrivals.only_part, arrivals)

    def _content(self, file: FileToParse) -> Openable:
        """Raises LeaseLost when the file is gone, Damaged."""
        with self._database.read() as session:
            blob = session.get(Blob, file.blob_id)
            if blob is None:
                raise LeaseLost
            content = self._blobs.content(session, blob)
        # As a path where it can be read as one: a parser gets that as a link and not as a copy.
        return content.path if content.key is None else content

    def _keep_part(self, job: ClaimedJob, file: FileToParse, number: int, part: ParsedPart) -> bool:
        """False when the parts are there already, and only the files inside were wanted again."""
        try:
            with self._database.write() as session:
                if number == 0:
                    self._begin(session, job, file)
                else:
                    self._continue(session, job, file)
                session.add(_stored(file, number, part))
        except _KeptAlready:
            return False
        except IntegrityError as error:
            raise ParsedElsewhere from error
        return True

    def _keep_rest(
        self,
        job: ClaimedJob,
        file: FileToParse,
        number: int,
        last: ParsedPart | None,
        arrivals: Arrivals,
    ) -> None:
        """The last part, and that it was the last. Two jobs may get here with the same bytes."""
        with suppress(IntegrityError, _KeptAlready), self._database.write() as session:
            parsed = self._begin(session, job, file) if number == 0 else self._continue(session, job, file)
            _end(session, parsed, file, number, last, arrivals)

    def _begin(self, session: Session, job: ClaimedJob, file: FileToParse) -> ParsedFile:
        """Forgets what a dead job left. Raises ParsedElsewhere, _KeptAlready.

        The commit raises IntegrityError when another was quicker, or the file is gone.
        """
        old = session.get(ParsedFile, (file.blob_id, file.media_type))
        if old is not None:
            if old.lease is None:
                raise _KeptAlready
            if self._is_held(session, old.lease):
                raise ParsedElsewhere
            of_file = (StoredPart.blob_id == file.blob_id, StoredPart.media_type == file.media_type)
            session.execute(delete(StoredPart).where(*of_file))
            session.delete(old)
            session.flush()
        parsed = ParsedFile(
            blob_id=file.blob_id, media_type=file.media_type, page_count=None, attachments=0, lease=job.lease
        )
        session.add(parsed)
        return parsed

    def _continue(self, session: Session, job: ClaimedJob, file: FileToParse) -> ParsedFile:
        """Raises LeaseLost when another job parses it, or it is gone."""
        parsed = session.get(ParsedFile, (file.blob_id, file.media_type))
        if parsed is None or parsed.lease != job.lease:
            raise LeaseLost
        return parsed

    def _is_held(self, session: Session, lease: str) -> bool:
        alive = select(Job.id).where(Job.lease == lease, Job.due_at > self._clock())
        return session.scalar(alive) is not None

    def _keep_attachment(self, job: ClaimedJob, outer: FileToParse, attachment: Attachment) -> None:
        """Makes a file of it, unless an earlier try did."""
        name = attachment.name.rpartition("/")[2] or "unnamed"
        try:
            media_type: str = detect(attachment.path, name)
        except (UnsupportedMediaType, EmptyFile):
            media_type = UNKNOWN_TYPE
        with self._blobs.receive(limit_bytes=LARGEST_ATTACHMENT_BYTES) as receiver:
            with attachment.path.open("rb") as content:
                while piece := content.read(COPY_BYTES):
                    receiver.write(piece)
            received = receiver.finish()
            with self._database.write() as session:
                lock_tenant(session, job.tenant_id)
                parent, document = session.get(File, outer.file_id), session.get(Document, job.document_id)
                if parent is None or document is None:
                    raise LeaseLost
                blob = self._blobs.row(session, job.tenant_id, received)
                is_there = exists().where(
                    File.parent_id == outer.file_id,
                    File.path == attachment.name,
                    File.blob_id == Blob.id,
                    Blob.digest == blob.digest,
                )
                if session.scalar(select(is_there)):
                    return
                new = NewFile(
                    filename=name,
                    purpose=parent.purpose,
                    media_type=media_type,
                    blob=blob,
                    path=attachment.name,
                    parent_id=outer.file_id,
                )
                inner, is_new_blob = add_file(session, job.scope, new, now=self._clock())
                # It has no document of its own yet.
                inner.readers = readers_of(session.get_one(Collection, document.collection_id), document)
                if is_new_blob:
                    self._blobs.keep(received)


def inner_files(session: Session, job: ClaimedJob, file: FileToParse, *, now: float) -> list[File]:
    """The files inside a file that is parsed. Those of another file with the same bytes are its too."""
    own = list(session.scalars(select(File).where(File.parent_id == file.file_id)))
    if own:
        return own
    outer = aliased(File)
    twin = session.scalar(
        select(File.parent_id)
        .join(outer, File.parent_id == outer.id)
        .where(outer.blob_id == file.blob_id)
        .limit(1)
    )
    for inner in session.scalars(select(File).where(File.parent_id == twin)) if twin is not None else ():
        new = NewFile(
            filename=inner.filename,
            purpose=inner.purpose,
            media_type=inner.media_type,
            blob=session.get_one(Blob, inner.blob_id),
            path=inner.path,
            parent_id=file.file_id,
        )
        own.append(add_file(session, job.scope, new, now=now)[0])
    return own


def depth_of(session: Session, parent_id: str | None) -> int:
    """In how many files a file lies."""
    depth = 0
    while parent_id is not None and depth < DEEPEST:
        depth += 1
        parent_id = session.scalar(select(File.parent_id).where(File.id == parent_id))
    return depth


def _has_inner_files(session: Session, blob_id: str) -> bool:
    outer = aliased(File)
    inner = select(File.id).join(outer, File.parent_id == outer.id).where(outer.blob_id == blob_id)
    return session.scalar(inner.limit(1)) is not None


def _end(
    session: Session,
    parsed: ParsedFile,
    file: FileToParse,
    number: int,
    last: ParsedPart | None,
    arrivals: Arrivals,
) -> None:
    """Adds the last part, if there is text, and that it was the last."""
    parsed.lease, parsed.page_count, parsed.attachments = None, arrivals.page_count, arrivals.attachments
    if last is not None:
        session.add(_stored(file, number, last))


def _stored(file: FileToParse, number: int, part: ParsedPart) -> StoredPart:
    return StoredPart(
        blob_id=file.blob_id,
        media_type=file.media_type,
        number=number,
        start_char=part.start_char,
        text=part.text,
        elements=zlib.compress(part.to_json(), level=1),
    )


def _place_of(piece: ParsedPart | Progress) -> tuple[int, int | None, str]:
    """How far the parser is: done, total and unit."""
    if piece.pages_done is not None:
        return piece.pages_done, piece.page_count, "pages"
    return piece.end_char, None, "characters"
