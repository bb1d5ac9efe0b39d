"""What the READMEs tell people to type: commands in the text, and blocks of code."""

import re
from dataclasses import dataclass

from tests.stack import ROOT

ROOMS = (".", "app", "ingest", "retrieval", "serving", "tests", "tests/bench", "tests/bench/peers")
PAGES = [ROOT / room / "README.md" for room in ROOMS]
PROGRAMS = ("strongroom", "make", "python", "docker", "pip")
_FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TREE = re.compile(r"^## The tree$.*?(?=^## )", re.MULTILINE | re.DOTALL)
_QUOTED = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    section: str
    language: str
    text: str


def blocks() -> list[Block]:
    """Those of all pages, in their order."""
    return [
        Block(section, language, text)
        for page in PAGES
        for section, written in _sections(page.read_text())
        for language, text in _FENCED.findall(written)
    ]


def commands() -> list[str]:
    """Each once, as it stands there, in the order of the pages; of lines of their own and within sentences."""
    found: dict[str, None] = {}
    for page in PAGES:
        # The tree repeats the modules' first lines.
        text = _TREE.sub("", _FENCED.sub("", page.read_text()))
        indented = re.findall(r"^    (\S.*?)(?:  +#.*)?$", text, re.MULTILINE)
        for command in (*indented, *(" ".join(quoted.split()) for quoted in _QUOTED.findall(text))):
            if command.partition(" ")[0] in PROGRAMS and " " in command:
                found.setdefault(command)
    return list(found)


def _sections(text: str) -> list[tuple[str, str]]:
    """Headings with what stands below each."""
    pieces = re.split(r"^## (.+)$", text, flags=re.MULTILINE)[1:]
    return list(zip(pieces[::2], pieces[1::2], strict=True))
