"""Reads a file to its end, by the pool or by a parser alone, as one document."""

from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from ingest.elements import Attachment, Element, ElementKind, Parsed, ParsedPart, ParseOptions
from ingest.media_types import MediaType, detect
from ingest.sandbox import ParserPool

Parser = Callable[[Path, ParseOptions], Iterator[Parsed]]


@dataclass
class ReadDocument:
    """What a parser gave: its parts put together, and what lay in the file."""

    parts: list[ParsedPart] = field(default_factory=list)
    attachments: dict[str, bytes] = field(default_factory=dict)

    def take(self, parsed: Parsed) -> None:
        if isinstance(parsed, ParsedPart):
            self.parts.append(parsed)
        elif isinstance(parsed, Attachment):
            self.attachments[parsed.name] = parsed.path.read_bytes()

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)

    @property
    def elements(self) -> list[Element]:
        return [element for part in self.parts for element in part.elements]

    @property
    def title(self) -> str | None:
        return self.parts[-1].title if self.parts else None

    @property
    def page_count(self) -> int | None:
        return self.parts[-1].page_count if self.parts else None

    def text_of(self, element: Element) -> str:
        return self.text[element.start_char : element.end_char]

    def blocks(self, kind: ElementKind) -> list[str]:
        return [self.text_of(element) for element in self.elements if element.kind is kind]

    def element_with(self, text: str) -> Element:
        start = self.text.index(text)
        return next(element for element in self.elements if element.start_char <= start < element.end_char)


async def read(parsers: ParserPool, path: Path, options: ParseOptions | None = None) -> ReadDocument:
    """The file as an upload is read: its type told, then parsed by a child."""
    return await read_as(parsers, path, detect(path, path.name), options)


async def read_as(
    parsers: ParserPool, path: Path, media_type: MediaType, options: ParseOptions | None = None
) -> ReadDocument:
    """The file parsed by a child as of this type."""
    document = ReadDocument()
    async with aclosing(parsers.parse(path, media_type, options or ParseOptions())) as parsed:
        async for one in parsed:
            document.take(one)
    return document


def read_here(parse: Parser, path: Path, options: ParseOptions | None = None) -> ReadDocument:
    """The file as the parser alone reads it, in this process."""
    document = ReadDocument()
    for one in parse(path, options or ParseOptions()):
        document.take(one)
    return document
