"""What is known of a source's paths, in SQL and in memory at once, and which of their files may go to another path."""

import hashlib
from collections.abc import Mapping

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from ingest.sources.plan import ORPHAN_PREFIX, Known
from retrieval.tables import SourceEntry


class KnownPaths:
    """Of one source, for one sweep. Changes are made in the caller's transaction: if it fails, so does the sweep."""

    def __init__(self, session: Session, source_id: str) -> None:
        self._source_id = source_id
        rows = session.execute(
            select(
                SourceEntry.path, SourceEntry.tag, SourceEntry.digest, SourceEntry.file_id, SourceEntry.error
            ).where(SourceEntry.source_id == source_id)
        )
        self._known = {path: Known(tag, digest, file_id, error) for path, tag, digest, file_id, error in rows}
        self._free: dict[str, list[str]] = {}

    @property
    def all(self) -> Mapping[str, Known]:
        return self._known

    @property
    def orphans(self) -> list[str]:
        """Paths that stand for files without one."""
        return [path for path in self._known if path.startswith(ORPHAN_PREFIX)]

    def get(self, path: str) -> Known | None:
        return self._known.get(path)

    def free(self, path: str) -> None:
        """Its file may go to another path that has this content: the path is gone, or has other content now."""
        known = self._known.get(path)
        if known is not None and known.file_id is not None and known.digest is not None:
            self._free.setdefault(known.digest, []).append(path)

    def free_path(self, digest: str, *, but: str) -> str | None:
        """A path whose file has this content and is free."""
        for path in self._free.get(digest, []):
            known = self._known.get(path)
            if path != but and known is not None and known.file_id is not None and known.digest == digest:
                return path
        return None

    def put(self, session: Session, path: str, known: Known) -> None:
        session.merge(
            SourceEntry(
                source_id=self._source_id,
                path_hash=_hash(path),
                path=path,
                tag=known.tag,
                digest=known.digest,
                file_id=known.file_id,
                error=known.error,
            )
        )
        self._known[path] = known
        self.hold(path)

    def hold(self, path: str) -> None:
        """Its file stays with it."""
        known = self._known[path]
        if known.digest is not None and path in self._free.get(known.digest, []):
            self._free[known.digest].remove(path)

    def forget(self, session: Session, path: str) -> None:
        session.execute(
            delete(SourceEntry).where(
                SourceEntry.source_id == self._source_id, SourceEntry.path_hash == _hash(path)
            )
        )
        del self._known[path]

    def detach(self, session: Session, path: str) -> None:
        """Lets a path go on without its file, which is kept as an orphan until this or the next sweep ends."""
        known = self._known.get(path)
        if known is None or known.file_id is None:
            return
        orphan = ORPHAN_PREFIX + known.file_id
        self.put(session, orphan, Known(tag="", digest=known.digest, file_id=known.file_id, error=None))
        self.free(orphan)


def _hash(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()
