"""Reads subtitles (WebVTT, SubRip) as a transcript: what was said in paragraphs, each with its speaker and start."""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from ingest.elements import ElementKind, Parsed, ParseOptions
from ingest.parse.build import DocumentBuilder, Line
from ingest.parse.decoding import open_text
from ingest.parse.plain import cleaned_lines


def parse_subtitles(path: Path, _: ParseOptions) -> Iterator[Parsed]:
    """Cues in the order of the file; settings, notes and styles are left out. Raises ParseFailed (empty)."""
    builder = DocumentBuilder()
    spoken = _Paragraph("", "")
    with open_text(path) as text:
        for start, lines in _cues(text):
            for line in lines:
                speaker, words = _speaker(line)
                if spoken.ends_before(speaker):
                    spoken.add_to(builder)
                    yield from builder.ready()
                    spoken = _Paragraph(start, speaker or spoken.speaker)
                spoken.say(words)
    spoken.add_to(builder)
    yield from builder.finish()


@dataclass
class _Paragraph:
    start: str
    speaker: str
    lines: list[str] = field(default_factory=list)
    characters: int = 0

    def say(self, words: str) -> None:
        # Automatic captions repeat the line that they roll up.
        if words and words not in self.lines[-1:]:
            self.lines.append(words)
            self.characters += len(words)

    def ends_before(self, speaker: str) -> bool:
        """At another speaker, and else at the end of a sentence once there is a paragraph's worth."""
        is_other = bool(speaker) and speaker != self.speaker
        is_full = self.characters > _PARAGRAPH_CHARS and self.lines[-1].endswith((".", "!", "?", "…", "。"))
        return not self.start or is_other or is_full or self.characters > 4 * _PARAGRAPH_CHARS

    def add_to(self, builder: DocumentBuilder) -> None:
        if self.lines:
            speaker = f"{self.speaker}: " if self.speaker else ""
            builder.add(ElementKind.TEXT, [Line(f"[{self.start}] {speaker}{' '.join(self.lines)}")])


_PARAGRAPH_CHARS = 600
_TIMES = re.compile(r"((?:\d+:)?\d{1,2}:\d\d)[.,]\d+\s+-->")
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]{1,100})>")
_TAG = re.compile(r"</?[a-z0-9:.][^>]{0,200}>|\{\\an\d\}", re.IGNORECASE)


def _cues(text: TextIO) -> Iterator[tuple[str, list[str]]]:
    """When each cue starts, without the fraction of a second, and its lines."""
    start: str | None = None
    lines: list[str] = []
    for line in cleaned_lines(text):
        times = _TIMES.match(line.strip())
        if times or not line.strip():
            if start is not None and lines:
                yield start, lines
            start, lines = (times[1] if times else None), []
        elif start is not None:
            lines.append(line)
    if start is not None and lines:
        yield start, lines


def _speaker(line: str) -> tuple[str, str]:
    """Who speaks, where a line says so, and the words without tags."""
    voice = _VOICE.search(line)
    words = " ".join(html.unescape(_TAG.sub("", line)).split())
    return (" ".join(voice[1].split()) if voice else ""), words
