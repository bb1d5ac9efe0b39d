"""The token budget of a GPU: found with a made-up memory, kept in a real file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from serving.models.token_budget import MOST_TOKENS, find_token_budget, keep_budget, read_budget

GIB = 1024**3


def memory_of(*, bytes_a_text: int, available: int) -> tuple[Callable[[int], int | None], list[int]]:
    """A device on which every text takes as much, and the batches that were tried on it."""
    tried: list[int] = []

    def peak_bytes_of(texts: int) -> int | None:
        tried.append(texts)
        peak = texts * bytes_a_text
        return peak if peak <= available else None

    return peak_bytes_of, tried


@pytest.mark.parametrize("bytes_a_text", [GIB // 3, GIB // 7, GIB // 20])
def test_the_budget_fills_a_third_to_a_half_of_free_memory(bytes_a_text: int) -> None:
    peak_bytes_of, _ = memory_of(bytes_a_text=bytes_a_text, available=10 * GIB)
    texts, rest = divmod(find_token_budget(peak_bytes_of, max_tokens=512, free_bytes=10 * GIB), 512)
    assert rest == 0
    assert 10 * GIB / 3 - bytes_a_text <= texts * bytes_a_text <= 5 * GIB


def test_batches_grow_from_one_text_and_stop_at_the_first_that_is_too_large() -> None:
    peak_bytes_of, tried = memory_of(bytes_a_text=GIB, available=16 * GIB)
    assert find_token_budget(peak_bytes_of, max_tokens=256, free_bytes=13 * GIB) == 6 * 256
    assert tried == [1, 2, 4, 8, 6]


def test_running_out_of_memory_ends_the_growth() -> None:
    peak_bytes_of, tried = memory_of(bytes_a_text=GIB, available=2 * GIB)
    assert find_token_budget(peak_bytes_of, max_tokens=256, free_bytes=100 * GIB) == 2 * 256
    assert tried == [1, 2, 4, 3]


def test_a_text_that_does_not_fit_gives_no_budget() -> None:
    peak_bytes_of, _ = memory_of(bytes_a_text=GIB, available=GIB // 2)
    assert find_token_budget(peak_bytes_of, max_tokens=8192, free_bytes=GIB) == 0


def test_a_large_device_is_not_filled_for_the_sake_of_it() -> None:
    peak_bytes_of, tried = memory_of(bytes_a_text=1, available=GIB)
    assert find_token_budget(peak_bytes_of, max_tokens=512, free_bytes=GIB) == MOST_TOKENS
    assert max(tried) * 512 == MOST_TOKENS


def test_budgets_are_kept_by_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "budgets.json"
    assert read_budget(path, "a model on one device") is None
    keep_budget(path, "a model on one device", 65_536)
    keep_budget(path, "the model on another", 32_768)
    assert read_budget(path, "a model on one device") == 65_536
    assert read_budget(path, "the model on another") == 32_768
    assert read_budget(path, "another model") is None
    assert [file.name for file in tmp_path.iterdir()] == ["budgets.json"]


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"a": "many"}', "\ud800"], ids=repr)
def test_a_damaged_file_is_measured_anew(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "budgets.json"
    path.write_bytes(damage.encode("utf-8", "surrogatepass"))
    assert read_budget(path, "key") is None
    keep_budget(path, "key", 512)
    assert read_budget(path, "key") == 512


def test_a_folder_that_cannot_be_written_costs_only_the_keeping(tmp_path: Path) -> None:
    keep_budget(tmp_path / "absent" / "budgets.json", "key", 512)
    assert read_budget(tmp_path / "absent" / "budgets.json", "key") is None
