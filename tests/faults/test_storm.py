"""A short run of what `python -m tests.faults.storm` does at length."""

from pathlib import Path

import pytest

from tests.faults.storm import STRACE, storm

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("errors", [0, 2])
def test_what_was_acknowledged_is_there_and_what_was_deleted_is_not(tmp_path: Path, errors: int) -> None:
    if errors and STRACE is None:
        pytest.skip("strace, which makes a disk fail, is not installed")
    told = storm(tmp_path, kills=2 - errors, errors=errors, seed=7, say=print)
    assert told.there
    assert told.gone
    assert not errors or told.refused
