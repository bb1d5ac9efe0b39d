"""A short run of what `python -m tests.faults.bit_rot` does at length."""

from pathlib import Path

from tests.faults.bit_rot import rot


async def test_a_flipped_bit_is_told_and_nothing_wrong_is_served(tmp_path: Path) -> None:
    outcomes = await rot(tmp_path, times=25, seed=3, say=print)
    assert outcomes["told in a reply"] > 5
    assert outcomes["told at the start"]
    assert outcomes["told by verify"]
    # Some bits change nothing: the case of a hexadecimal digit.
    assert outcomes["did no harm"] < 3
