"""Generations in SQL: one beside the one that answers, numbers that are given once, and removal in slices."""

import pytest
from sqlalchemy import select

from retrieval import catalog, generations
from retrieval.catalog import CollectionMissing
from retrieval.database import Database
from retrieval.generation_progress import list_generations
from retrieval.generations import GenerationConflict, GenerationMissing
from retrieval.scope import Scope
from retrieval.tables import (
    Chunk,
    ChunkLog,
    Generation,
    GenerationState,
    Job,
    JobState,
)
from retrieval.views import IndexViews
from tests.retrieval.library import shelve
from tests.retrieval.shelf import Shelf


@pytest.fixture
def shelf(database: Database, scope: Scope) -> Shelf:
    return Shelf(database, scope)


def test_a_rebuild_is_a_job_for_each_document_behind_others(shelf: Shelf) -> None:
    static = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}
    number = shelf.begin(embedding_model="small", chunking=static)
    with shelf.database.read() as session:
        jobs = session.scalars(select(Job).order_by(Job.id)).all()
    assert [(job.document_id, job.generation) for job in jobs] == [(each.id, 1) for each in shelf.documents]
    assert {(job.is_background, job.state, job.due_at) for job in jobs} == {(True, JobState.QUEUED, 2.0)}
    active, building = shelf.standings()
    assert (active.number, active.state, active.completed) == (0, None, 3)
    assert (building.number, building.state) == (number, GenerationState.BUILDING)
    assert (building.embedding_model, building.chunking) == ("small", static)
    assert (building.total, building.completed, building.in_progress, building.failed) == (3, 0, 3, 0)


def test_there_is_one_beside_the_one_that_answers(shelf: Shelf) -> None:
    shelf.begin()
    with pytest.raises(GenerationConflict, match="1, which is building"):
        shelf.begin()
    shelf.fill(1, shelf.documents)
    shelf.switch(1)
    with pytest.raises(GenerationConflict, match="0, which is previous"):
        shelf.begin()
    shelf.discard(0)
    assert shelf.begin() == 2


def test_the_one_that_answers_is_neither_discarded_nor_switched_to(shelf: Shelf) -> None:
    with pytest.raises(GenerationConflict, match="is the one that answers"):
        shelf.discard(0)
    with pytest.raises(GenerationConflict, match="is the one that answers"):
        shelf.switch(0)


def test_what_is_not_there_or_discarded_is_missing(shelf: Shelf) -> None:
    shelf.begin()
    shelf.discard(1)
    for number in (1, 2):
        with pytest.raises(GenerationMissing):
            shelf.discard(number)
        with pytest.raises(GenerationMissing):
            shelf.switch(number, force=True)


def test_another_tenant_sees_no_collection(shelf: Shelf, other_scope: Scope) -> None:
    shelf.begin()
    with shelf.database.write() as session:
        of = (session, other_scope, shelf.collection.id)
        with pytest.raises(CollectionMissing):
            list_generations(*of)
        with pytest.raises(CollectionMissing):
            generations.begin(*of, embedding_model="fake", chunking=None, now=2.0)
        with pytest.raises(CollectionMissing):
            generations.switch(*of, 1, force=True, now=2.0)
        with pytest.raises(CollectionMissing):
            generations.discard(*of, 1)


def test_a_switch_waits_for_what_can_be_found_now(shelf: Shelf) -> None:
    shelf.begin()
    shelf.fill(1, shelf.documents[:2])
    with pytest.raises(GenerationConflict, match="lacks 1 documents"):
        shelf.switch(1)
    with shelf.database.write() as session:
        assert generations.to_switch_to(session) == []
        assert not generations.switch_if_complete(session, shelf.collection.id, 1, now=3.0)
    shelf.fill(1, shelf.documents[2:])
    with shelf.database.write() as session:
        assert generations.to_switch_to(session) == [(shelf.collection.id, 1)]
        assert generations.switch_if_complete(session, shelf.collection.id, 1, now=3.0)
        assert not generations.switch_if_complete(session, shelf.collection.id, 1, now=3.0)
    assert [(each.number, each.state) for each in shelf.standings()] == [
        (1, None),
        (0, GenerationState.PREVIOUS),
    ]


def test_a_discarded_generation_goes_in_slices_and_nothing_else_with_it(shelf: Shelf) -> None:
    shelf.begin()
    shelf.fill(1, shelf.documents)
    shelf.switch(1)
    kept = shelf.count(Chunk, 1), shelf.count(ChunkLog, 1)
    shelf.discard(0)
    assert [each.state for each in shelf.standings()] == [None, GenerationState.DISCARDED]
    assert shelf.remove(0, limit=4) == 2 + 2 + 1
    assert (shelf.count(Chunk, 0), shelf.count(ChunkLog, 0)) == (0, 0)
    assert (shelf.count(Chunk, 1), shelf.count(ChunkLog, 1)) == kept
    assert [each.number for each in shelf.standings()] == [1]
    with shelf.database.read() as session:
        assert generations.to_remove(session) == []


def test_documents_come_and_go_while_a_generation_is_removed(shelf: Shelf) -> None:
    shelf.begin()
    shelf.fill(1, shelf.documents)
    shelf.switch(1)
    shelf.discard(0)
    with shelf.database.write() as session:
        assert generations.remove_slice(session, shelf.collection.id, 0, limit=1) is not None
    with shelf.database.write() as session:
        catalog.delete_document(session, shelf.scope, shelf.collection.id, shelf.documents[2].file_id)
    shelve(shelf.database, shelf.scope, shelf.collection, "A letter that came late.")
    with shelf.database.read() as session:
        assert session.scalars(select(Job)).all() == []
    shelf.remove(0, limit=1)
    assert (shelf.count(Chunk, 0), shelf.count(ChunkLog, 0)) == (0, 0)


def test_a_number_is_given_once_though_what_had_it_is_gone(shelf: Shelf) -> None:
    """A process that still holds the index of an earlier one would take it for that of its namesake."""
    for number in (1, 2):
        assert shelf.begin() == number
        shelf.discard(number)
        shelf.remove(number, limit=10)
    assert shelf.begin() == 3


def test_a_collection_goes_with_its_generations(shelf: Shelf) -> None:
    shelf.begin()
    shelf.fill(1, shelf.documents[:1])
    with shelf.database.write() as session:
        catalog.delete_collection(session, shelf.scope, shelf.collection.id)
    with shelf.database.read() as session:
        for table in (Generation, Job, Chunk, ChunkLog):
            assert session.scalars(select(table)).all() == []


def test_the_index_of_what_may_be_switched_to_is_ready(shelf: Shelf) -> None:
    views = IndexViews()
    old = shelf.follow(views)
    shelf.begin()
    shelf.fill(1, shelf.documents[:2])
    shelf.keep_ready(views)
    shelf.fill(1, shelf.documents[2:])
    shelf.keep_ready(views)
    ready = views._views[shelf.collection.id, 1]
    assert len(ready.vectors.chunk_ids()) == 3
    shelf.switch(1)
    assert shelf.follow(views) is ready
    shelf.keep_ready(views)
    shelf.switch(0)
    assert shelf.follow(views) is old
    shelf.discard(1)
    shelf.keep_ready(views)
    assert set(views._views) == {(shelf.collection.id, 0)}


def test_no_index_is_made_ready_of_a_collection_that_nobody_searches_here(shelf: Shelf) -> None:
    views = IndexViews()
    shelf.begin()
    shelf.fill(1, shelf.documents)
    shelf.keep_ready(views)
    assert views._views == {}
