"""Reads Jupyter notebooks: what was written, the code, and the text that it printed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from ingest.elements import ElementKind, Parsed, ParseFailed, ParseFailure, ParseOptions
from ingest.parse.build import DocumentBuilder, text_lines
from ingest.parse.documents import add_markdown


def parse_notebook(path: Path, _: ParseOptions) -> Iterator[Parsed]:
    """A notebook of format 4, or of the older 3. Raises ParseFailed."""
    try:
        notebook = orjson.loads(path.read_bytes())
        cells = notebook["cells"] if "cells" in notebook else notebook["worksheets"][0]["cells"]
        builder = DocumentBuilder()
        for cell in cells:
            _add_cell(builder, cell)
            yield from builder.ready()
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ParseFailed(
            ParseFailure.CORRUPT, "This is not a readable notebook. Open it in Jupyter and save it again."
        ) from error
    yield from builder.finish()


def _add_cell(builder: DocumentBuilder, cell: dict[str, Any]) -> None:
    source = _joined(cell.get("source", cell.get("input", "")))
    if cell["cell_type"] == "code":
        builder.add(ElementKind.CODE, text_lines(source))
        for output in cell.get("outputs", []):
            builder.add(ElementKind.CODE, text_lines(_shown(output)))
    elif cell["cell_type"] == "markdown":
        add_markdown(builder, source)
    else:
        builder.add(ElementKind.TEXT, text_lines(source))


def _shown(output: dict[str, Any]) -> str:
    """The text of an output; pictures, and tables as HTML beside the same as text, are left out."""
    if output.get("output_type") in {"error", "pyerr"}:
        return f"{output.get('ename', '')}: {output.get('evalue', '')}"
    return _joined(output.get("text", output.get("data", {}).get("text/plain", "")))


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)
