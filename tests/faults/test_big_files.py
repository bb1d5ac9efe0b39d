"""Huge files go in within a bounded memory, and can be cancelled: smaller ones than `tests.faults.big_files` takes."""

from pathlib import Path

import pytest

from tests.faults import big_files
from tests.faults.big_files import MIB

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

MOST_BYTES = 1024 * MIB
MOST_GROWTH_BYTES = 384 * MIB
"""Over what an idle worker takes: the same for a file of any length."""


def test_a_long_pdf_and_a_large_text_go_in_within_a_bounded_memory_and_are_cancelled_in_time(
    tmp_path: Path,
) -> None:
    for measured in big_files.measure(tmp_path, pages=400, text_bytes=24 * MIB):
        assert measured.peak_bytes <= MOST_BYTES, measured
        assert measured.peak_bytes - measured.idle_bytes <= MOST_GROWTH_BYTES, measured
        assert measured.cancelled_s <= 2.0, measured
