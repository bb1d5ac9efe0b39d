"""A short run of what `python -m tests.faults.exhaustion` does at length."""

import errno
from pathlib import Path

import pytest

from app.errors import is_out_of_means
from tests.faults.exhaustion import exhaust

pytestmark = pytest.mark.processes


def test_without_files_memory_or_threads_nothing_acknowledged_is_lost_and_work_goes_on(
    tmp_path: Path,
) -> None:
    found = exhaust(tmp_path, times=1, seed=1)
    assert found.violations == []
    assert found.acknowledged


@pytest.mark.parametrize(
    ("error", "is_the_machines"),
    [
        (MemoryError(), True),
        (OSError(errno.EMFILE, "Too many open files"), True),
        (RuntimeError("can't start new thread"), True),
        (OSError(errno.ENOENT, "No such file"), False),
        (RuntimeError("a bug"), False),
        (KeyError("a bug"), False),
    ],
)
def test_what_the_machine_lacks_is_told_apart_from_bugs(error: Exception, is_the_machines: bool) -> None:
    assert is_out_of_means(error) == is_the_machines
