"""Remembers computed rows for the batchers of a process: a text that comes again costs no forward pass."""

import hashlib
import threading
from collections import OrderedDict
from typing import NamedTuple

from serving.batching.model import Input, Rows

ENTRY_BYTES = 350
"""What an entry takes beside its row's numbers: key, array header, tuple, place in the order (measured: 347)."""


class RememberedRow(NamedTuple):
    """A computed row, float32 (width,), read-only."""

    row: Rows
    whole_length: int
    """The text's tokens before cutting: a caller who does not want it cut must not get the row of a cut text."""


def row_key(fingerprint: str, cache_salt: str, text: Input) -> bytes:
    """Tells the model, who may share, and the input apart, without keeping any text in memory.

    `repr` writes two different inputs never alike, whatever they contain.
    """
    return hashlib.blake2b(repr((fingerprint, cache_salt, text)).encode(), digest_size=32).digest()


class RowCache:
    """The rows used last, within `max_bytes`. Thread-safe: batchers' loops read it, their threads write it."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0
        self._bytes = 0
        self._rows: OrderedDict[bytes, RememberedRow] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """What the rows take now."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: bytes) -> RememberedRow | None:
        """Counts as a use, and as a hit or a miss."""
        with self._lock:
            found = self._rows.get(key)
            if found is None:
                self.misses += 1
            else:
                self.hits += 1
                self._rows.move_to_end(key)
            return found

    def put(self, key: bytes, row: Rows, *, whole_length: int) -> None:
        """Keeps a copy, and lets go of the rows that were not used for longest."""
        kept = row.copy()
        kept.setflags(write=False)
        with self._lock:
            replaced = self._rows.pop(key, None)
            if replaced is not None:
                self._bytes -= ENTRY_BYTES + replaced.row.nbytes
            self._rows[key] = RememberedRow(kept, whole_length)
            self._bytes += ENTRY_BYTES + kept.nbytes
            while self._bytes > self.max_bytes:
                _, oldest = self._rows.popitem(last=False)
                self._bytes -= ENTRY_BYTES + oldest.row.nbytes
