"""Puts a prompt's passages in an order whose beginning an engine has in its prefix cache already.

An engine re-uses what it computed for a prompt as far as the next one begins with the same tokens. Passages come in
another order with each question, so without this hardly two prompts share more than their instructions. What was
sent before is remembered here, and the gateway routes a prompt to the replica that holds its beginning. Sources: a
tree over recent sequences, CacheWeaver (Tan et al. 2026); telling the model the ranks, so that its answers do not
suffer from the order, ContextPilot (Jiang et al. 2025).
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence, Set

REMEMBERED = 4_096
"""Beginnings, of one passage or several: more than an engine's cache holds, and some MB here."""

_Beginning = bytes
"""A chain of hashes: names a sequence of passages."""


class PassageOrder:
    """What recent prompts began with, for one event loop."""

    def __init__(self, *, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._known: OrderedDict[_Beginning, tuple[_Beginning, str]] = OrderedDict()
        """Each beginning with its parent and last passage, least recently used first."""
        self._next: dict[_Beginning, set[str]] = {}
        """The passages that are known to follow a beginning."""
        self._uses: dict[str, int] = {}
        """In how many known beginnings a passage comes last."""

    def choose(self, passages: Sequence[str], *, sizes: Sequence[int], cache_salt: str) -> list[int]:
        """Positions in `passages`, in the order in which they are to be shown, and remembers that order.

        `passages` are distinct and best first; equal names have equal texts. `sizes` are their lengths, in any
        unit. Prompts with another `cache_salt` share no cache, and nothing of them is seen here.

        The longest known beginning comes first. Of the others, those that prompts have shared come next, so that
        they become a beginning; what is left stands worst first, since models read best what is nearest the
        question.
        """
        root = hashlib.blake2b(cache_salt.encode(), digest_size=16).digest()
        size_of = dict(zip(passages, sizes, strict=True))
        _, path = self._longest(root, size_of.keys(), size_of)
        rank_of = {passage: rank for rank, passage in enumerate(passages)}
        rest = sorted(size_of.keys() - set(path), key=lambda each: (-self._shared(each), -rank_of[each]))
        shown = [*path, *rest]
        self._remember(root, shown)
        return [rank_of[passage] for passage in shown]

    def _longest(
        self, beginning: _Beginning, unused: Set[str], size_of: dict[str, int]
    ) -> tuple[int, list[str]]:
        """The known continuation of the greatest size that needs only unused passages."""
        best: tuple[int, list[str]] = (0, [])
        for passage in sorted(self._next.get(beginning, set()) & unused):
            size, path = self._longest(_extended(beginning, passage), unused - {passage}, size_of)
            best = max(best, (size + size_of[passage], [passage, *path]), key=lambda found: found[0])
        return best

    def _shared(self, passage: str) -> int:
        uses = self._uses.get(passage, 0)
        return uses if uses > 1 else 0

    def _remember(self, root: _Beginning, shown: Sequence[str]) -> None:
        chain = [root]
        for passage in shown:
            chain.append(_extended(chain[-1], passage))
        # The whole before its beginnings: a beginning is never forgotten before what continues it.
        for position in reversed(range(len(shown))):
            parent, passage, beginning = chain[position], shown[position], chain[position + 1]
            if beginning not in self._known:
                self._next.setdefault(parent, set()).add(passage)
                self._uses[passage] = self._uses.get(passage, 0) + 1
            self._known[beginning] = (parent, passage)
            self._known.move_to_end(beginning)
        while len(self._known) > self._remembered:
            _, (parent, passage) = self._known.popitem(last=False)
            self._forget(parent, passage)

    def _forget(self, parent: _Beginning, passage: str) -> None:
        self._next[parent].discard(passage)
        if not self._next[parent]:
            del self._next[parent]
        self._uses[passage] -= 1
        if not self._uses[passage]:
            del self._uses[passage]


def _extended(beginning: _Beginning, passage: str) -> _Beginning:
    return hashlib.blake2b(beginning + passage.encode(), digest_size=16).digest()
