"""The audit log: what was done by which key to which ids, written with the act itself, in one signed chain.

Each entry holds the hash of the one before it; the head, one row, is signed by each transaction that adds entries. So
who can write to the database alone can change, insert or remove nothing unseen, but for cutting the log's tail
together with an older head: that shows against a checkpoint, which is a copy of a head that was kept elsewhere.
"""

import hashlib
import hmac
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, Table, delete, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from retrieval.scope import Scope
from retrieval.tables import AuditEntry, AuditEvent, AuditHead, AuditOutcome

GENESIS = "0" * 64
"""What the first entry holds in place of a hash."""
LONGEST_TEXT = 200
_ACTS, _CUT, _RESTARTS, _WRITTEN = "audit_acts", "audit_cut", "audit_restarts", "audit_written"


class AuditUnavailable(SQLAlchemyError):
    """An act cannot be entered into the audit log, so it is not done."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The audit log cannot be written, so nothing was done: {reason}")


@dataclass(frozen=True)
class Act:
    """What is to be entered."""

    event: AuditEvent
    objects: tuple[str, ...]
    tenant_id: str | None
    key_id: str | None
    outcome: AuditOutcome
    details: Mapping[str, str | int]
    time: float


def act(
    event: AuditEvent,
    objects: Iterable[str] = (),
    *,
    scope: Scope | None,
    tenant_id: str | None = None,
    outcome: AuditOutcome = AuditOutcome.DONE,
    now: float | None = None,
    details: Mapping[str, str | int] | None = None,
) -> Act:
    """Without a scope it is an act of the machine's owner, who may name the tenant that it is done to."""
    return Act(
        event=event,
        objects=tuple(objects),
        tenant_id=scope.tenant_id if scope is not None else tenant_id,
        key_id=scope.key_id if scope is not None else None,
        outcome=outcome,
        details=details or {},
        time=round(time.time() if now is None else now, 6),
    )


def record(
    session: Session,
    event: AuditEvent,
    *objects: str,
    scope: Scope | None,
    tenant_id: str | None = None,
    **details: str | int,
) -> None:
    """Enters what the transaction does; it is written last in it, so that the log is locked for a moment only."""
    record_all(session, [act(event, objects, scope=scope, tenant_id=tenant_id, details=details)])


def record_all(session: Session, acts: Iterable[Act]) -> None:
    session.info.setdefault(_ACTS, []).extend(acts)


def written(session: Session) -> "Checkpoint":
    """Where the log stood after a transaction that recorded something, once that has ended."""
    checkpoint: Checkpoint = session.info[_WRITTEN]
    return checkpoint


def prune(session: Session, *, before: float) -> int:
    """Removes the entries from before that time, under a signed cut. Returns how many there were."""
    kept = select(func.min(AuditEntry.seq)).where(AuditEntry.time >= before)
    newest = select(func.max(AuditEntry.seq))
    first_kept = session.scalar(kept)
    last = first_kept - 1 if first_kept is not None else session.scalar(newest)
    cut = session.execute(select(AuditEntry.seq, AuditEntry.hash).where(AuditEntry.seq == last)).one_or_none()
    if cut is None:
        return 0
    count = session.scalar(select(func.count()).where(AuditEntry.seq <= cut.seq)) or 0
    session.info[_CUT] = (cut.seq, cut.hash)
    record(session, AuditEvent.AUDIT_PRUNED, scope=None, last_seq=cut.seq, last_hash=cut.hash)
    return count


def restart(session: Session, *, reason: str) -> None:
    """Gives a log up that no longer verifies, and begins anew behind it: all entries go; a signed one says why."""
    last = session.execute(
        select(AuditEntry.seq, AuditEntry.hash).order_by(AuditEntry.seq.desc()).limit(1)
    ).one_or_none()
    head = session.get(AuditHead, 1)
    seq = max(last.seq if last is not None else 0, head.seq if head is not None else 0)
    session.info[_RESTARTS] = True
    session.info[_CUT] = (seq, last.hash if last is not None else GENESIS)
    record(session, AuditEvent.AUDIT_RESTARTED, scope=None, last_seq=seq, reason=reason[:LONGEST_TEXT])


@dataclass(frozen=True)
class Checkpoint:
    """Where the log stood at some time. Kept elsewhere, it shows that nothing up to there was changed or cut since."""

    seq: int
    hash: str
    pruned_seq: int
    pruned_hash: str
    time: float
    signature: str = ""

    def signed_part(self) -> bytes:
        told = {name: value for name, value in asdict(self).items() if name != "signature"}
        return _canonical({"strongroom_audit": 1, **told})

    def line(self) -> str:
        return orjson.dumps(asdict(self)).decode()


def read_checkpoint(line: str) -> Checkpoint:
    """Raises ValueError."""
    try:
        told = orjson.loads(line)
        return Checkpoint(
            seq=int(told["seq"]),
            hash=str(told["hash"]),
            pruned_seq=int(told["pruned_seq"]),
            pruned_hash=str(told["pruned_hash"]),
            time=float(told["time"]),
            signature=str(told["signature"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError("it is no checkpoint of an audit log") from error


@dataclass(frozen=True)
class AuditKey:
    """Signs heads and receipts, and hashes what must not be stored."""

    secret: bytes = field(repr=False)
    """32 bytes, of which the Ed25519 key is made."""
    words: bytes = field(repr=False)
    """Keys the hashes of texts, so that nobody without it can try what was asked."""

    @property
    def public(self) -> bytes:
        """32 bytes, for anybody."""
        return self._private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._private.sign(message)

    def has_signed(self, message: bytes, signature: bytes) -> bool:
        try:
            self._private.public_key().verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def keyed_hash(self, text: str) -> str:
        return hmac.digest(self.words, text.encode(errors="replace"), "sha256").hex()

    @cached_property
    def _private(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.secret)


class AuditChain:
    """Writes what transactions have recorded. Safe to use from several threads, beside other processes."""

    def __init__(self, key: AuditKey | None) -> None:
        self._key = key
        self._seen: Checkpoint | None = None
        """A head whose signature is known to be right: mostly this process's own last one."""

    def append(self, session: Session) -> None:
        """To be called last in a transaction. Raises AuditUnavailable."""
        acts: list[Act] = session.info.pop(_ACTS, [])
        if not acts:
            return
        session.flush()
        try:
            self._append(session, acts)
        except OperationalError:
            raise  # The database is away, which everybody knows how to take.
        except DBAPIError as error:
            raise AuditUnavailable(f"the database refuses it ({type(error.orig).__name__}).") from error

    def _append(self, session: Session, acts: list[Act]) -> None:
        # Without the ORM, which would double what an act takes.
        connection = session.connection()
        restarts, cut = session.info.pop(_RESTARTS, False), session.info.pop(_CUT, None)
        head = _locked_head(connection, may_be_missing=restarts)
        if restarts:
            head = replace(head, seq=cut[0], hash=cut[1])
        else:
            self._check(head)
        if cut is not None:
            head = replace(head, pruned_seq=cut[0], pruned_hash=cut[1])
            connection.execute(delete(_ENTRIES).where(_ENTRIES.c.seq <= head.pruned_seq))
        entries: list[dict[str, Any]] = []
        for seq, each in enumerate(acts, head.seq + 1):
            entries.append(_entry(each, seq, entries[-1]["hash"] if entries else head.hash))
        connection.execute(_WRITE_ENTRIES, entries)
        head = replace(head, seq=entries[-1]["seq"], hash=entries[-1]["hash"], time=time.time(), signature="")
        if self._key is not None:
            head = replace(head, signature=self._key.sign(head.signed_part()).hex())
        connection.execute(_WRITE_HEAD, asdict(head))
        self._seen = session.info[_WRITTEN] = head

    def _check(self, head: Checkpoint) -> None:
        """What was changed must not get a new signature. Raises AuditUnavailable."""
        if self._key is None or head.seq == 0 or head == self._seen:
            return
        if not is_signed(head, self._key):
            raise AuditUnavailable(
                "its head is not signed by keys/audit.key. Put the right key back, or see "
                "`strongroom audit verify` and `strongroom audit restart`."
            )


_HEAD: Table = AuditHead.metadata.tables[AuditHead.__tablename__]
_ENTRIES: Table = AuditEntry.metadata.tables[AuditEntry.__tablename__]
_READ_HEAD = select(_HEAD).with_for_update()
_WRITE_HEAD = update(_HEAD).where(_HEAD.c.id == 1)
_WRITE_ENTRIES = insert(_ENTRIES)
_FIRST_HEAD = text(
    "insert into audit_head (id, seq, hash, pruned_seq, pruned_hash, time, signature)"
    " values (1, 0, :genesis, 0, :genesis, 0.0, '') on conflict do nothing"
)


def is_signed(checkpoint: Checkpoint, key: AuditKey) -> bool:
    try:
        signature = bytes.fromhex(checkpoint.signature)
    except ValueError:
        return False
    return key.has_signed(checkpoint.signed_part(), signature)


def checkpoint_of(head: AuditHead) -> Checkpoint:
    return Checkpoint(head.seq, head.hash, head.pruned_seq, head.pruned_hash, head.time, head.signature)


def hash_of(entry: Mapping[str, Any]) -> str:
    """SHA-256 over all of an entry but the hash itself."""
    return hashlib.sha256(_canonical({name: entry[name] for name in _HASHED})).hexdigest()


_HASHED = [column.name for column in AuditEntry.__table__.columns if column.name != "hash"]


def _canonical(told: Mapping[str, Any]) -> bytes:
    # What cannot be told in JSON was put into the database by somebody else, and makes another hash.
    return orjson.dumps(told, option=orjson.OPT_SORT_KEYS, default=repr)


def _entry(each: Act, seq: int, previous: str) -> dict[str, Any]:
    entry = {
        "seq": seq,
        "time": each.time,
        "tenant_id": each.tenant_id,
        "key_id": each.key_id,
        "event": each.event.value,
        "outcome": each.outcome.value,
        "objects": orjson.dumps(each.objects).decode(),
        "details": _canonical(each.details).decode(),
        "previous": previous,
    }
    return {**entry, "hash": hash_of(entry)}


def _locked_head(connection: Connection, *, may_be_missing: bool) -> Checkpoint:
    """From here to the commit nobody else adds to the log, on PostgreSQL too. Raises AuditUnavailable."""
    row = connection.execute(_READ_HEAD).one_or_none()
    if row is None:
        # Another process may be as early: this waits for it, and then its head is there.
        connection.execute(_FIRST_HEAD, {"genesis": GENESIS})
        row = connection.execute(_READ_HEAD).one()
    if row.seq == 0 and not may_be_missing and connection.scalar(select(_ENTRIES.c.seq).limit(1)) is not None:
        raise AuditUnavailable("its head is missing. See `strongroom audit restart`.")
    return Checkpoint(row.seq, row.hash, row.pruned_seq, row.pruned_hash, row.time, row.signature)
