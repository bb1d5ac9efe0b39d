"""Prepares a picture of text for OCR: finds the lines that frame tables, and takes them and coloured grounds out.

Left in, they keep tesseract from reading most of the cells.
"""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ingest.parse.pdf_segments import Rules

Mask: TypeAlias = NDArray[np.bool_]


def prepared(image: Image.Image) -> tuple[Image.Image, Rules]:
    """The grey picture on a white ground without its long thin lines, and where they were, in its pixels."""
    pixels = _on_white(np.asarray(image))
    dark: Mask = pixels < _DARK
    least = max(_LEAST_LENGTH, max(image.size) // 30)
    across = _thin_lines(dark, least)
    down = _thin_lines(dark.T, least).T
    rules = Rules(
        [(float(x0), float(x1), (y0 + y1) / 2) for x0, y0, x1, y1 in _strokes(across)],
        [(float(y0), float(y1), (x0 + x1) / 2) for y0, x0, y1, x1 in _strokes(down.T)],
    )
    lines = across | down
    # Lines have grey edges, which would be read as letters of one stroke.
    pixels[_grown(lines)] = 255
    return Image.fromarray(pixels), rules


_DARK = 128
_LEAST_LENGTH = 60
"""Longer than the strokes of letters."""
_MOST_THICKNESS = 16
"""1.3 mm at 300 dots an inch."""
_MAX_STROKES = 600


def _on_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy in which an even coloured ground behind letters is white; photographs have none."""
    height, width = pixels.shape
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    padded = np.pad(pixels, ((0, rows * _TILE - height), (0, columns * _TILE - width)), mode="edge")
    brightest = padded.reshape(rows, _TILE, columns, _TILE).max(axis=(1, 3))
    whitened = pixels.copy()
    for row, column in np.argwhere((brightest < _WHITE) & (brightest > _DARK)):
        tile = np.s_[row * _TILE : (row + 1) * _TILE, column * _TILE : (column + 1) * _TILE]
        ground = int(brightest[row, column])
        if np.count_nonzero(pixels[tile] >= ground - _EVEN) >= _GROUND_SHARE * pixels[tile].size:
            whitened[tile] = np.minimum(255, pixels[tile] * (255.0 / ground)).astype(np.uint8)
    return whitened


_TILE = 16
_WHITE = 245
_EVEN = 6
_GROUND_SHARE = 0.2


def _thin_lines(dark: Mask, length: int) -> Mask:
    """The pixels of runs of `length` and more to the right that are not part of a dark area."""
    if dark.shape[1] <= length or dark.shape[0] <= _MOST_THICKNESS:
        return np.zeros_like(dark)
    long = _runs(dark, length)
    return long & ~_runs(long.T, _MOST_THICKNESS + 1).T


def _runs(mask: Mask, length: int) -> Mask:
    """The pixels that lie in `length` or more set ones to the right of each other. Its morphological opening."""
    sums = np.zeros((mask.shape[0], mask.shape[1] + 1), dtype=np.uint16)
    np.cumsum(mask, axis=1, dtype=np.uint16, out=sums[:, 1:])
    starts = sums[:, length:] - sums[:, :-length] == length
    padded = np.zeros((mask.shape[0], mask.shape[1] + length), dtype=np.uint16)
    np.cumsum(starts, axis=1, dtype=np.uint16, out=padded[:, length : length + starts.shape[1]])
    padded[:, length + starts.shape[1] :] = padded[:, length + starts.shape[1] - 1 : length + starts.shape[1]]
    found: Mask = padded[:, length:] - padded[:, : mask.shape[1]] > 0
    return found


def _strokes(lines: Mask) -> Iterator[tuple[int, int, int, int]]:
    """x0, y0, x1, y1 of each line: its runs in neighbouring rows, which are many where it was scanned askew."""
    growing: list[tuple[int, int, int, int]] = []
    found = 0
    for y in np.flatnonzero(lines.any(axis=1)):
        edges = np.flatnonzero(np.diff(lines[y], prepend=False, append=False))
        now: list[tuple[int, int, int, int]] = []
        for x0, x1 in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            left, top, right, _ = x0, int(y), x1, 0
            for stroke in [one for one in growing if one[3] >= y - 1 and one[0] <= x1 and x0 <= one[2]]:
                growing.remove(stroke)
                left, top, right = min(left, stroke[0]), min(top, stroke[1]), max(right, stroke[2])
            now.append((left, top, right, int(y) + 1))
        for stroke in growing:
            if stroke[3] < y - 1:
                yield stroke
                found += 1
        growing = [stroke for stroke in growing if stroke[3] >= y - 1] + now
        if found + len(growing) > _MAX_STROKES:
            # A picture, and not a page with tables.
            return
    yield from growing


def _grown(mask: Mask) -> Mask:
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown
