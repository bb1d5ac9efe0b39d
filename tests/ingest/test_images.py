"""Pictures are documents of one page, read by OCR: which formats, how large, which side up."""

import zlib
from pathlib import Path

import pytest
from PIL import Image

from ingest.elements import Parsed, ParseFailed, ParseFailure, ParseOptions
from ingest.parse.images import parse_image
from tests.ingest.pdf_files import Document, needs_tesseract, picture

pytestmark = pytest.mark.slow

LINES = ["The strongroom lies below the hill.", "Its key hangs in the hall."]
ORIENTATION = 0x0112


def image_of(lines: list[str] = LINES) -> Image.Image:
    return picture(lines, size=(800, 400), x=60, y=80)


def read(path: Path, options: ParseOptions | None = None) -> Document:
    found: list[Parsed] = list(parse_image(path, options or ParseOptions()))
    return Document.of(found)


@needs_tesseract
@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tiff", "bmp", "gif"])
def test_text_is_read_from_every_format_with_boxes_in_pixels(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    image_of().save(path)
    document = read(path)
    assert "Its key hangs in the hall." in document.text
    place = document.place_of("Its key")
    assert place.page == 1
    assert place.box is not None
    assert place.box.x0 == pytest.approx(60, abs=5)
    assert place.box.y0 == pytest.approx(80 + 44 + 7, abs=8)
    assert document.parts[-1].page_count == 1


@needs_tesseract
@pytest.mark.parametrize("mode", ["1", "RGB", "P", "I;16", "CMYK"])
def test_text_is_read_in_every_colour_mode(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.tiff"
    image = image_of()
    if mode == "I;16":
        image = image.convert("I").point(lambda value: value * 257).convert("I;16")
    else:
        image = image.convert(mode)
    image.save(path)
    assert "Its key hangs in the hall." in read(path).text


@needs_tesseract
def test_black_letters_on_nothing_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    letters = image_of().point(lambda value: 255 - value)
    image = Image.new("RGBA", letters.size, (0, 0, 0, 0))
    image.putalpha(letters)
    image.save(path)
    assert "Its key hangs in the hall." in read(path).text


@needs_tesseract
def test_a_photograph_is_turned_as_its_camera_was_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image_of().transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    document = read(path)
    assert "Its key hangs in the hall." in document.text
    place = document.place_of("Its key")
    assert place.box is not None
    assert place.box.x0 == pytest.approx(60, abs=5)


@needs_tesseract
def test_the_first_frame_of_a_moving_picture_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    image_of(["First of all"]).save(path, save_all=True, append_images=[image_of(["Second of all"])])
    assert read(path).text == "First of all"


@needs_tesseract
def test_a_picture_without_text_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.radial_gradient("L").save(path)
    with pytest.raises(ParseFailed, match="no text in this picture") as caught:
        read(path)
    assert caught.value.code is ParseFailure.EMPTY


@needs_tesseract
@pytest.mark.parametrize("height", [9_000, 50_000])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path, height: int) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (12_000, 10)).save(path)
    content = bytearray(path.read_bytes())
    # The head says more than the rest holds: whoever decodes it first says that it is damaged.
    content[20:24] = height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(ParseFailed, match="pixels") as caught:
        read(path)
    assert caught.value.code is ParseFailure.TOO_LARGE


@needs_tesseract
@pytest.mark.parametrize(
    "head", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"8BPS\x00\x01", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_picture_of_these_formats_is_corrupt(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(head + bytes(64))
    with pytest.raises(ParseFailed) as caught:
        read(path)
    assert caught.value.code is ParseFailure.CORRUPT


@needs_tesseract
def test_half_a_picture_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image_of().save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ParseFailed) as caught:
        read(path)
    assert caught.value.code is ParseFailure.CORRUPT


def test_without_tesseract_a_picture_says_what_to_install(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image_of().save(path)
    with pytest.raises(ParseFailed, match="tesseract-ocr") as caught:
        list(parse_image(path, ParseOptions(), programs="/nonexistent"))
    assert caught.value.code is ParseFailure.UNSUPPORTED
