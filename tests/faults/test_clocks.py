"""A short run of what `python -m tests.faults.clocks` does at length."""

from pathlib import Path

import pytest

from tests.faults.clocks import JUMPS, jump_often

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]


def test_clocks_that_jump_cut_no_answer_hold_up_no_document_and_sweep_once(tmp_path: Path) -> None:
    found = jump_often(tmp_path, times=1, seed=1)
    assert found.violations == []
    assert found.jumps == len(JUMPS)
