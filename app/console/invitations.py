"""Links that sign somebody in once, for who already holds the key: `strongroom serve` shows one when it is ready."""

import secrets
import time
from collections.abc import Callable

LASTS_S = 15 * 60.0
MOST = 100
"""That wait for their use; the oldest go first."""


class Invitations:
    """In memory: who starts anew gets a new link."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._key_ids: dict[str, tuple[str, float]] = {}

    def make(self, key_id: str) -> str:
        """A code for the link."""
        code = secrets.token_urlsafe(24)
        self._key_ids[code] = (key_id, self._clock() + LASTS_S)
        while len(self._key_ids) > MOST:
            del self._key_ids[next(iter(self._key_ids))]
        return code

    def take(self, code: str) -> str | None:
        """The key's id, once."""
        key_id, until = self._key_ids.pop(code, (None, 0.0))
        return key_id if self._clock() < until else None
