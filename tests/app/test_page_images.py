"""Pages of PDFs as pictures: as the page is, from the sandbox, and drawn once."""

import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image

from app.console.page_images import PageImages
from ingest.elements import ParseFailed, ParseFailure
from ingest.parse.drawing import WIDTH_PX
from tests.serving.hosting import REPOSITORY

MANUAL = REPOSITORY / "data" / "samples" / "icehouse-vault-manual.pdf"


@pytest.fixture
async def images(tmp_path: Path) -> AsyncIterator[PageImages]:
    async with PageImages(tmp_path) as opened:
        yield opened


async def test_a_page_is_drawn_as_wide_as_a_screen_wants_it_and_tells_its_size_in_points(
    images: PageImages,
) -> None:
    drawn = await images.draw("blob-1", MANUAL, 2, password=None)
    picture = Image.open(io.BytesIO(drawn.png))
    assert picture.width == pytest.approx(WIDTH_PX, abs=1)
    assert picture.height / picture.width == pytest.approx(drawn.height / drawn.width, rel=0.01)
    assert (drawn.width, drawn.height) == pytest.approx((499, 709), abs=1)  # B5.


async def test_a_page_is_drawn_once(images: PageImages) -> None:
    first = await images.draw("blob-1", MANUAL, 1, password=None)
    assert await images.draw("blob-1", MANUAL, 1, password=None) is first


async def test_a_page_that_is_not_there_and_a_file_that_is_none_fail_alone(
    images: PageImages, tmp_path: Path
) -> None:
    with pytest.raises(ParseFailed, match="has 8 pages"):
        await images.draw("blob-1", MANUAL, 9, password=None)
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.4\nnothing")
    with pytest.raises(ParseFailed) as failed:
        await images.draw("blob-2", broken, 1, password=None)
    assert failed.value.code is ParseFailure.CORRUPT
    assert (await images.draw("blob-1", MANUAL, 1, password=None)).png
