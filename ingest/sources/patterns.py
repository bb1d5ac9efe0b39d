"""Which paths of a source are wanted, by glob patterns."""

import re
from collections.abc import Sequence

from fsspec.utils import glob_translate

from ingest.sources.entries import SourceRefused

USUAL_EXCLUDE = (".*", "**/.*/**", "~$*", "*.part", "*.crdownload", "*.tmp")
"""Hidden files, and those that programs write on the way to the real one; taken where no other list is given."""
MAX_PATTERNS = 100
MAX_PATTERN_CHARS = 500


class PathFilter:
    """Wanted is what one `include` pattern fits (without any: everything) and no `exclude` pattern does.

    `*` stays within a folder, `**` spans folders, and a pattern without a slash fits a name in any folder.
    """

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._include = [_compiled(pattern, param="include") for pattern in include]
        self._exclude = [_compiled(pattern, param="exclude") for pattern in exclude]

    def wants(self, path: str) -> bool:
        if self._include and not any(pattern.match(path) for pattern in self._include):
            return False
        return not any(pattern.match(path) for pattern in self._exclude)


def _compiled(pattern: str, *, param: str) -> re.Pattern[str]:
    if not pattern or len(pattern) > MAX_PATTERN_CHARS:
        raise SourceRefused(f"{param}: a pattern must have 1 to {MAX_PATTERN_CHARS} characters.", param=param)
    anywhere = pattern if "/" in pattern else f"**/{pattern}"
    try:
        return re.compile(glob_translate(anywhere.removeprefix("/")))
    except (ValueError, re.error) as error:
        raise SourceRefused(f"{param}: {pattern!r} is no glob pattern: {error}.", param=param) from error
