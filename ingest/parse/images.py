"""Reads the text of pictures (photographs, scans, screenshots) by OCR: a document of one page, boxes in pixels."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageOps

from ingest.elements import ElementKind, Parsed, ParseFailed, ParseFailure, ParseOptions
from ingest.parse.build import DocumentBuilder, Line
from ingest.parse.ocr import INSTALL, PROGRAMS, Tesseract
from ingest.parse.ocr_page import read_page
from ingest.parse.pdf_headings import TypeSizes
from ingest.parse.pdf_layout import lay_out
from retrieval.places import Box


def parse_image(path: Path, options: ParseOptions, *, programs: str = PROGRAMS) -> Iterator[Parsed]:
    """The text of a PNG, JPEG, WebP, TIFF, BMP or the first frame of a GIF. Raises ParseFailed."""
    tesseract = Tesseract.find(options.ocr_languages, programs=programs)
    if tesseract is None:
        raise ParseFailed(
            ParseFailure.UNSUPPORTED,
            f"This is a picture, and there is no OCR here. {INSTALL} and add the file again.",
        )
    image = _open(path)
    scale = _scale(image)
    builder = DocumentBuilder(page_count=1)
    segments, rules = read_page(tesseract, _enlarged(image, scale), dots_per_inch=_DOTS_PER_INCH)
    sizes = TypeSizes()
    sizes.learn(segments)
    pixels_a_point = _DOTS_PER_INCH / 72 / scale
    for block in lay_out(segments, rules, image.width / pixels_a_point):
        lines = [_in_pixels(line, pixels_a_point) for line in block.lines(1)]
        level = None if block.kind is ElementKind.TABLE else sizes.level([row[0] for row in block.rows])
        if level is None:
            builder.add(block.kind, lines)
        else:
            builder.add_heading(lines, level=level)
    try:
        yield from builder.finish()
    except ParseFailed as failed:
        if failed.code is not ParseFailure.EMPTY:
            raise
        raise ParseFailed(
            ParseFailure.EMPTY,
            "OCR found no text in this picture. If it shows some, add a larger, sharper or more upright picture.",
        ) from failed


def _open(path: Path) -> Image.Image:
    """The picture in grey, upright as its camera was held. Raises ParseFailed."""
    try:
        with warnings.catch_warnings():
            # Pillow's own limit, which warns before and fails far above ours.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # The list keeps Pillow's many other readers (EPS, PSD, FITS) from files that claim to be theirs.
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise _too_large()
                # A JPEG is decoded in grey at once.
                image.draft("L", image.size)
                return ImageOps.exif_transpose(_grey(image))
    except Image.DecompressionBombError as error:
        raise _too_large() from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ParseFailed(
            ParseFailure.CORRUPT, "This picture is damaged and cannot be opened. Save or export it again."
        ) from error


def _too_large() -> ParseFailed:
    return ParseFailed(
        ParseFailure.TOO_LARGE,
        f"This picture has more than {_MAX_PIXELS // 1_000_000} million pixels. Save it with fewer.",
    )


_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
_MAX_PIXELS = 100_000_000


def _grey(image: Image.Image) -> Image.Image:
    """What is transparent is shown on white, as viewers do: else black letters would stand on black."""
    exif = image.getexif()
    if image.has_transparency_data:
        shown = image.convert("LA")
        grey = Image.new("L", image.size, 255)
        grey.paste(shown.getchannel("L"), mask=shown.getchannel("A"))
    elif image.mode.startswith("I;16"):
        grey = image.convert("I").point(lambda value: value / 256).convert("L")
    else:
        grey = image.convert("L")
    # Which side is up is said in it.
    grey.info["exif"] = exif.tobytes()
    return grey


def _scale(image: Image.Image) -> float:
    """Screens show letters of ten pixels, of which tesseract reads little; large pictures only take longer."""
    pixels = image.width * image.height
    if pixels <= _SMALL_PIXELS:
        return 3.0 if pixels <= _SMALL_PIXELS / 8 else 2.0
    return min(1.0, math.sqrt(_READ_PIXELS / pixels))


_SMALL_PIXELS = 2_500_000
_READ_PIXELS = 12_000_000


def _enlarged(image: Image.Image, scale: float) -> Image.Image:
    if scale == 1.0:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


_DOTS_PER_INCH = 300


def _in_pixels(line: Line, pixels_a_point: float) -> Line:
    if line.box is None:
        return line
    box = line.box
    sides = (round(side * pixels_a_point, 1) for side in (box.x0, box.y0, box.x1, box.y1))
    return replace(line, box=Box(*sides))
