"""Keeps the token probabilities of a choice in step with its text, from which the model's own markers are taken out.

What is told, joined, is the text that is shown without our markers: a token of a removed marker is left out, one
that is shown in part is cut and says what the model wrote (`written`), and our markers have no probability. A token
that is not found in the text, such as a piece of a character, goes out as the engine told it.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

from app.answers.sentences import Span

SLACK = 8
"""Characters that may stand before a token unaccounted for: pieces of a character make one together."""

Json = dict[str, Any]


class ShownTokens:
    """Tokens wait here until the text that they stand for is shown."""

    def __init__(self) -> None:
        self._written = ""
        """By the model."""
        self._at = 0
        self._waiting: deque[Json] = deque()

    def add(self, written: str, tokens: Sequence[Json]) -> None:
        """The engine may send a token before or with its text."""
        self._written += written
        self._waiting.extend(tokens)

    def take(self, read: int, removed: Sequence[Span], *, final: bool = False) -> list[Json]:
        """Those whose text is among the first `read` characters that the model wrote; in the end, all."""
        taken: list[Json] = []
        while self._waiting:
            token: str = self._waiting[0]["token"]
            start = self._written.find(token, self._at, self._at + len(token) + SLACK)
            end = start + len(token)
            if not final:
                may_come = len(self._written) - self._at < len(token) + SLACK
                if end > read if start >= 0 else may_come:
                    break
            told = self._waiting.popleft()
            if start < 0:
                taken.append(told)
                continue
            self._at = end
            shown = _without(token, start, removed)
            if shown == token:
                taken.append(told)
            elif shown:
                taken.append({**told, "token": shown, "bytes": list(shown.encode()), "written": token})
        return taken


def _without(token: str, start: int, removed: Sequence[Span]) -> str:
    """The token's text, which begins at `start`, without what was removed."""
    for span in reversed(removed):
        if span.end <= start:
            break
        first, last = max(span.start - start, 0), max(span.end - start, 0)
        token = token[:first] + token[last:]
    return token
