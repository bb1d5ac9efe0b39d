"""Third-party scripts of the console: pinned npm packages, fetched at set-up, served only if their hash is ours."""

import base64
import hashlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

VENDOR = Path(__file__).parents[1] / "pages" / "vendor"
"""Ignored by git; `python -m app.console.scripts` fills it, which `make setup` calls."""


@dataclass(frozen=True)
class Script:
    """One file of a package."""

    package: str
    version: str
    path: str
    name: str
    integrity: str
    """As browsers check it, of exactly this version."""


HTMX = Script(
    package="htmx.org",
    version="2.0.11",
    path="dist/htmx.min.js",
    name="htmx.min.js",
    integrity="sha384-2OatzQy1H+Zd/IIrjr1TcuDGqLXeHhbooAyJY1KdQMKnr4LZ22k31GBLdYKHmVjg",
)
HTMX_EVENTS = Script(
    package="htmx-ext-sse",
    version="2.2.4",
    path="dist/sse.min.js",
    name="sse.min.js",
    integrity="sha384-A986SAtodyH8eg8x8irJnYUk7i9inVQqYigD6qZ9evobksGNIXfeFvDwLSHcp31N",
)
SCRIPTS = (HTMX, HTMX_EVENTS)
"""In the order in which pages load them."""


class ScriptsMissing(Exception):
    """The console's third-party scripts are not there, or not the ones that were pinned."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The console needs {name}, which is not there as it was pinned. Install npm and run "
            "`python -m app.console.scripts` (or `make setup`), then start again. The API works without it."
        )


def read_script(script: Script, folder: Path = VENDOR) -> bytes:
    """Raises ScriptsMissing."""
    try:
        content = (folder / script.name).read_bytes()
    except OSError as error:
        raise ScriptsMissing(script.name) from error
    if integrity_of(content) != script.integrity:
        raise ScriptsMissing(script.name)
    return content


def integrity_of(content: bytes) -> str:
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()


def fetch(folder: Path = VENDOR) -> None:
    """Raises ScriptsMissing when npm is absent, fails, or brings something else."""
    npm = shutil.which("npm")
    if npm is None:
        raise ScriptsMissing(", ".join(script.name for script in SCRIPTS))
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel", "error"]
    with tempfile.TemporaryDirectory() as temporary:
        wanted = [f"{script.package}@{script.version}" for script in SCRIPTS]
        subprocess.run([npm, "install", "--prefix", temporary, *options, *wanted], check=False)
        for script in SCRIPTS:
            fetched = Path(temporary, "node_modules", script.package, script.path)
            if not fetched.is_file() or integrity_of(fetched.read_bytes()) != script.integrity:
                raise ScriptsMissing(script.name)
            shutil.copyfile(fetched, folder / script.name)


if __name__ == "__main__":
    try:
        for script in SCRIPTS:
            read_script(script)
    except ScriptsMissing:
        try:
            fetch()
        except ScriptsMissing as error:
            sys.exit(str(error))
