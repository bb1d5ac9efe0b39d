"""Encrypted files that can be written as a stream and read from any place: AES-256-GCM, a segment at a time.

A segment's nonce is its number and whether it is the last, and the file's name is authenticated with it: one that was
changed, moved, swapped with another file's or cut off does not open. Nonces never repeat: a key encrypts one file.
The construction is STREAM (Hoang et al. 2015).
"""

import io
import os
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from retrieval.data_keys import NONCE_BYTES

SEGMENT_BYTES = 64 * 1024
TAG_BYTES = 16
COPY_BYTES = 1 << 20


class Damaged(Exception):
    """Stored bytes fail their check: they were changed, cut, or lie under another key. Nothing of them is served."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The stored bytes of {name} fail their check: they were changed, cut off, or belong to another key. "
            "`strongroom verify` tells what else differs; a backup has them."
        )
        self.name = name


class SegmentWriter:
    """Encrypts a stream into `file`; it is whole once `finish` was called."""

    def __init__(self, file: BinaryIO, key: bytes, name: str) -> None:
        self._file = file
        self._cipher = AESGCM(key)
        self._name = name.encode()
        self._number = 0
        self._waiting = bytearray()

    def write(self, data: bytes) -> int:
        self._waiting += data
        # The last one is kept back: only its end tells that it is the last.
        while len(self._waiting) > SEGMENT_BYTES:
            self._write_segment(self._waiting[:SEGMENT_BYTES], is_last=False)
            del self._waiting[:SEGMENT_BYTES]
        return len(data)

    def finish(self) -> None:
        self._write_segment(self._waiting, is_last=True)
        self._waiting.clear()

    def _write_segment(self, plain: bytearray, *, is_last: bool) -> None:
        self._file.write(self._cipher.encrypt(_nonce(self._number, is_last=is_last), plain, self._name))
        self._number += 1


class _SegmentReader(io.RawIOBase):
    def __init__(self, path: Path, key: bytes, name: str, start: int) -> None:
        self._cipher = AESGCM(key)
        self._name = name
        self._start = start
        self._file = path.open("rb", buffering=0)
        stored = os.fstat(self._file.fileno()).st_size - start
        self._segments = -(-stored // (SEGMENT_BYTES + TAG_BYTES))
        self._size = stored - TAG_BYTES * self._segments
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._place = base + offset
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # what the buffered reader passes
        if self._place >= self._size:
            if self._size <= 0:
                self._segment(0)
            return 0
        number, start = divmod(self._place, SEGMENT_BYTES)
        piece = self._segment(number)[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        self._place += len(piece)
        return len(piece)

    def close(self) -> None:
        self._file.close()
        super().close()

    def check(self) -> None:
        """Raises Damaged unless the first and the last segment open."""
        self._segment(0)
        self._segment(max(self._segments - 1, 0))

    def _segment(self, number: int) -> bytes:
        status = os.fstat(self._file.fileno())
        if status.st_nlink == 0:
            # Deleted meanwhile: who still reads it gets no further.
            raise Damaged(self._name)
        length = SEGMENT_BYTES + TAG_BYTES
        encrypted = os.pread(self._file.fileno(), length, self._start + number * length)
        try:
            nonce = _nonce(number, is_last=number >= self._segments - 1)
            return self._cipher.decrypt(nonce, encrypted, self._name.encode())
        except (InvalidTag, ValueError) as error:
            raise Damaged(self._name) from error


def open_segments(path: Path, key: bytes, name: str, *, start: int = 0) -> io.BufferedReader:
    """Reads and seeks like any file, once its ends were checked. Reading raises Damaged; so does this.

    `start` is where in the file the first segment begins.
    """
    reader = _SegmentReader(path, key, name, start)
    try:
        reader.check()
    except BaseException:
        reader.close()
        raise
    return io.BufferedReader(reader, SEGMENT_BYTES)


def encrypt_file(source: Path, target: Path, key: bytes, name: str) -> None:
    with source.open("rb") as plain, target.open("xb") as file:
        writer = SegmentWriter(file, key, name)
        while piece := plain.read(COPY_BYTES):
            writer.write(piece)
        writer.finish()


def decrypt_file(source: Path, target: Path, key: bytes, name: str) -> None:
    """Raises Damaged."""
    with open_segments(source, key, name) as plain, target.open("xb") as file:
        while piece := plain.read(COPY_BYTES):
            file.write(piece)


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(NONCE_BYTES - 1) + bytes([is_last])
