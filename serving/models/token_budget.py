"""How many tokens a batch may have on a GPU: measured once for a model on a device, and kept in a small file."""

import json
import logging
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger("strongroom.models")

SHARE_OF_FREE_MEMORY = 0.5
"""The rest is for models that are loaded later, and for what a batch of another shape takes."""

MOST_TOKENS = 131_072
"""Beyond it a batch only takes longer: a GPU is busy with far fewer, and people wait for the running batch."""


def find_token_budget(peak_bytes_of: Callable[[int], int | None], *, max_tokens: int, free_bytes: int) -> int:
    """Tokens of the largest batch, padding counted, that stays within SHARE_OF_FREE_MEMORY; 0 if none does.

    `peak_bytes_of(texts)` runs a batch of so many texts of `max_tokens` and tells what it took beside the
    weights, or None when memory ran out. Batches double until one is too large; then one size between is tried.
    """

    def fits(texts: int) -> bool:
        if texts * max_tokens > MOST_TOKENS and texts > 1:
            return False
        peak = peak_bytes_of(texts)
        return peak is not None and peak <= SHARE_OF_FREE_MEMORY * free_bytes

    if not fits(1):
        return 0
    texts = 1
    while fits(2 * texts):
        texts *= 2
    between = texts + texts // 2
    if between > texts and fits(between):
        texts = between
    return texts * max_tokens


def read_budget(path: Path, key: str) -> int | None:
    """What `keep_budget` wrote for this key. A file that cannot be read holds nothing."""
    return _read(path).get(key)


def keep_budget(path: Path, key: str, tokens: int) -> None:
    """Writes it beside what else is kept there. A folder that cannot be written costs a measurement each start."""
    kept = _read(path) | {key: tokens}
    unfinished = None
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            unfinished = Path(file.name)
            json.dump(kept, file, indent=1, sort_keys=True)
        unfinished.replace(path)
    except OSError as error:
        logger.warning("token_budget_not_kept", extra={"reason": error.strerror})
        if unfinished is not None:
            with suppress(OSError):
                unfinished.unlink()


def _read(path: Path) -> dict[str, int]:
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(kept, dict):
        return {}
    return {key: tokens for key, tokens in kept.items() if isinstance(tokens, int) and tokens > 0}
