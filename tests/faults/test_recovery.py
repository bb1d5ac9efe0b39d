"""A short run of what `python -m tests.faults.recovery` does at length, whose figures need a machine for itself."""

from pathlib import Path

import pytest

from tests.faults import recovery

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]


def test_after_a_kill_a_search_finds_what_was_added_and_not_what_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "RECOVERS_WITHIN_S", 60.0)
    recovered = recovery.recover_often(tmp_path, chunks=3_000, times=1)
    assert recovered.violations == []
    assert recovered.without_snapshot_s
