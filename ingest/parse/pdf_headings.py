"""Tells headings by type: larger than the body's, or a bold line; learns the body's type as pages come in."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from ingest.parse.pdf_segments import Segment


class TypeSizes:
    """The type that a document is set in, and so which larger type heads a section."""

    def __init__(self) -> None:
        self._letters: Counter[tuple[float, bool]] = Counter()

    def learn(self, segments: Iterable[Segment]) -> None:
        for segment in segments:
            self._letters[segment.size, segment.bold] += len(segment.text)

    def level(self, lines: Sequence[Segment]) -> int | None:
        """The heading level of a block, the larger the type the lower; None for a block that is no heading.

        Levels are far apart, as sizes are: only their order matters to a document's builder.
        """
        text = _REMARK.sub("", " ".join(line.text for line in lines))
        first = lines[0]
        if len(lines) > 3 or len(text) > _MAX_HEADING_CHARS or not _can_head(text) or not self._letters:
            return None
        (body_size, body_bold), _ = self._letters.most_common(1)[0]
        if _SENTENCE.search(text) and first.size < body_size * _DISPLAY:
            # The body's type is not the same all through: a lone line of a larger one is no heading.
            return None
        if first.size >= body_size * _LARGER:
            return max(0, _BOLD_LEVEL - round(first.size * 4))
        is_bold = first.bold and not body_bold and first.size >= body_size * 0.98
        is_short = len(lines) == 1 or all(len(line.words) <= _MAX_BOLD_WORDS for line in lines)
        if is_bold and is_short and not text.endswith((".", ",", ";", ":")):
            return _BOLD_LEVEL
        return None


_REMARK = re.compile(r"\s*\([^()]*\)$")
"""Below a statement of accounts' name, say: (in millions)."""
_SENTENCE = re.compile(r"^[•‣◦▪■●○–—-]\s|\w\s.*\w\s.*[.;,:)]$")
_DISPLAY = 1.5
_LARGER = 1.12
_BOLD_LEVEL = 2000
"""Below all type sizes: quarters of a point, up to 500 points."""
_MAX_HEADING_CHARS = 160
_MAX_BOLD_WORDS = 8
"""A line, where several are a heading: statements of accounts have three lines, in bold, above them."""


def _can_head(text: str) -> bool:
    """True where letters prevail: rows of figures, in bold or large, are no headings."""
    letters = sum(character.isalpha() for character in text)
    return letters >= 2 and letters >= 0.6 * sum(not character.isspace() for character in text)
