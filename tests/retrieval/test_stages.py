"""Stages are timed whether they run one after the other, at once, or fail."""

import pytest

from retrieval.stages import Stages


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_stage_that_comes_back_is_summed_and_the_first_to_begin_stands_first() -> None:
    clock = Clock()
    stages = Stages(clock)
    for name, seconds in (("embed", 0.004), ("load", 0.002), ("embed", 0.0003)):
        with stages.measure(name):
            clock.now += seconds
    assert [name for name, _ in stages] == ["embed", "load"]
    assert dict(stages) == pytest.approx({"embed": 0.0043, "load": 0.002})
    assert stages.server_timing() == "embed;dur=4.3, load;dur=2.0"


def test_what_a_stage_does_twice_at_once_counts_once() -> None:
    clock = Clock()
    stages = Stages(clock)
    first, second = stages.measure("rerank"), stages.measure("rerank")
    first.__enter__()
    clock.now += 1
    second.__enter__()
    clock.now += 2
    first.__exit__(None, None, None)
    clock.now += 4
    second.__exit__(None, None, None)
    assert dict(stages) == pytest.approx({"rerank": 7.0})


def test_a_stage_that_fails_is_measured_and_one_under_way_is_not_told() -> None:
    clock = Clock()
    stages = Stages(clock)

    def fail() -> None:
        with stages.measure("embed"):
            clock.now += 0.5
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with stages.measure("load"):
        clock.now += 1
        assert dict(stages) == pytest.approx({"embed": 0.5})


def test_nothing_was_done_and_nothing_is_told() -> None:
    assert Stages().server_timing() == ""
