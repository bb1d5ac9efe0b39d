"""Verifies the audit log: names the first entry that was changed, inserted, swapped or removed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from retrieval.audit import GENESIS, AuditKey, Checkpoint, checkpoint_of, hash_of, is_signed
from retrieval.tables import AuditEntry, AuditHead

ROWS = 1_000


@dataclass(frozen=True)
class Problem:
    seq: int
    """Of the first entry that is not as it was written, or is missing."""
    reason: str


@dataclass(frozen=True)
class Verdict:
    head: Checkpoint | None
    entries: int
    problem: Problem | None


def verify_audit(session: Session, key: AuditKey, checkpoints: Iterable[Checkpoint] = ()) -> Verdict:
    """Of one consistent state. `checkpoints` were kept elsewhere: a tail that was cut shows against those alone."""
    row = session.get(AuditHead, 1)
    head = checkpoint_of(row) if row is not None else None
    wanted = sorted(checkpoints, key=lambda each: each.seq)
    follower = _Follower(head, wanted)
    problem = None
    for entry in entries_of(session):
        problem = follower.problem_of(entry)
        if problem is not None:
            break
    problem = problem or follower.problem_at_end()
    if problem is None and head is not None and head.seq and not is_signed(head, key):
        problem = Problem(head.seq, "The head is not signed by keys/audit.key.")
    if problem is None:
        problem = next(
            (
                Problem(each.seq, f"The checkpoint at {each.seq} is not signed by keys/audit.key.")
                for each in wanted
                if not is_signed(each, key)
            ),
            None,
        )
    return Verdict(head, follower.count, problem)


def entries_of(
    session: Session, *, since: float | None = None, tenant_id: str | None = None
) -> Iterator[dict[str, Any]]:
    """In their order."""
    query = select(AuditEntry.__table__).order_by(AuditEntry.seq)
    if since is not None:
        query = query.where(AuditEntry.time >= since)
    if tenant_id is not None:
        query = query.where(AuditEntry.tenant_id == tenant_id)
    for part in session.execute(query, execution_options={"yield_per": ROWS}).mappings().partitions():
        yield from (dict(entry) for entry in part)


class _Follower:
    """Goes along the chain, from the cut on."""

    def __init__(self, head: Checkpoint | None, wanted: list[Checkpoint]) -> None:
        self._head = head
        self._seq = head.pruned_seq if head is not None else 0
        self._hash = head.pruned_hash if head is not None else GENESIS
        self._wanted: dict[int, set[str]] = {}
        for each in wanted:
            self._wanted.setdefault(each.seq, set()).add(each.hash)
        self._last_wanted = wanted[-1].seq if wanted else 0
        self.count = 0

    def problem_of(self, entry: dict[str, Any]) -> Problem | None:
        seq: int = entry["seq"]
        self.count += 1
        if seq <= self._seq:
            return Problem(seq, f"Entry {seq} stands before the cut at {self._seq}: it was put there.")
        if seq > self._seq + 1:
            return Problem(self._seq + 1, f"Entry {self._seq + 1} is missing.")
        if self._head is None or seq > self._head.seq:
            return Problem(seq, f"Entry {seq} stands behind the head: it was put there.")
        if hash_of(entry) != entry["hash"]:
            return Problem(seq, f"Entry {seq} was changed: its hash is another.")
        if entry["previous"] != self._hash:
            return Problem(seq, f"Entry {seq}, or the one before it, was put there or changed.")
        if self._wanted.get(seq, {entry["hash"]}) != {entry["hash"]}:
            return Problem(seq, f"Entry {seq}, or one before it, is another than at the checkpoint.")
        self._seq, self._hash = seq, entry["hash"]
        return None

    def problem_at_end(self) -> Problem | None:
        if self._head is not None and self._seq < self._head.seq:
            return Problem(self._seq + 1, f"Entry {self._seq + 1} and what followed it is missing.")
        if self._head is not None and self._hash != self._head.hash:
            return Problem(self._seq, f"Entry {self._seq}, or one before it, is another than the head says.")
        if self._seq < self._last_wanted:
            return Problem(
                self._seq + 1,
                f"Entry {self._seq + 1} and what followed it was cut off: a checkpoint knows of {self._last_wanted}.",
            )
        return None
