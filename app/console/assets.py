"""Scripts and styles of the console: held in memory, compressed."""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from app.console.scripts import SCRIPTS, read_script

STATIC = Path(__file__).parents[1] / "pages" / "static"
MEDIA_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Asset:
    content: bytes
    compressed: bytes
    media_type: str
    tag: str
    """Tells a browser whether what it has is this."""
    integrity: str | None = None


class Assets:
    """All of them, by name."""

    def __init__(self, assets: dict[str, Asset]) -> None:
        self._assets = assets

    def get(self, name: str) -> Asset | None:
        return self._assets.get(name)

    def url(self, name: str) -> str:
        assert name in self._assets, name
        return f"/console/static/{name}"

    @property
    def third_party(self) -> list[tuple[str, str | None]]:
        """Address and integrity of each, in the order in which pages load them."""
        return [(self.url(script.name), script.integrity) for script in SCRIPTS]


def read_assets() -> Assets:
    """Raises ScriptsMissing."""
    assets = {path.name: _asset(path.read_bytes(), path.suffix) for path in sorted(STATIC.iterdir())}
    for script in SCRIPTS:
        assets[script.name] = _asset(read_script(script), ".js", integrity=script.integrity)
    return Assets(assets)


def _asset(content: bytes, suffix: str, *, integrity: str | None = None) -> Asset:
    return Asset(
        content=content,
        compressed=gzip.compress(content, mtime=0),
        media_type=MEDIA_TYPES[suffix],
        tag=f'"{hashlib.sha256(content).hexdigest()[:16]}"',
        integrity=integrity,
    )
