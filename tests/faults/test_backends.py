"""A short run of what `python -m tests.faults.backends` does at length."""

from pathlib import Path

import pytest

from tests.faults.backends import IN_THE_MIDDLE, Tally, ground, suffer
from tests.faults.proxy import Fault

pytestmark = pytest.mark.slow

OF_THE_ENGINE = (
    (Fault.HANGS, 0),
    (Fault.GONE, 0),
    (Fault.RESET, IN_THE_MIDDLE),
    (Fault.CUT, IN_THE_MIDDLE),
    (Fault.LIES, 0),
    (Fault.GARBLES, 0),
)
OF_THE_MODELS = ((Fault.GONE, 0), (Fault.CUT, 0), (Fault.LIES, 0), (Fault.GARBLES, 0))


@pytest.mark.parametrize(("role", "faults"), [("engine", OF_THE_ENGINE), ("models", OF_THE_MODELS)])
async def test_a_backend_that_fails_makes_no_answer_that_only_looks_whole_and_is_back_soon(
    tmp_path: Path, role: str, faults: tuple[tuple[Fault, int], ...]
) -> None:
    tally = Tally()
    async with ground(tmp_path) as on:
        for fault, after_bytes in faults:
            await suffer(on, role, fault, after_bytes, tally)
    assert not tally.wrong
    assert not tally.late
    assert tally.told >= len(faults)
