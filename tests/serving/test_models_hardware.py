"""What is chosen for a machine: replicas, threads, precision, and how much of the machine there is."""

import pytest

from serving.models.hardware import choose_reranking_precision, share_cores, usable_cores, whole_cores
from serving.protocols import Device, Precision


@pytest.mark.parametrize(
    ("cores", "replicas", "threads"),
    [(1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 4, 1), (8, 4, 2), (64, 4, 16)],
)
def test_cores_go_to_replicas_first_and_then_to_threads(cores: int, replicas: int, threads: int) -> None:
    assert share_cores(cores, threads=None, replicas=0) == (replicas, threads)


def test_what_the_settings_name_is_taken_and_the_rest_fits_it() -> None:
    assert share_cores(8, threads=4, replicas=0) == (2, 4)
    assert share_cores(8, threads=None, replicas=1) == (1, 8)
    assert share_cores(2, threads=None, replicas=3) == (3, 1)
    assert share_cores(2, threads=8, replicas=0) == (1, 8)


def test_a_containers_share_is_rounded_down_to_whole_cores() -> None:
    assert whole_cores("250000 100000\n") == 2
    assert whole_cores("50000 100000\n") == 1
    assert whole_cores("max 100000\n") is None
    assert usable_cores() >= 1


def test_rerankers_keep_full_precision_on_the_cpu_unless_told() -> None:
    assert choose_reranking_precision(Precision.AUTO, Device.CPU) is Precision.FLOAT32
    assert choose_reranking_precision(Precision.BFLOAT16, Device.CPU) is Precision.BFLOAT16
