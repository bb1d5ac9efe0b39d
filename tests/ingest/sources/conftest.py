"""A watched folder for each test."""

from pathlib import Path

import pytest

from retrieval.database import Database
from retrieval.scope import Scope
from tests.ingest.sources.watched import Watched


@pytest.fixture
def watched(database: Database, scope: Scope, tmp_path: Path) -> Watched:
    return Watched(database, scope, tmp_path)
