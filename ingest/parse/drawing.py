"""The program that draws a page of a PDF: `python -m ingest.parse.drawing DESCRIPTOR`, started by the sandbox only."""

import math
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from ingest.elements import Attachment, Parsed, ParseFailed, ParseFailure, ParseOptions
from ingest.kinds import MediaType
from ingest.parse.pdf import open_pdf
from ingest.parse.serve import serve

WIDTH_PX = 1400
"""Sharp on a large screen; a page of text takes 200 kB."""
MAX_PIXELS = 8_000_000


def draw(path: Path, _: MediaType, options: ParseOptions) -> Iterator[Parsed]:
    """One file, a PNG. Its name tells the page's width and height in points. Raises ParseFailed."""
    with closing(open_pdf(path, options.password)) as pdf:
        if not 1 <= options.page <= len(pdf):
            raise ParseFailed(ParseFailure.EMPTY, f"This PDF has {len(pdf)} pages.")
        page = pdf[options.page - 1]
        width, height = page.get_size()
        scale = min(WIDTH_PX / max(1.0, width), math.sqrt(MAX_PIXELS / max(1.0, width * height)))
        drawn = Path("page.png")
        page.render(scale=scale).to_pil().save(drawn)
        yield Attachment(f"{width}x{height}", drawn)


if __name__ == "__main__":
    serve(draw, replies=int(sys.argv[1]))
