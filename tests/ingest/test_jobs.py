"""The queue in SQL: who gets which job, and who may no longer write."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from ingest import jobs
from ingest.jobs import ClaimedJob, LeaseLost
from retrieval import catalog
from retrieval.database import Database, open_database
from retrieval.scope import Scope
from retrieval.tables import Collection, Document, DocumentStatus, Job, JobState
from tests.retrieval.library import add_text_file, attach, new_collection

LEASE_S = 30.0


@pytest.fixture
def collection(database: Database, scope: Scope) -> Collection:
    return new_collection(database, scope)


def enqueue(
    database: Database, scope: Scope, collection: Collection, due_at: Sequence[float]
) -> list[Document]:
    """A document and its job for each time."""
    with database.write() as session:
        return [
            attach(session, scope, collection.id, add_text_file(session, scope, f"text {number}").id, now=due)
            for number, due in enumerate(due_at)
        ]


def claim(database: Database, now: float) -> ClaimedJob | None:
    with database.write() as session:
        return next(iter(jobs.claim(session, now=now, lease_s=LEASE_S)), None)


def claimed(database: Database, now: float) -> ClaimedJob:
    job = claim(database, now)
    assert job is not None
    return job


def test_the_job_that_has_been_due_longest_is_claimed_first(
    database: Database, scope: Scope, collection: Collection
) -> None:
    late, early, also_early = enqueue(database, scope, collection, [5.0, 3.0, 3.0])
    order = [claimed(database, now=10.0).document_id for _ in range(3)]
    assert order == [early.id, also_early.id, late.id]
    assert claim(database, now=10.0) is None


def test_a_job_is_not_claimed_before_it_is_due(
    database: Database, scope: Scope, collection: Collection
) -> None:
    enqueue(database, scope, collection, [5.0])
    with database.read() as session:
        assert not jobs.any_due(session, now=4.9)
        assert jobs.any_due(session, now=5.0)
    assert claim(database, now=4.9) is None
    assert claim(database, now=5.0) is not None


def test_a_job_whose_lease_ended_goes_to_another(
    database: Database, scope: Scope, collection: Collection
) -> None:
    enqueue(database, scope, collection, [0.0])
    first = claimed(database, now=100.0)
    assert claim(database, now=100.0 + LEASE_S - 0.1) is None
    second = claimed(database, now=100.0 + LEASE_S)
    assert second.job_id == first.job_id
    assert second.lease != first.lease
    assert second.attempt == 0


def test_a_renewed_lease_lasts_on(database: Database, scope: Scope, collection: Collection) -> None:
    enqueue(database, scope, collection, [0.0, 0.0])
    leases = [claimed(database, now=100.0).lease, claimed(database, now=100.0).lease]
    with database.write() as session:
        jobs.renew(session, leases, now=120.0, lease_s=LEASE_S)
    assert claim(database, now=149.0) is None
    assert claim(database, now=150.0) is not None


def test_a_lost_lease_cannot_be_renewed(database: Database, scope: Scope, collection: Collection) -> None:
    enqueue(database, scope, collection, [0.0])
    lost = claimed(database, now=0.0)
    claimed(database, now=LEASE_S)
    with database.write() as session:
        jobs.renew(session, [lost.lease], now=1000.0, lease_s=LEASE_S)
    assert claim(database, now=2 * LEASE_S) is not None


def test_who_lost_the_lease_can_neither_write_nor_fail_nor_give_back(
    database: Database, scope: Scope, collection: Collection
) -> None:
    (document,) = enqueue(database, scope, collection, [0.0])
    lost = claimed(database, now=0.0)
    held = claimed(database, now=LEASE_S)
    with database.write() as session, pytest.raises(LeaseLost):
        jobs.lock(session, lost)
    with database.write() as session, pytest.raises(LeaseLost):
        jobs.fail(session, lost, code="corrupt", message="It is broken.")
    with database.write() as session:
        jobs.give_back(session, lost, due_at=0.0, attempt=4)
        jobs.give_back_all(session, [lost.lease], now=0.0)
    with database.write() as session:
        assert jobs.lock(session, held).id == document.id
        job = session.scalars(select(Job)).one()
        assert (job.state, job.lease, job.attempt) == (JobState.RUNNING, held.lease, 0)
        assert session.get_one(Document, document.id).status is DocumentStatus.IN_PROGRESS


def test_a_job_whose_document_was_deleted_is_lost(
    database: Database, scope: Scope, collection: Collection
) -> None:
    (document,) = enqueue(database, scope, collection, [0.0])
    job = claimed(database, now=0.0)
    with database.write() as session:
        catalog.delete_document(session, scope, collection.id, document.file_id)
    with database.write() as session, pytest.raises(LeaseLost):
        jobs.lock(session, job)


def test_a_finished_job_is_gone(database: Database, scope: Scope, collection: Collection) -> None:
    enqueue(database, scope, collection, [0.0])
    job = claimed(database, now=0.0)
    with database.write() as session:
        jobs.lock(session, job)
        jobs.finish(session, job)
    assert claim(database, now=1e9) is None


def test_a_failed_document_says_why_and_is_not_tried_again(
    database: Database, scope: Scope, collection: Collection
) -> None:
    (document,) = enqueue(database, scope, collection, [0.0])
    job = claimed(database, now=0.0)
    with database.write() as session:
        jobs.fail(session, job, code="encrypted", message="Remove the password.")
    with database.read() as session:
        failed = catalog.get_document(session, scope, collection.id, document.file_id)
    assert (failed.status, failed.error_code, failed.error_message) == (
        DocumentStatus.FAILED,
        "encrypted",
        "Remove the password.",
    )
    assert claim(database, now=1e9) is None


def test_a_job_that_was_given_back_waits_its_time_and_counts_its_attempts(
    database: Database, scope: Scope, collection: Collection
) -> None:
    enqueue(database, scope, collection, [0.0])
    job = claimed(database, now=0.0)
    with database.write() as session:
        jobs.give_back(session, job, due_at=64.0, attempt=3)
    assert claim(database, now=63.0) is None
    assert claimed(database, now=64.0).attempt == 3


def test_jobs_that_are_all_given_back_are_due_at_once(
    database: Database, scope: Scope, collection: Collection
) -> None:
    enqueue(database, scope, collection, [0.0, 0.0])
    leases = [claimed(database, now=5.0).lease, claimed(database, now=5.0).lease]
    with database.write() as session:
        jobs.give_back_all(session, leases, now=6.0)
    assert {claimed(database, now=6.0).attempt, claimed(database, now=6.0).attempt} == {0}


def test_threads_that_claim_at_once_never_get_the_same_job(
    database: Database, database_url: str, scope: Scope, collection: Collection
) -> None:
    documents = enqueue(database, scope, collection, [0.0] * 24)
    elsewhere = open_database(database_url)

    def claim_all(claiming: Database) -> list[int]:
        mine: list[int] = []
        while (job := claim(claiming, now=1.0)) is not None:
            mine.append(job.document_id)
        return mine

    with ThreadPoolExecutor(6) as threads:
        shares = list(threads.map(claim_all, [database, elsewhere] * 3))
    elsewhere.close()
    handed_out = [document_id for share in shares for document_id in share]
    # A thread may find all that is left locked by others, and stop early: nothing is lost by it.
    handed_out += claim_all(database)
    assert sorted(handed_out) == [document.id for document in documents]


@pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
def test_a_claim_does_not_wait_for_another_that_is_not_committed(
    database: Database, scope: Scope, collection: Collection
) -> None:
    first, second = enqueue(database, scope, collection, [0.0, 0.0])
    with database.write() as session:
        (mine,) = jobs.claim(session, now=1.0, lease_s=LEASE_S)
        theirs = claimed(database, now=1.0)
        assert (mine.document_id, theirs.document_id) == (first.id, second.id)


def test_a_clock_that_is_set_back_leaves_no_job_waiting_for_the_time_that_was(
    database: Database, scope: Scope, collection: Collection
) -> None:
    enqueue(database, scope, collection, [90_000.0, 90_000.0])
    running = claimed(database, now=90_000.0)
    for now in (90_000.0, 3_600.0):
        with database.write() as session:
            is_stranded = jobs.wait_too_long(session, now=now)
            jobs.pull_back(session, now=now)
        assert is_stranded == (now < 90_000.0)
    assert {claimed(database, now=3_600.0).document_id for _ in range(2)} > {running.document_id}
    with pytest.raises(LeaseLost), database.write() as session:
        jobs.lock(session, running)
