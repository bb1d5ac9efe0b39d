"""One look at a source: what was added, changed, renamed or removed there is done to its collection.

Each file is a transaction of its own, which also holds what is known of the path. So a sweep that ends midway has
done whole files only, and the next one goes on from there.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ingest.media_types import EmptyFile, MediaType, UnsupportedMediaType, detect
from ingest.sources import registry
from ingest.sources.entries import (
    Entry,
    EntryChanged,
    EntryRefused,
    Source,
    SourceUnavailable,
    shown_name,
)
from ingest.sources.paths import KnownPaths
from ingest.sources.patterns import PathFilter
from ingest.sources.plan import Known, Plan, make_plan, too_large
from retrieval import catalog
from retrieval.blobs import BlobStore, ReceivedBlob, Receiver, TooLarge
from retrieval.catalog import NewFile
from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.tables import Document, DocumentStatus, File, SourceEntry

SETTLED_S = 1.0
"""A file that stays the same for so long is not being written any more."""
MAX_FAILURES_IN_A_ROW = 5
"""Of reading files, after which the source itself is taken to be away."""
REMOVE_AT_ONCE = 20
"""Files a transaction: others write as well."""
COUNTED = ("added", "changed", "renamed", "removed", "unchanged", "refused", "unsettled", "failed")


class SweepStopped(Exception):
    """The worker stops, another leads, or the source is gone: what was done so far stands."""


@dataclass(frozen=True)
class SweptSource:
    """What a sweep needs to know of a source, read once."""

    source_id: str
    scope: Scope
    collection_id: str
    wanted: PathFilter
    max_bytes: int
    attributes: dict[str, Any]
    chunking: dict[str, Any]


@dataclass(frozen=True)
class Report:
    counts: dict[str, int]
    note: str | None
    """What its owner should know although the sweep did not fail."""


class Sweep:
    """Run once, in a thread. `check` is called in each transaction that changes something, and raises to forbid it."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        source: SweptSource,
        files: Source,
        *,
        check: Callable[[Session], None],
        stopping: Event,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._source = source
        self._scope = source.scope
        self._files = files
        self._check = check
        self._stopping = stopping
        self._clock = clock
        self._counts: Counter[str] = Counter()

    def run(self, *, is_dry: bool = False, may_empty: bool = False) -> Report:
        """Raises SourceUnavailable, SourceRefused, SweepStopped, and what `check` raises."""
        with self._database.read() as session:
            self._paths = KnownPaths(session, self._source.source_id)
        listing = self._files.listing()
        plan = make_plan(
            self._paths.all,
            listing,
            self._source.wanted,
            max_bytes=self._source.max_bytes,
            may_empty=may_empty,
        )
        self._counts.update(unchanged=plan.unchanged, refused=plan.refused)
        note = plan.reason_kept
        if note is None and listing.gaps:
            note = f"{len(listing.gaps)} places could not be listed: {listing.gaps[0]}."
        if is_dry:
            self._count_only(plan)
        else:
            self._carry_out(plan)
        return Report({name: self._counts[name] for name in COUNTED}, note)

    def _count_only(self, plan: Plan) -> None:
        for entry in plan.look_into:
            before = self._paths.get(entry.path)
            seen = "added" if before is None or before.file_id is None else "changed"
            self._counts["refused" if entry.refusal else seen] += 1
        self._counts["removed"] += sum(1 for path in plan.gone if self._paths.all[path].file_id)

    def _carry_out(self, plan: Plan) -> None:
        self._blobs.prepare(self._database, self._scope.tenant_id)
        for path in (*plan.gone, *self._paths.orphans):
            self._paths.free(path)
        for entry in plan.look_into:
            # What has a tag and another one than before has other content, as good as always.
            if entry.tag:
                self._paths.free(entry.path)
        failures = 0
        for entry in self._settled(self._movers_first(plan.look_into)):
            self._go_on()
            try:
                self._take(entry)
                failures = 0
            except EntryChanged:
                self._counts["unsettled"] += 1
            except SourceUnavailable:
                failures += 1
                self._counts["failed"] += 1
                if failures >= MAX_FAILURES_IN_A_ROW:
                    raise
        left = [path for path in (*plan.gone, *self._paths.orphans) if path in self._paths.all]
        for start in range(0, len(left), REMOVE_AT_ONCE):
            self._go_on()
            self._remove(left[start : start + REMOVE_AT_ONCE])

    def _go_on(self) -> None:
        if self._stopping.is_set():
            raise SweepStopped

    def _movers_first(self, entries: list[Entry]) -> list[Entry]:
        """What may have been moved here, by its size, before what takes the place of something that was moved."""
        if not entries:
            return []
        query = select(File.size_bytes).join(SourceEntry, SourceEntry.file_id == File.id)
        with self._database.read() as session:
            sizes = set(session.scalars(query.where(SourceEntry.source_id == self._source.source_id)))
        return sorted(entries, key=lambda entry: entry.size_bytes not in sizes)

    def _settled(self, entries: list[Entry]) -> Iterator[Entry]:
        """Those that are not being written: a young one is looked at again after a while."""
        since = self._clock() - SETTLED_S
        young = [entry for entry in entries if entry.changed_at is not None and entry.changed_at > since]
        looked_at = time.monotonic()
        yield from (entry for entry in entries if entry.changed_at is None or entry.changed_at <= since)
        if young:
            self._stopping.wait(max(0.0, looked_at + SETTLED_S - time.monotonic()))
        for entry in young:
            self._go_on()
            now = self._files.look(entry)
            if now is not None and now.tag == entry.tag:
                yield entry
            else:
                self._counts["unsettled"] += 1

    def _take(self, entry: Entry) -> None:
        if entry.refusal is not None:
            self._refuse(entry, entry.refusal)
            return
        digest = hashlib.sha256()
        try:
            with self._blobs.receive(limit_bytes=self._source.max_bytes) as receiver:
                for piece in self._files.read(entry):
                    self._go_on()
                    digest.update(piece)
                    receiver.write(piece)
                self._put(entry, digest.hexdigest(), receiver)
        except EntryRefused as error:
            self._refuse(entry, str(error))
        except TooLarge:
            self._refuse(entry, too_large(self._source.max_bytes))

    def _put(self, entry: Entry, sha256: str, receiver: Receiver) -> None:
        before = self._paths.get(entry.path)
        with self._database.read() as session:
            digest = self._blobs.digest(session, self._scope.tenant_id, sha256)
        if before is not None and before.digest == digest:
            self._touch(entry, before)
            return
        received = receiver.finish()
        try:
            media_type = detect(received, shown_name(entry.path))
        except (UnsupportedMediaType, EmptyFile) as error:
            self._refuse(entry, str(error), digest=digest)
            return
        if not self._rename(entry, media_type, digest):
            self._add(entry, media_type, received)

    def _touch(self, entry: Entry, before: Known) -> None:
        """The same content as before: only the tag is new."""
        self._counts["unchanged" if before.error is None else "refused"] += 1
        self._paths.hold(entry.path)
        if before.tag != entry.tag:
            with self._write() as session:
                self._paths.put(session, entry.path, replace(before, tag=entry.tag))

    def _rename(self, entry: Entry, media_type: MediaType, digest: str) -> bool:
        """Whether a path with this content went: then its file, document and chunks go on under this one."""
        old_path = self._paths.free_path(digest, but=entry.path)
        if old_path is None:
            return False
        file_id = self._paths.all[old_path].file_id
        with self._write() as session:
            file = session.get(File, file_id)
            if file is None or file.media_type != media_type:
                return False
            file.path = entry.path
            file.filename = shown_name(entry.path)
            self._paths.detach(session, entry.path)
            self._paths.forget(session, old_path)
            self._paths.put(session, entry.path, Known(entry.tag, digest, file_id, None))
        self._counts["renamed"] += 1
        return True

    def _add(self, entry: Entry, media_type: MediaType, received: ReceivedBlob) -> None:
        """A new file and document. Where the path had one, that answers until the new one is completed."""
        before = self._paths.get(entry.path)
        old_file_id = before.file_id if before is not None else None
        now = self._clock()
        orphans: list[str] = []
        replaces_id: int | None = None
        with self._write() as session:
            catalog.lock_tenant(session, self._scope.tenant_id)
            collection = catalog.lock_collection(session, self._scope, self._source.collection_id)
            blob = self._blobs.row(session, self._scope.tenant_id, received)
            new = NewFile(
                filename=shown_name(entry.path),
                purpose="assistants",
                media_type=media_type,
                blob=blob,
                path=entry.path,
            )
            file, is_new_blob = catalog.add_file(session, self._scope, new, now=now)
            if is_new_blob:
                self._blobs.keep(received)
            if old_file_id is not None:
                replaces_id, orphans = self._replaced(session, old_file_id)
            catalog.attach_file(
                session,
                self._scope,
                collection=collection,
                file=file,
                attributes=self._source.attributes,
                chunking=self._source.chunking,
                now=now,
                replaces_id=replaces_id,
            )
            self._paths.put(session, entry.path, Known(entry.tag, blob.digest, file.id, None))
        self._drop(orphans)
        self._counts["added" if old_file_id is None else "changed"] += 1

    def _replaced(self, session: Session, file_id: str) -> tuple[int | None, list[str]]:
        """The document that answers for a path now, if any. A newer one that does not answer yet goes at once.

        Also returns blobs to remove after the commit.
        """
        document = session.scalar(
            select(Document).where(
                Document.collection_id == self._source.collection_id, Document.file_id == file_id
            )
        )
        if document is None:
            return None, registry.remove_file(session, self._scope, file_id)
        if document.status is DocumentStatus.COMPLETED:
            return document.id, []
        replaces_id = document.replaces_id
        return replaces_id, catalog.delete_file(session, self._scope, file_id)

    def _refuse(self, entry: Entry, reason: str, *, digest: str | None = None) -> None:
        """Notes why, so that it is not tried again until it changes. What the path had before goes."""
        self._counts["refused"] += 1
        now = Known(entry.tag, digest, None, reason)
        if self._paths.get(entry.path) == now:
            return
        with self._write() as session:
            # Not deleted yet: its content may have moved to a path that comes later.
            self._paths.detach(session, entry.path)
            self._paths.put(session, entry.path, now)

    def _remove(self, paths: list[str]) -> None:
        orphans: list[str] = []
        with self._write() as session:
            for path in paths:
                file_id = self._paths.all[path].file_id
                if file_id is not None:
                    orphans += registry.remove_file(session, self._scope, file_id)
                    self._counts["removed"] += 1
                self._paths.forget(session, path)
        self._drop(orphans)

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with self._database.write() as session:
            self._check(session)
            yield session

    def _drop(self, blob_ids: list[str]) -> None:
        for blob_id in blob_ids:
            self._blobs.remove(blob_id)
