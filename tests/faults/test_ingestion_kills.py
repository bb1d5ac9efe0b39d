"""The worker is killed again and again while files come in, and they all come in, once and whole."""

from pathlib import Path

import pytest

from tests.faults import kills

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]


def test_a_worker_killed_four_times_ingests_every_file_once_and_whole(tmp_path: Path) -> None:
    killed = kills.run(tmp_path, times=4, files=16, seed=7)
    assert killed.differences == ()
    assert killed.left_behind == 0
