"""Reads the words of an image with Debian's tesseract: one short-lived process an image, told where each word is."""

import shutil
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image

from ingest.elements import ParseFailed, ParseFailure
from ingest.parse.pdf_segments import Segment, Word
from ingest.visible import clean

PROGRAMS = "/usr/local/bin:/usr/bin:/bin"
"""Where the system's programs are: in the sandbox there are no others."""
INSTALL = "Install Debian's packages tesseract-ocr and tesseract-ocr-eng on the worker's machine"


@dataclass(frozen=True, slots=True)
class Tesseract:
    """The program, checked to be there with its languages."""

    program: str
    languages: str

    @classmethod
    def find(cls, languages: str, *, programs: str) -> "Tesseract | None":
        """None where it is in no such folder. Raises ParseFailed (unsupported) for a language that is not there."""
        program = shutil.which("tesseract", path=programs)
        if program is None:
            return None
        listed = _run([program, "--list-langs"], b"", timeout_s=30).split()
        missing = [name for name in languages.split("+") if name.encode() not in listed]
        if missing:
            packages = ", ".join(f"tesseract-ocr-{name.replace('_', '-').lower()}" for name in missing)
            raise ParseFailed(
                ParseFailure.UNSUPPORTED,
                f"This file is to be read by OCR in languages that are not installed: {', '.join(missing)}. Install "
                f"Debian's package {packages} on the worker's machine, or change the OCR languages.",
            )
        return cls(program, languages)

    def read(
        self, image: Image.Image, *, dots_per_inch: int, one_block: bool = False, timeout_s: float = 60.0
    ) -> list[Segment]:
        """The lines of a grey image, in reading order; boxes in its pixels. Raises ParseFailed.

        As `one_block`, it is not searched for columns and paragraphs, which passes over lone figures.
        """
        if _is_blank(image):
            return []
        # A plain PGM: no compressing here, no temporary file, and nothing to guess for the reader.
        sent = b"P5 %d %d 255\n" % image.size + image.tobytes()
        command = [self.program, "stdin", "stdout", "-l", self.languages]
        options = ["--dpi", str(dots_per_inch), "--psm", "6" if one_block else "3"]
        answer = _run([*command, *options, "tsv"], sent, timeout_s=timeout_s)
        return _segments(answer.decode("utf-8", "replace").splitlines()[1:])


def _run(command: Sequence[str], sent: bytes, *, timeout_s: float) -> bytes:
    try:
        ran = subprocess.run(
            command,
            input=sent,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            # With threads it is slower on cores that others use too, and takes more processes than it may have.
            env={"PATH": PROGRAMS, "LANG": "C.UTF-8", "OMP_THREAD_LIMIT": "1"},
        )
    except subprocess.TimeoutExpired as error:
        raise ParseFailed(
            ParseFailure.LIMIT,
            f"OCR of one page took more than {timeout_s:.0f} s. Scan it with less detail, or upload its text.",
        ) from error
    if ran.returncode != 0:
        raise ParseFailed(
            ParseFailure.LIMIT if ran.returncode < 0 else ParseFailure.UNSUPPORTED,
            "OCR did not work on this file: tesseract failed. Check that it and its languages are installed well.",
        )
    return ran.stdout


def _is_blank(image: Image.Image) -> bool:
    counts = image.histogram()
    shades = [shade for shade, count in enumerate(counts) if count]
    return shades[-1] - shades[0] < _LEAST_CONTRAST


_LEAST_CONTRAST = 16


def _segments(rows: Iterable[str]) -> list[Segment]:
    """Tesseract's table of words as segments: its lines, cut at gaps."""
    words: list[tuple[float, tuple[int, int, int], tuple[Word, int, int]]] = []
    for row in rows:
        level, _, block, paragraph, line, _, left, top, width, height, confidence, text = row.split("\t", 11)
        word = " ".join(clean(text).split())
        if level == _WORD_LEVEL and word.strip(_STROKES):
            found = Word(word, float(left), float(left) + float(width))
            place = (found, int(top), int(top) + int(height))
            words.append((float(confidence), (int(block), int(paragraph), int(line)), place))
    letters = sum(character.isalnum() for _, _, (found, _, _) in words for character in found.text)
    least = _LEAST_CONFIDENCE if letters >= _FEW_LETTERS else _LEAST_CONFIDENCE_IN_FEW
    lines: dict[tuple[int, int, int], list[tuple[Word, int, int]]] = {}
    for certainty, number, place in words:
        if certainty >= least:
            lines.setdefault(number, []).append(place)
    segments: list[Segment] = []
    paragraphs: dict[tuple[int, ...], int] = {}
    for (*block_and_paragraph, _), places in lines.items():
        known_as = paragraphs.setdefault(tuple(block_and_paragraph), len(paragraphs))
        segments += _line_segments(places, known_as)
    return _with_even_sizes(segments)


_WORD_LEVEL = "5"
_LEAST_CONFIDENCE = 20.0
"""Of 100. Below stand specks and pictures that were read as letters."""
_FEW_LETTERS = 12
_LEAST_CONFIDENCE_IN_FEW = 80.0
"""Where there is next to nothing else: the twigs of a photograph make a word or two."""
_STROKES = "|¦_"
"""What is left of lines."""


def _line_segments(words: Sequence[tuple[Word, int, int]], paragraph: int) -> list[Segment]:
    size = float(statistics.median(bottom - top for _, top, bottom in words))
    runs = [[words[0]]]
    for before, word in pairwise(words):
        if word[0].x0 - before[0].x1 > _WIDE_GAP * size:
            runs.append([])
        runs[-1].append(word)
    return [
        Segment(
            text=" ".join(word.text for word, _, _ in run),
            x0=min(word.x0 for word, _, _ in run),
            y0=float(min(top for _, top, _ in run)),
            x1=max(word.x1 for word, _, _ in run),
            y1=float(max(bottom for _, _, bottom in run)),
            size=size,
            bold=False,
            words=[word for word, _, _ in run],
            paragraph=paragraph,
        )
        for run in runs
    ]


_WIDE_GAP = 1.6
"""Of the words' height, which is that of their letters and so less than the type size."""


def _with_even_sizes(segments: list[Segment]) -> list[Segment]:
    """Gives lines of about the page's usual height that size, as the ink of two equal lines is never equal."""
    usual = statistics.median(segment.size for segment in segments) if segments else 0.0
    for order, segment in enumerate(segments):
        segment.order = order
        if 0.6 * usual <= segment.size <= 1.4 * usual:
            segment.size = usual
    return segments
