"""Reads JSON as lines of "path: value" that can be found and quoted, each record of a list in one block.

A record is an object in a list: it is what a row is in a table. What stands outside of lists is a block too.
Both formats are streamed, so a file's size does not matter.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import ijson

from ingest.elements import ElementKind, Parsed, ParseFailed, ParseFailure, ParseOptions
from ingest.parse.build import DocumentBuilder, Line, text_lines
from ingest.parse.decoding import open_text
from ingest.parse.plain import cleaned_lines


def parse_json(path: Path, _: ParseOptions) -> Iterator[Parsed]:
    """One JSON value, or several after each other. Raises ParseFailed."""
    records = _Records()
    with open_text(path) as text:
        try:
            for event, value in ijson.basic_parse(_Encoded(text), multiple_values=True):
                records.take(event, value)
                if event.startswith("end"):
                    yield from records.builder.ready()
        except ijson.JSONError as error:
            raise _invalid("This", error) from error
    yield from records.finish()


def parse_ndjson(path: Path, _: ParseOptions) -> Iterator[Parsed]:
    """A JSON value a line. Raises ParseFailed."""
    records = _Records(value_is_record=True)
    with open_text(path) as text:
        for number, line in enumerate(cleaned_lines(text, most_chars=_MAX_RECORD_CHARS), start=1):
            try:
                for event, value in ijson.basic_parse(io.BytesIO(line.encode())) if line.strip() else ():
                    records.take(event, value)
            except ijson.JSONError as error:
                raise _invalid(f"Line {number}", error) from error
            records.end_block()
            yield from records.builder.ready()
    yield from records.finish()


_MAX_RECORD_CHARS = 64 << 20


class _Encoded:
    """A text as the stream of UTF-8 that ijson reads."""

    def __init__(self, text: TextIO) -> None:
        self._text = text

    def read(self, size: int) -> bytes:
        return self._text.read(size).encode()


@dataclass
class _Level:
    """An object or list that has begun and not ended."""

    is_list: bool
    path: str
    """From the record, or from the whole, to here."""
    is_record: bool = False
    key: str = ""
    count: int = 0
    plain_values: list[str] = field(default_factory=list)
    """Of a list: numbers and words, which are shown in one line."""

    def path_of_next(self) -> str:
        if self.is_list:
            return f"{self.path}[{self.count - 1}]"
        return f"{self.path}.{self.key}" if self.path else self.key


class _Records:
    """Turns the events of a JSON parser into blocks of lines."""

    def __init__(self, *, value_is_record: bool = False) -> None:
        self.builder = DocumentBuilder()
        self._levels: list[_Level] = []
        self._lines: list[Line] = []
        self._characters = 0
        self._in_record = value_is_record

    def take(self, event: str, value: Any) -> None:
        """Raises ParseFailed (corrupt) for values nested without end."""
        level = self._levels[-1] if self._levels else None
        match event:
            case "map_key":
                assert level is not None
                level.key = str(value)[:_MAX_KEY_CHARS]
            case "start_map" | "start_array":
                self._begin(level, is_list=event == "start_array")
            case "end_map" | "end_array":
                self._end(self._levels.pop())
            case _:
                self._add_value(level, _shown(value))

    def end_block(self) -> None:
        """What comes next is another record."""
        self.builder.add(ElementKind.TEXT, self._lines)
        self._lines, self._characters = [], 0

    def finish(self) -> Iterator[Parsed]:
        self.end_block()
        yield from self.builder.finish()

    def _begin(self, level: _Level | None, *, is_list: bool) -> None:
        if len(self._levels) >= _MAX_LEVELS:
            raise ParseFailed(
                ParseFailure.CORRUPT,
                f"This JSON is nested more than {_MAX_LEVELS} levels deep, as no data is. Flatten it.",
            )
        if level is None:
            self._levels.append(_Level(is_list, ""))
            return
        level.count += 1
        if level.is_list and not is_list and not self._in_record:
            self.end_block()
            if level.count == 1 and level.path:
                self.builder.add_heading([Line(level.path)], level=0)
            self._in_record = True
            self._levels.append(_Level(is_list, "", is_record=True))
        else:
            self._levels.append(_Level(is_list, level.path_of_next()))

    def _end(self, level: _Level) -> None:
        self._add_plain_values(level)
        if level.is_record:
            self._in_record = False
            self.end_block()
        elif level.is_list and level.count and not self._in_record:
            self.end_block()
            self.builder.close_headings()

    def _add_value(self, level: _Level | None, shown: str) -> None:
        if not shown.strip():
            return
        if level is None:
            self._add_line("", shown)
        elif level.is_list:
            level.plain_values.append(shown)
            if len(level.plain_values) >= _VALUES_PER_LINE:
                self._add_plain_values(level)
        else:
            self._add_line(level.path_of_next(), shown)

    def _add_plain_values(self, level: _Level) -> None:
        if level.plain_values:
            self._add_line(level.path, ", ".join(level.plain_values))
            level.plain_values = []

    def _add_line(self, path: str, shown: str) -> None:
        self._lines += text_lines(f"{path}: {shown}" if path else shown)
        self._characters += len(path) + len(shown)
        if self._characters > _BLOCK_CHARS:
            self.end_block()


_MAX_LEVELS = 100
_MAX_KEY_CHARS = 200
_VALUES_PER_LINE = 100
_BLOCK_CHARS = 50_000


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _invalid(what: str, error: Exception) -> ParseFailed:
    # Its further lines quote the file.
    problem = str(error).splitlines()[0][:200]
    return ParseFailed(
        ParseFailure.CORRUPT, f"{what} is not valid JSON ({problem}). Correct it, or upload the file as .txt."
    )
