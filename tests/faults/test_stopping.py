"""A short run of what `python -m tests.faults.stopping` does at length."""

from pathlib import Path

import pytest

from tests.faults.stopping import STREAMS, stop_often

pytestmark = pytest.mark.processes


def test_streams_at_a_stop_end_whole_or_say_that_they_do_not(tmp_path: Path) -> None:
    stopped = stop_often(tmp_path, times=1)
    assert stopped.violations == []
    assert stopped.ends.total() == STREAMS
    assert stopped.ends["whole"]
    assert stopped.ends["whole"] < STREAMS
