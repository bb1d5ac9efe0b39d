"""A short run of what `python -m tests.faults.departures` does at length."""

from pathlib import Path

from tests.faults.departures import PHASES, leave_often


async def test_whoever_hangs_up_frees_the_engine_and_the_stream_of_the_key(tmp_path: Path) -> None:
    left = await leave_often(tmp_path, times=1)
    assert left.violations == []
    assert set(left.after_s) == set(PHASES)
