"""Reads XML: running text as paragraphs under its titles, data as lines of "name: value", a record a block.

Which of the two an element is the file itself says: where words stand beside tags, as in <p>a <b>word</b></p>,
all elements of that name are running text, here and everywhere in the file. So it is read twice, as a stream.
Entities are not declared in files that people keep, and a file that declares one is refused: that is how
"billion laughs" inflates and how a file reads others.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from ingest.elements import ElementKind, Parsed, ParseFailed, ParseFailure, ParseOptions
from ingest.parse.build import DocumentBuilder, Line, text_lines
from ingest.parse.decoding import open_text


def parse_xml(path: Path, _: ParseOptions) -> Iterator[Parsed]:
    """Any well-formed XML. Raises ParseFailed."""
    survey = _Survey()
    for _pause in _events(path, survey.start, survey.end, survey.text):
        pass
    blocks = _Blocks(survey)
    for _pause in _events(path, blocks.start, blocks.end, blocks.text):
        yield from blocks.builder.ready()
    blocks.end_block()
    yield from blocks.builder.finish()


def _events(
    path: Path,
    start: Callable[[str, dict[str, str]], None],
    end: Callable[[str], None],
    text: Callable[[str], None],
) -> Iterator[None]:
    """Feeds the file to the three, and pauses now and then."""
    # Decoded here: what a file says of its own encoding is often wrong.
    parser = expat.ParserCreate("utf-8", namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.EntityDeclHandler = _refuse_entity
    try:
        with open_text(path) as decoded:
            while piece := decoded.read(_PIECE_CHARS):
                parser.Parse(piece.encode("utf-8", "replace"), False)
                yield
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise ParseFailed(
            ParseFailure.CORRUPT,
            f"This is not well-formed XML ({error}). Correct it, or upload it as .txt.",
        ) from error
    yield


_PIECE_CHARS = 1 << 16


def _refuse_entity(*_: object) -> None:
    raise ParseFailed(
        ParseFailure.CORRUPT,
        "This XML defines entities, which are not expanded since attacks are made of them. Save it without.",
    )


def _local(name: str) -> str:
    return name.rpartition(" ")[2]


@dataclass
class _Open:
    """An element that has begun and not ended."""

    name: str
    has_words: bool = False
    has_children: bool = False
    parents_within: set[str] = field(default_factory=set)
    """Names of the elements directly in it that have elements themselves."""


class _Survey:
    """The first reading: which names are of running text, and which of records."""

    def __init__(self) -> None:
        self.running_text: set[str] = set()
        self.records: set[str] = set()
        """Of elements with elements in them, of which several stand side by side."""
        self._open: list[_Open] = []

    def start(self, name: str, _attributes: dict[str, str]) -> None:
        if self._open:
            self._open[-1].has_children = True
        self._open.append(_Open(_local(name)))
        if len(self._open) > _MAX_LEVELS:
            raise ParseFailed(
                ParseFailure.CORRUPT,
                f"This XML is nested more than {_MAX_LEVELS} levels deep, as no document is.",
            )

    def end(self, _name: str) -> None:
        element = self._open.pop()
        if not element.has_children:
            return
        if element.has_words:
            self.running_text.add(element.name)
        if self._open:
            above = self._open[-1].parents_within
            if element.name in above:
                self.records.add(element.name)
            above.add(element.name)

    def text(self, words: str) -> None:
        if words.strip():
            self._open[-1].has_words = True


_MAX_LEVELS = 500


class _Blocks:
    """The second reading: turns elements into blocks."""

    def __init__(self, survey: _Survey) -> None:
        self.builder = DocumentBuilder()
        self._survey = survey
        self._is_data = not survey.running_text
        self._open: list[str] = []
        self._words: list[str] = []
        self._word_chars = 0
        self._lines: list[Line] = []
        self._characters = 0
        self._record_at: int | None = None
        """How many elements stand above the record, or the paragraph below, that is being read."""
        self._paragraph_at: int | None = None

    def start(self, name: str, attributes: dict[str, str]) -> None:
        name = _local(name)[:_MAX_NAME_CHARS]
        if self._paragraph_at is None:
            # Words before an element, outside of running text, do not occur.
            self._words, self._word_chars = [], 0
            if name in self._survey.running_text:
                self.end_block()
                self._paragraph_at = len(self._open)
            elif self._record_at is None and name in self._survey.records:
                self.end_block()
                self._record_at = len(self._open)
        self._open.append(name)
        if self._is_data:
            for attribute, value in attributes.items():
                self._add_line([*self._path(), _local(attribute)[:_MAX_NAME_CHARS]], value)

    def end(self, _name: str) -> None:
        path = self._path()
        name = self._open.pop()
        if self._paragraph_at is not None and len(self._open) > self._paragraph_at:
            if name in self._survey.running_text or name in _CELLS:
                self._words.append(" ")
            return
        words = " ".join("".join(self._words).split())
        self._words, self._word_chars = [], 0
        if not self._is_data and (name in _TITLES or self._open[-1:] == ["title-group"]):
            self.end_block()
            # An article's title, in its front matter, stands above all of its body.
            self.builder.add_heading([Line(words)], level=len(self._open) if name in _TITLES else 0)
        elif self._paragraph_at is not None or (not self._is_data and len(words) > _MAX_VALUE_CHARS):
            self.end_block()
            self.builder.add(ElementKind.TEXT, [Line(words)])
        elif words:
            self._add_line(path or [name], words)
        self._paragraph_at = None
        if self._record_at == len(self._open):
            self.end_block()
            self._record_at = None

    def text(self, words: str) -> None:
        self._words.append(words)
        self._word_chars += len(words)
        if self._word_chars > _MAX_WORDS_CHARS:
            self.builder.add(ElementKind.TEXT, text_lines("".join(self._words)))
            self._words, self._word_chars = [], 0

    def end_block(self) -> None:
        self.builder.add(ElementKind.TEXT, self._lines)
        self._lines, self._characters = [], 0

    def _path(self) -> list[str]:
        """The names from below the record, or below the root, to the innermost."""
        return self._open[(self._record_at or 0) + 1 :]

    def _add_line(self, path: list[str], value: str) -> None:
        line = Line(f"{' '.join(path)}: {' '.join(value.split())}")
        self._lines.append(line)
        self._characters += len(line.text)
        if self._characters > _BLOCK_CHARS:
            self.end_block()


_TITLES = {"title", "head", "heading"}
_CELLS = {"td", "th", "entry", "tr", "row", "li", "item", "label", "p", "title"}
"""What stands apart from its neighbours, unlike <sub> in H<sub>2</sub>O."""
_MAX_NAME_CHARS = 100
_MAX_VALUE_CHARS = 200
_BLOCK_CHARS = 50_000
_MAX_WORDS_CHARS = 1_000_000
