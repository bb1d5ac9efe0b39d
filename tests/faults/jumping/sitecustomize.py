"""Imported by any Python with this folder in its PYTHONPATH: its clock is off by what a file says, and may so jump.

The clock that never jumps (`time.monotonic`) is left alone.
"""

import os
import time
from pathlib import Path

OFFSET = Path(os.environ["TESTS_CLOCK"])  # noqa: TID251 - the only way to tell it
_true_time = time.time


def _off() -> float:
    return _true_time() + float(OFFSET.read_text())


time.time = _off
