"""The audit log as the api role keeps it: searches and answers noted behind the reply, keys in use, refusals."""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app.access.key_files import KeysUnusable, check_private, write_once
from retrieval.audit import (
    Act,
    AuditKey,
    AuditUnavailable,
    Checkpoint,
    act,
    checkpoint_of,
    prune,
    read_checkpoint,
    record_all,
    written,
)
from retrieval.data_keys import KEY_BYTES, derived, new_key
from retrieval.database import Database
from retrieval.scope import Scope
from retrieval.tables import AuditEntry, AuditEvent, AuditHead, AuditOutcome
from retrieval.together import in_thread

log = logging.getLogger("strongroom.audit")

KEY_FILE = "audit.key"
GROUP_S = 0.5
"""What a killed process may lose of searches and answers; acts are in the log before their reply."""
MOST_AT_ONCE = 1_000
MOST_WAITING = 20_000
"""While the database is away. With more, searches and answers are refused: none goes unwritten."""
USED_AGAIN_S = 3_600.0
REFUSED_AGAIN_S = 60.0
"""Refusals of one kind, for one client, are counted together for so long."""
PRUNE_EVERY_S = 86_400.0
MOST_REFUSED = 1_000
"""Clients that are told apart in that time."""


def audit_key(keys_dir: Path, root: bytes) -> AuditKey:
    """The signing key, made at the first start. Raises KeysUnusable."""
    path = keys_dir / KEY_FILE
    write_once(path, new_key().hex())
    check_private(path)
    try:
        secret = bytes.fromhex(path.read_text().strip())
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        raise KeysUnusable(f"{path} is damaged: put it back from a backup.")
    return AuditKey(secret=secret, words=derived(root, "audit words"))


def read_checkpoints(path: Path) -> list[Checkpoint]:
    """Raises ValueError for a line that is none."""
    return [read_checkpoint(line) for line in path.read_text().splitlines() if line.strip()]


@contextmanager
def audited(
    database: Database, event: AuditEvent, *objects: str, scope: Scope | None = None
) -> Iterator[None]:
    """For what no transaction can undo: it is entered before it is done, else it is not done; and so is its end.

    Blocks. Raises AuditUnavailable.
    """
    begun = act(event, objects, scope=scope, outcome=AuditOutcome.BEGUN)
    _write(database, [begun])
    try:
        yield
    except BaseException as error:
        _write(database, [_ended(begun, AuditOutcome.FAILED, reason=type(error).__name__)])
        raise
    _write(database, [_ended(begun, AuditOutcome.DONE)])


def _ended(begun: Act, outcome: AuditOutcome, **details: str) -> Act:
    return replace(begun, outcome=outcome, details=details, time=round(time.time(), 6))


@dataclass
class _Refused:
    since: float
    count: int = 0
    """Beyond the first, which was entered at once."""


_Who = tuple[Scope | None, str, str]


class AuditTrail:
    """What no transaction of its own writes: kept for a moment, and written in groups. Used in the event loop and in
    threads.
    """

    def __init__(
        self,
        database: Database,
        key: AuditKey,
        *,
        checkpoints: Path,
        checkpoint_every_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.key = key
        self._database = database
        self._checkpoints = checkpoints
        self._checkpoint_every_s = checkpoint_every_s
        self._clock = clock
        self._waiting: deque[Act] = deque()
        self._writing = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._used: dict[str, float] = {}
        self._refused: dict[_Who, _Refused] = {}
        self._saved_seq = 0
        self._saved_at = clock()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["AuditTrail"]:
        """Ends once all is written; what the database does not take is told in the process's log."""
        running = asyncio.create_task(self._run())
        try:
            yield self
        finally:
            # Not cancelled: what it is writing would be written again.
            self._stopping.set()
            await running
            self._count_refusals(after_s=0.0)
            await self.settle()
            await self._save_checkpoint()
            if self._waiting:
                log.error("audit_entries_lost", extra={"entries": len(self._waiting)})

    def keyed_hash(self, text: str) -> str:
        return self.key.keyed_hash(text)

    def note(self, scope: Scope, event: AuditEvent, objects: Iterable[str], **details: str | int) -> None:
        """A search, an answer, or what else changes nothing. Raises AuditUnavailable."""
        if scope.keeps_nothing:
            return  # The one entry that stays of such a request was written before it began.
        if len(self._waiting) >= MOST_WAITING:
            raise AuditUnavailable("the database does not take entries. Try again soon.")
        self._waiting.append(act(event, objects, scope=scope, now=self._clock(), details=details))

    def key_used(self, scope: Scope) -> None:
        now = self._clock()
        if now - self._used.get(scope.key_id, -USED_AGAIN_S) < USED_AGAIN_S:
            return
        self._used[scope.key_id] = now
        self._waiting.append(act(AuditEvent.KEY_USED, (scope.key_id,), scope=scope, now=now))

    def refused(self, scope: Scope | None, reason: str, client: str) -> None:
        """The first is entered at once, the others of a minute as their number: nobody fills a disk with refusals."""
        who = (scope, reason, client)
        if who not in self._refused and len(self._refused) >= MOST_REFUSED:
            who = (None, reason, "others")
        known = self._refused.get(who)
        if known is not None:
            known.count += 1
            return
        self._refused[who] = _Refused(since=self._clock())
        self._waiting.append(_refusal(who, 1, now=self._clock()))

    async def write_now(self, each: Act) -> Checkpoint:
        """Enters it before it returns, and tells where the log stood then. Raises AuditUnavailable."""
        return await in_thread(_write, self._database, [each])

    @asynccontextmanager
    async def audited(self, event: AuditEvent, *objects: str, scope: Scope) -> AsyncIterator[None]:
        """As the function, in the event loop."""
        begun = act(event, objects, scope=scope, outcome=AuditOutcome.BEGUN)
        await self.write_now(begun)
        try:
            yield
        except BaseException as error:
            await self.write_now(_ended(begun, AuditOutcome.FAILED, reason=type(error).__name__))
            raise
        await self.write_now(_ended(begun, AuditOutcome.DONE))

    async def settle(self) -> None:
        """Writes what waits now, as far as the database takes it."""
        async with self._writing:
            # What comes meanwhile is for the next group: in a busy server something always does.
            waiting = len(self._waiting)
            for count in (min(MOST_AT_ONCE, waiting - at) for at in range(0, waiting, MOST_AT_ONCE)):
                acts = [self._waiting.popleft() for _ in range(count)]
                try:
                    await in_thread(_write, self._database, acts)
                except SQLAlchemyError as error:
                    self._waiting.extendleft(reversed(acts))
                    log.warning("audit_not_written", extra={"reason": type(error).__name__})
                    return

    async def _run(self) -> None:
        while not self._stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), GROUP_S)
            self._count_refusals(after_s=REFUSED_AGAIN_S)
            await self.settle()
            if self._clock() - self._saved_at > self._checkpoint_every_s:
                await self._save_checkpoint()

    def _count_refusals(self, *, after_s: float) -> None:
        now = self._clock()
        over = [who for who, each in self._refused.items() if now - each.since >= after_s]
        for who in over:
            count = self._refused.pop(who).count
            if count:
                self._waiting.append(_refusal(who, count, now=now))

    async def _save_checkpoint(self) -> None:
        self._saved_at = self._clock()
        try:
            self._saved_seq = await in_thread(
                save_checkpoint, self._database, self._checkpoints, self._saved_seq
            )
        except (SQLAlchemyError, OSError) as error:
            log.warning("checkpoint_not_saved", extra={"reason": type(error).__name__})


def prune_when_due(database: Database, *, before: float) -> None:
    """Once a day or so: each cut is an entry too."""
    with database.read() as session:
        oldest = session.scalar(select(AuditEntry.time).order_by(AuditEntry.seq).limit(1))
    if oldest is None or oldest > before - PRUNE_EVERY_S:
        return
    with database.write() as session:
        prune(session, before=before)


def head_of(database: Database) -> Checkpoint | None:
    """None while nothing was ever entered."""
    with database.read() as session:
        head = session.get(AuditHead, 1)
        return checkpoint_of(head) if head is not None else None


def save_checkpoint(database: Database, path: Path, saved_seq: int) -> int:
    """Appends one to the file if the log has grown since. Returns the seq that is saved now."""
    head = head_of(database)
    if head is None or head.seq == saved_seq:
        return saved_seq
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{head.line()}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return head.seq


def _write(database: Database, acts: Iterable[Act]) -> Checkpoint:
    with database.write() as session:
        record_all(session, acts)
    return written(session)


def _refusal(who: _Who, count: int, *, now: float) -> Act:
    scope, reason, client = who
    return act(
        AuditEvent.REFUSED,
        scope=scope,
        outcome=AuditOutcome.REFUSED,
        now=now,
        details={"reason": reason, "client": client, "count": count},
    )
