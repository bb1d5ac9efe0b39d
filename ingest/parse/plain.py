"""Reads text as it stands (notes, source code, TeX), so that every line can be quoted as written.

It is read as a stream: a log of a gigabyte takes no more memory than a letter. unstructured is not asked for
these: it re-flows paragraphs and takes bullets away, and there is nothing to recognise.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ingest.elements import ElementKind, Parsed, ParseOptions
from ingest.parse.build import DocumentBuilder, Line, paragraphs, text_lines
from ingest.parse.decoding import open_text
from ingest.visible import clean

MAX_TITLE_CHARS = 200


def parse_plain(path: Path, _: ParseOptions) -> Iterator[Parsed]:
    """Blank lines part blocks; a first block of one short line is the title. Raises ParseFailed (empty)."""
    builder = DocumentBuilder()
    with open_text(path) as text:
        blocks = _blocks(text)
        first, second = next(blocks, ""), next(blocks, "")
        for block in (first, second):
            builder.add(ElementKind.TEXT, text_lines(block))
        for block in blocks:
            builder.add(ElementKind.TEXT, text_lines(block))
            yield from builder.ready()
    is_title = bool(second) and len(first) <= MAX_TITLE_CHARS and "\n" not in first
    yield from builder.finish(title=" ".join(first.split()) if is_title else None)


def parse_code(path: Path, _: ParseOptions) -> Iterator[Parsed]:
    """Source code, cut where something new begins at the left margin. Raises ParseFailed (empty)."""
    builder = DocumentBuilder()
    with open_text(path) as text:
        definition: list[str] = []
        for block in _blocks(text):
            is_long = sum(map(len, definition)) > _MAX_BLOCK_CHARS
            if definition and (is_long or _BEGINS_AT_MARGIN.match(block)):
                builder.add(ElementKind.CODE, text_lines("\n\n".join(definition)))
                yield from builder.ready()
                definition = []
            definition.append(block)
        builder.add(ElementKind.CODE, text_lines("\n\n".join(definition)))
    yield from builder.finish()


_BEGINS_AT_MARGIN = re.compile(r"[^\s})\]]")
"""A definition's first line, comment or decorator; blank lines within one are followed by an indent or its end."""


def parse_latex(path: Path, _: ParseOptions) -> Iterator[Parsed]:
    """TeX as it is written, under the headings that its section commands make. Raises ParseFailed (empty).

    It is not rendered: any macro may be redefined, and pandoc gives up a thesis for one list that it misreads.
    """
    builder = DocumentBuilder()
    in_preamble = False
    with open_text(path) as text:
        for block in _blocks(text):
            written = _TEX_COMMENT.sub("", block)
            in_preamble = in_preamble or written.lstrip().startswith(r"\documentclass")
            if in_preamble:
                before, begin, written = written.partition(r"\begin{document}")
                in_preamble = not begin
                # Of the settings only the title is read.
                written = "".join(title[0] for title in _TEX_SECTION.finditer(before)) + written
            end = 0
            for section in _TEX_SECTION.finditer(written):
                _add_tex(builder, written[end : section.start()])
                level = _TEX_LEVELS.index(section["command"])
                builder.add_heading([Line(" ".join(section["title"].split()))], level=level)
                end = section.end()
            _add_tex(builder, written[end:])
            yield from builder.ready()
    yield from builder.finish()


_TEX_LEVELS = ("title", "part", "chapter", "section", "subsection", "subsubsection", "paragraph")
_TEX_SECTION = re.compile(
    rf"\\(?P<command>{'|'.join(_TEX_LEVELS)})\*?\s*(?:\[[^\]]{{0,300}}\])?\s*"
    r"\{(?P<title>(?:[^{}]|\{[^{}]{0,200}\}){1,300})\}"
)
_TEX_COMMENT = re.compile(r"(?<!\\)%.*")
_TEX_CODE = re.compile(r"\\begin\{(verbatim|lstlisting|minted)")
_TEX_TABLE = re.compile(r"\\begin\{(tabular|longtable|tabularx)")


def _add_tex(builder: DocumentBuilder, written: str) -> None:
    if _TEX_CODE.search(written):
        kind = ElementKind.CODE
    elif _TEX_TABLE.search(written):
        kind = ElementKind.TABLE
    else:
        kind = ElementKind.TEXT
    builder.add(kind, text_lines(written))


def _blocks(text: TextIO) -> Iterator[str]:
    """What blank lines part, cleaned; a block that would not end is cut at a line or, without one, a space."""
    pending = ""
    while piece := text.read(_PIECE_CHARS):
        pending += piece
        end = pending.rfind("\n\n")
        if end < 0 and len(pending) > _MAX_BLOCK_CHARS:
            end = max(pending.rfind("\n"), pending.rfind(" ")) if "\n" not in pending else pending.rfind("\n")
            end = end if end > 0 else len(pending)
        if end > 0:
            yield from filter(str.strip, paragraphs(pending[:end]))
            pending = pending[end:]
    yield from filter(str.strip, paragraphs(pending))


_PIECE_CHARS = 1 << 16
_MAX_BLOCK_CHARS = 1 << 18


def cleaned_lines(text: TextIO, *, most_chars: int = _MAX_BLOCK_CHARS) -> Iterator[str]:
    """The lines of a text, cleaned; one that is longer comes in pieces."""
    while line := text.readline(most_chars):
        yield clean(line).rstrip("\n")
