"""Behind the searches of the api role, indexes are tended to and told of."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.metrics import ApiMetrics
from app.upkeep import tending as module
from app.upkeep.tending import tending
from retrieval import catalog, views
from retrieval.database import Database
from retrieval.rankings import IndexedChunk
from retrieval.scope import Scope
from retrieval.snapshots import Snapshots
from retrieval.vector_index import FaissVectorIndex
from retrieval.views import IndexViews
from tests.retrieval.shelf import Shelf


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not reached():  # noqa: ASYNC110 - nothing tells of a look
            await asyncio.sleep(0.02)


def told(metrics: ApiMetrics) -> list[str]:
    return [line for line in metrics.render().decode().splitlines() if line.startswith("strongroom_vector")]


async def test_snapshots_are_written_and_what_is_deleted_leaves_them(
    database: Database, scope: Scope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    monkeypatch.setattr(views, "SNAPSHOT_FROM", 1)
    monkeypatch.setattr(views, "QUIET_S", 0.0)
    shelf, snapshots, metrics = Shelf(database, scope), Snapshots(tmp_path / "snapshots"), ApiMetrics()
    process = IndexViews(snapshots)
    shelf.follow(process)
    async with tending(database, process, metrics):
        await until(lambda: bool(snapshots.kept() and told(metrics)))
        assert told(metrics) == [
            'strongroom_vector_indexes{kind="approximate"} 0.0',
            'strongroom_vector_indexes{kind="exact"} 1.0',
        ]
        (before,) = snapshots.kept()
        with database.write() as session:
            catalog.delete_document(session, scope, shelf.collection.id, shelf.documents[0].file_id)
        await until(lambda: before not in snapshots.kept())
    snapshots.close()


async def test_a_folder_that_cannot_be_written_to_is_told_and_tried_again(
    database: Database,
    scope: Scope,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    monkeypatch.setattr(views, "SNAPSHOT_FROM", 1)
    monkeypatch.setattr(views, "QUIET_S", 0.0)
    shelf, snapshots = Shelf(database, scope), Snapshots(tmp_path / "snapshots")
    process = IndexViews(snapshots)
    shelf.follow(process)
    work = snapshots._work
    moved = work.rename(work.with_name("elsewhere"))
    with caplog.at_level(logging.WARNING, logger="strongroom.tending"):
        async with tending(database, process, ApiMetrics()):
            await until(lambda: "tending_failed" in caplog.text)
            moved.rename(work)
            await until(lambda: bool(snapshots.kept()))
    snapshots.close()


def test_recall_is_told_without_the_names_of_collections() -> None:
    index = FaissVectorIndex(16, exact_up_to=16)
    rows = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float16).astype(np.float32)
    index.apply(added=[IndexedChunk(i, i, "", row) for i, row in enumerate(rows)], removed=())
    index.tend()
    metrics = ApiMetrics()
    metrics.tell_indexes([index, FaissVectorIndex(16)])
    assert told(metrics) == [
        'strongroom_vector_indexes{kind="approximate"} 1.0',
        'strongroom_vector_indexes{kind="exact"} 1.0',
        'strongroom_vector_recall_at_10{of="mean"} 1.0',
        'strongroom_vector_recall_at_10{of="lowest"} 1.0',
    ]
    metrics.tell_indexes([])
    assert told(metrics) == [
        'strongroom_vector_indexes{kind="approximate"} 0.0',
        'strongroom_vector_indexes{kind="exact"} 0.0',
    ]
