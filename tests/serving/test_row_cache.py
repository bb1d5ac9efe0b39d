"""The cache of computed rows."""

import threading
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.batching.row_cache import ENTRY_BYTES, RowCache, row_key

ROW_BYTES = ENTRY_BYTES + 4 * 4


def row(value: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.full(4, value, np.float32)


def test_a_remembered_row_is_found_with_its_length_and_cannot_be_changed() -> None:
    cache = RowCache(10 * ROW_BYTES)
    original = row(1)
    cache.put(b"a", original, whole_length=7)
    original[:] = 9
    found = cache.get(b"a")
    assert found is not None
    assert found.row.tolist() == [1] * 4
    assert found.whole_length == 7
    with pytest.raises(ValueError, match="read-only"):
        found.row[0] = 2
    assert cache.get(b"b") is None
    assert (cache.hits, cache.misses) == (1, 1)


def test_model_salt_and_input_all_tell_rows_apart() -> None:
    keys = {
        row_key(fingerprint, salt, text)
        for fingerprint in ("m", "n")
        for salt in ("", "s")
        for text in ("a", ("a",), ("a", "b"), ("a', 'b",), "('a', 'b')", "\ud800", "ab")
    }
    assert len(keys) == 2 * 2 * 7


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=80), st.integers(0, 5))
def test_it_holds_the_rows_used_last_within_its_bytes(uses: list[tuple[bool, int]], room: int) -> None:
    cache = RowCache(room * ROW_BYTES)
    oracle: OrderedDict[int, None] = OrderedDict()
    for is_put, number in uses:
        if is_put:
            cache.put(str(number).encode(), row(number), whole_length=1)
            oracle.pop(number, None)
            oracle[number] = None
            while len(oracle) > room:
                oracle.popitem(last=False)
        else:
            found = cache.get(str(number).encode())
            assert (found is not None) == (number in oracle)
            if number in oracle:
                oracle.move_to_end(number)
        assert cache.held_bytes == len(cache) * ROW_BYTES <= cache.max_bytes
        assert len(cache) == len(oracle)


def test_threads_may_share_it() -> None:
    cache = RowCache(50 * ROW_BYTES)

    def use(first: int) -> None:
        for number in range(first, first + 2000):
            cache.put(str(number % 100).encode(), row(number % 100), whole_length=1)
            found = cache.get(str((number * 7) % 100).encode())
            assert found is None or found.row[0] == (number * 7) % 100

    threads = [threading.Thread(target=use, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache) == 50
    assert cache.held_bytes == 50 * ROW_BYTES
    assert cache.hits + cache.misses == 8000
