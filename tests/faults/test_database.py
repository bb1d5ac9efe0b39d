"""A short run of what `python -m tests.faults.database` does at length."""

from pathlib import Path

import pytest

from tests.faults.database import FEW, suffer_embedded, suffer_postgres
from tests.postgres import BINARIES

pytestmark = pytest.mark.processes


def test_beside_a_locked_database_reads_go_on_and_no_acknowledged_write_is_lost(tmp_path: Path) -> None:
    suffered = suffer_embedded(tmp_path, times=1, locked_s=4.0, reading_s=1.0)
    assert suffered.violations == []
    assert suffered.refused
    assert suffered.reads_s


def test_sessions_that_end_and_a_server_that_crashes_lose_nothing_that_was_acknowledged(
    tmp_path: Path,
) -> None:
    if not list(BINARIES.glob("*/bin/initdb")):
        pytest.skip("PostgreSQL is not installed")
    suffered = suffer_postgres(tmp_path, times=1, settings=FEW)
    assert suffered.violations == []
    assert suffered.acknowledged
    assert suffered.refused
