"""The audit log's chain on both databases: written with the act or not at all, and no change to it goes unseen."""

import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from retrieval.audit import (
    GENESIS,
    AuditKey,
    AuditUnavailable,
    Checkpoint,
    act,
    checkpoint_of,
    hash_of,
    prune,
    read_checkpoint,
    record,
    record_all,
    restart,
)
from retrieval.audit_check import Problem, Verdict, entries_of, verify_audit
from retrieval.database import Database, open_database
from retrieval.scope import Scope
from retrieval.tables import AuditEntry, AuditEvent, AuditHead, Role, Tenant

KEY = AuditKey(b"s" * 32, b"w" * 32)
SCOPE = Scope("tenant-1", "key_1", Role.WRITER)
LENGTH = 20
Entry = dict[str, Any]


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = open_database(database_url, audit_key=KEY)
    yield database
    database.close()


def do(database: Database, number: int, *, now: float | None = None) -> Checkpoint:
    """An act that leaves a row, and where the log stands after it."""
    with database.write() as session:
        session.add(Tenant(id=f"t{number}", name=f"tenant {number}", created_at=1.0))
        event = list(AuditEvent)[number % len(AuditEvent)]
        details: dict[str, str | int] = {"number": number, "word": KEY.keyed_hash(f"text {number}")}
        record_all(session, [act(event, (f"file-{number}",), scope=SCOPE, now=now, details=details)])
    return head_of(database)


def head_of(database: Database) -> Checkpoint:
    with database.read() as session:
        return checkpoint_of(session.get_one(AuditHead, 1))


def verdict_of(database: Database, *checkpoints: Checkpoint) -> Verdict:
    with database.read() as session:
        return verify_audit(session, KEY, checkpoints)


def entries(database: Database) -> list[Entry]:
    with database.read() as session:
        return list(entries_of(session))


def test_entries_follow_each_other_by_number_and_hash(database: Database) -> None:
    for number in range(5):
        do(database, number)
    found = entries(database)
    assert [entry["seq"] for entry in found] == [1, 2, 3, 4, 5]
    assert found[0]["previous"] == GENESIS
    assert all(after["previous"] == before["hash"] for before, after in pairwise(found))
    assert (found[4]["tenant_id"], found[4]["key_id"]) == ("tenant-1", "key_1")
    assert found[4]["objects"] == '["file-4"]'
    assert "text 4" not in str(found)
    assert verdict_of(database) == Verdict(head_of(database), 5, None)


def test_several_acts_of_one_transaction_stand_in_their_order(database: Database) -> None:
    with database.write() as session:
        for name in ("a", "b"):
            record(session, AuditEvent.FILE_ADDED, name, scope=None, tenant_id="t", bytes=1)
    assert [(each["objects"], each["tenant_id"]) for each in entries(database)] == [
        ('["a"]', "t"),
        ('["b"]', "t"),
    ]


def test_what_is_not_committed_is_not_entered(database: Database) -> None:
    do(database, 1)
    with pytest.raises(IntegrityError):
        do(database, 1)
    do(database, 2)
    assert verdict_of(database).entries == 2
    assert verdict_of(database).problem is None


@dataclass
class Attack:
    """What who can write to the database does to it, and the entry that must be named for it, if that can be known."""

    connection: Connection
    random: random.Random
    heads: Sequence[Checkpoint]
    named: set[int] | None = None
    has_checkpoint: bool = False

    def entry(self) -> Entry:
        seq = self.random.randint(1, LENGTH)
        found = self.connection.execute(select(AuditEntry.__table__).where(AuditEntry.seq == seq))
        return dict(found.mappings().one())

    def put(self, entry: Entry) -> None:
        values = {name: value for name, value in entry.items() if name != "seq"}
        self.connection.execute(update(AuditEntry).where(AuditEntry.seq == entry["seq"]).values(values))

    def changed(self, entry: Entry, name: str) -> Entry:
        value = entry[name]
        if isinstance(value, float):
            return {**entry, name: value + self.random.choice([-1e-6, 1.0, 3600.0])}
        place = self.random.randrange(len(value))
        return {**entry, name: f"{value[:place]}{'x' if value[place] != 'x' else 'y'}{value[place + 1 :]}"}

    def move(self, seq: int, to: int) -> None:
        self.connection.execute(update(AuditEntry).where(AuditEntry.seq == seq).values(seq=to))

    def shift(self, first: int, *, by: int) -> None:
        """By way of negative numbers, as none may be there twice."""
        seq = AuditEntry.seq
        self.connection.execute(update(AuditEntry).where(seq >= first).values(seq=-(seq + by)))
        self.connection.execute(update(AuditEntry).where(seq < 0).values(seq=-seq))


def edit(attack: Attack) -> None:
    entry = attack.entry()
    names = ["time", "tenant_id", "key_id", "event", "outcome", "objects", "details", "previous", "hash"]
    attack.put(attack.changed(entry, attack.random.choice(names)))
    attack.named = {entry["seq"]}


def edit_with_its_hash(attack: Attack) -> None:
    entry = attack.changed(attack.entry(), "objects")
    attack.put({**entry, "hash": hash_of(entry)})
    # The link to the next one is broken, or that to the head.
    attack.named = {entry["seq"], entry["seq"] + 1}


def edit_and_hash_all_that_follows(attack: Attack) -> None:
    entry = attack.changed(attack.entry(), "details")
    previous = entry["previous"]
    for seq in range(entry["seq"], LENGTH + 1):
        found = attack.connection.execute(select(AuditEntry.__table__).where(AuditEntry.seq == seq))
        following = entry if seq == entry["seq"] else dict(found.mappings().one())
        following["previous"] = previous
        following["hash"] = previous = hash_of(following)
        attack.put(following)
    attack.connection.execute(update(AuditHead).values(hash=previous))


def remove(attack: Attack) -> None:
    seq = attack.entry()["seq"]
    attack.connection.execute(delete(AuditEntry).where(AuditEntry.seq == seq))
    attack.named = {seq}


def remove_and_close_the_gap(attack: Attack) -> None:
    seq = attack.random.randint(1, LENGTH - 1)
    attack.connection.execute(delete(AuditEntry).where(AuditEntry.seq == seq))
    attack.shift(seq + 1, by=-1)
    attack.named = {seq}


def put_in(attack: Attack) -> None:
    entry = attack.entry()
    seq = entry["seq"]
    attack.shift(seq, by=1)
    new = {**attack.changed(entry, "key_id"), "seq": seq}
    attack.connection.execute(insert(AuditEntry), {**new, "hash": hash_of(new)})
    attack.named = {seq, seq + 1}


def put_behind_the_head(attack: Attack) -> None:
    last = attack.heads[LENGTH]
    new = {**attack.entry(), "seq": LENGTH + 1, "previous": last.hash}
    attack.connection.execute(insert(AuditEntry), {**new, "hash": hash_of(new)})
    attack.named = {LENGTH + 1}


def put_before_the_first(attack: Attack) -> None:
    attack.connection.execute(insert(AuditEntry), {**attack.entry(), "seq": -attack.random.randint(0, 9)})


def swap(attack: Attack) -> None:
    one, other = sorted(attack.random.sample(range(1, LENGTH + 1), 2))
    attack.move(one, -1)
    attack.move(other, one)
    attack.move(-1, other)
    attack.named = {one}


def cut(attack: Attack) -> None:
    seq = attack.entry()["seq"]
    attack.connection.execute(delete(AuditEntry).where(AuditEntry.seq >= seq))
    attack.named = {seq}


def cut_with_an_older_head(attack: Attack) -> None:
    seq = attack.entry()["seq"]
    attack.connection.execute(delete(AuditEntry).where(AuditEntry.seq >= seq))
    older = attack.heads[seq - 1]
    values = {name: getattr(older, name) for name in ("seq", "hash", "time", "signature")}
    attack.connection.execute(update(AuditHead).values(values))
    attack.has_checkpoint = True
    attack.named = {seq}


def remove_all(attack: Attack) -> None:
    attack.connection.execute(delete(AuditEntry))
    attack.connection.execute(delete(AuditHead))
    attack.has_checkpoint = True
    attack.named = {1}


def move_the_cut(attack: Attack) -> None:
    """Removes the oldest as if they had been pruned."""
    entry = attack.entry()
    attack.connection.execute(delete(AuditEntry).where(AuditEntry.seq <= entry["seq"]))
    cut_at = {"pruned_seq": entry["seq"], "pruned_hash": entry["hash"]}
    attack.connection.execute(update(AuditHead).values(cut_at))


ATTACKS: list[Callable[[Attack], None]] = [
    edit,
    edit_with_its_hash,
    edit_and_hash_all_that_follows,
    remove,
    remove_and_close_the_gap,
    put_in,
    put_behind_the_head,
    put_before_the_first,
    swap,
    cut,
    cut_with_an_older_head,
    remove_all,
    move_the_cut,
]


def test_each_of_a_thousand_changes_is_found_and_the_first_bad_entry_is_named(database: Database) -> None:
    heads = [Checkpoint(0, GENESIS, 0, GENESIS, 1.0), *(do(database, number) for number in range(LENGTH))]
    chance = random.Random(20)
    # A server takes its time for each, and the chain is the same there.
    for turn in range(1_000 if database.engine.dialect.name == "sqlite" else 100):
        kind = ATTACKS[turn % len(ATTACKS)]
        with database.engine.connect() as connection:
            attack = Attack(connection, chance, heads)
            kind(attack)
            kept = [heads[LENGTH]] if attack.has_checkpoint else []
            with Session(connection) as session:
                verdict = verify_audit(session, KEY, kept)
            connection.rollback()
        assert verdict.problem is not None, f"{kind.__name__} went unseen"
        assert attack.named is None or verdict.problem.seq in attack.named, (kind.__name__, verdict.problem)
    assert verdict_of(database, heads[LENGTH]).problem is None


def test_a_checkpoint_from_elsewhere_shows_a_log_that_was_written_anew(database: Database) -> None:
    kept = [do(database, number) for number in range(4)]
    assert read_checkpoint(kept[1].line()) == kept[1]
    with database.engine.begin() as connection:
        connection.execute(delete(AuditEntry))
        connection.execute(delete(AuditHead))
    for number in range(10, 16):
        do(database, number)
    assert verdict_of(database).problem is None
    assert verdict_of(database, kept[1]).problem == Problem(
        2, "Entry 2, or one before it, is another than at the checkpoint."
    )


def test_a_checkpoint_that_somebody_else_signed_is_told(database: Database) -> None:
    head = do(database, 1)
    stranger = AuditKey(b"x" * 32, b"w" * 32)
    forged = Checkpoint(
        head.seq,
        head.hash,
        head.pruned_seq,
        head.pruned_hash,
        head.time,
        stranger.sign(head.signed_part()).hex(),
    )
    problem = verdict_of(database, forged).problem
    assert problem is not None
    assert "not signed" in problem.reason


@pytest.mark.parametrize("column", ["hash", "signature", "pruned_hash", "time"])
def test_what_was_changed_gets_no_new_signature_the_act_is_refused_instead(
    database: Database, column: str
) -> None:
    """Else the next act would sign the changed log as if it were ours."""
    do(database, 1)
    value: Any = 5.0 if column == "time" else "11" * 32
    with database.engine.begin() as connection:
        connection.execute(update(AuditHead).values({column: value}))
    with pytest.raises(AuditUnavailable, match=r"audit\.key.*restart"):
        do(database, 2)
    with database.read() as session:
        assert session.get(Tenant, "t2") is None


def test_a_head_that_is_gone_is_not_begun_anew(database: Database) -> None:
    do(database, 1)
    with database.engine.begin() as connection:
        connection.execute(delete(AuditHead))
    with pytest.raises(AuditUnavailable, match="missing"):
        do(database, 2)
    assert verdict_of(database).problem == Problem(1, "Entry 1 stands behind the head: it was put there.")


def test_an_act_that_cannot_be_entered_is_not_done(database: Database) -> None:
    do(database, 1)
    # As with a number that is taken: the database refuses the entry.
    with database.engine.begin() as connection:
        connection.execute(
            text(
                "insert into audit_entries select 2, time, tenant_id, key_id, event, outcome, objects, details,"
                " previous, hash from audit_entries where seq = 1"
            )
        )
    with pytest.raises(AuditUnavailable, match="nothing was done"):
        do(database, 2)
    with database.read() as session:
        assert session.get(Tenant, "t2") is None


def test_old_entries_go_under_a_signed_cut(database: Database) -> None:
    before = [do(database, number, now=100.0 + number) for number in range(6)]
    with database.write() as session:
        assert prune(session, before=103.0) == 3
    found = entries(database)
    assert [entry["seq"] for entry in found] == [4, 5, 6, 7]
    assert found[-1]["event"] == AuditEvent.AUDIT_PRUNED
    assert head_of(database).pruned_hash == before[2].hash
    # Those from before the cut say nothing any more; those after it do.
    assert verdict_of(database, before[0], before[4]).problem is None
    with database.write() as session:
        assert prune(session, before=103.0) == 0
    assert verdict_of(database).entries == 4


def test_entries_by_a_clock_that_was_set_back_go_when_all_before_them_may(database: Database) -> None:
    for number, now in enumerate((100.0, 200.0, 50.0)):
        do(database, number, now=now)
    with database.write() as session:
        assert prune(session, before=150.0) == 1
    assert verdict_of(database).problem is None


def test_all_may_go_and_the_log_goes_on_counting(database: Database) -> None:
    do(database, 1, now=1.0)
    with database.write() as session:
        assert prune(session, before=2.0) == 1
    do(database, 2)
    assert [entry["seq"] for entry in entries(database)] == [2, 3]
    assert verdict_of(database).problem is None


def test_who_lost_the_key_gives_the_log_up_and_goes_on_behind_it(
    database_url: str, database: Database
) -> None:
    last = [do(database, number) for number in range(3)][-1]
    other_key = AuditKey(b"o" * 32, b"w" * 32)
    other = open_database(database_url, audit_key=other_key)
    with pytest.raises(AuditUnavailable):
        do(other, 7)
    with other.write() as session:
        restart(session, reason="The head is not signed.")
    do(other, 7)
    found = entries(other)
    assert (found[0]["seq"], found[0]["event"]) == (4, AuditEvent.AUDIT_RESTARTED)
    with other.read() as session:
        assert verify_audit(session, other_key).problem is None
        # What was signed by the old key is no proof any more, and says so.
        assert verify_audit(session, other_key, [last]).problem is not None
    other.close()


def _do_many(url: str, first: int) -> None:
    database = open_database(url, audit_key=KEY)
    for number in range(first, first + 25):
        do(database, number)
    database.close()


def test_several_processes_write_one_chain(database_url: str, database: Database) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
        list(pool.map(_do_many, [database_url] * 4, range(0, 100, 25)))
    assert verdict_of(database).problem is None
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(AuditEntry)) == 100
        assert session.scalar(select(func.count()).select_from(Tenant)) == 100


def test_after_a_kill_each_acknowledged_act_is_in_the_log_and_no_other(
    database_url: str, tmp_path: Path
) -> None:
    acks = tmp_path / "acks"
    pid = os.fork()
    if pid == 0:
        database = open_database(database_url, audit_key=KEY)
        with acks.open("w", buffering=1) as file:
            for number in range(100_000):
                do(database, number)
                file.write(f"{number}\n")
        sys.exit(0)
    while not acks.exists() or acks.read_text().count("\n") < 40:
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    acknowledged = acks.read_text().count("\n")
    database = open_database(database_url, audit_key=KEY)
    verdict = verdict_of(database)
    assert verdict.problem is None
    with database.read() as session:
        done = session.scalar(select(func.count()).select_from(Tenant)) or 0
    assert verdict.entries == done
    assert acknowledged <= done <= acknowledged + 1
    database.close()
