"""A short run of what `python -m tests.faults.overload` does at length, whose figures need a machine for itself."""

import asyncio
from pathlib import Path

import pytest

from tests.faults.overload import MIXES, overload, stack_under_test

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]


def test_what_is_too_much_is_refused_with_a_time_to_wait_and_the_rest_is_answered(tmp_path: Path) -> None:
    with stack_under_test(tmp_path) as (stack, light):
        loaded = asyncio.run(overload(stack, light, MIXES[0], seconds=4.0))
    assert list(loaded.wrong) == []
    assert loaded.refused
    assert loaded.goodput > loaded.peak / 4
