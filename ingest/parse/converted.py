"""Runs the programs that turn formats which no library here reads into ones that it does: pandoc, LibreOffice.

They are started in the sandbox's child, so they have its limits and no network. Their own time limit is the
pool's, which kills the child and all that it started.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pypandoc

from ingest.elements import ParseFailed, ParseFailure
from ingest.parse.archives import damaged
from ingest.parse.decoding import open_text


def pandoc_html(path: Path, format_name: str, *, is_text: bool) -> str:
    """The file as HTML. `is_text`: in whatever encoding it is, while pandoc reads UTF-8 only.

    `--sandbox` keeps it from files that the document names, such as by rst's `include`. Raises ParseFailed.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target, template = path, Path(folder) / "document.html", Path(folder) / "template.html"
        template.write_text(_TEMPLATE)
        if is_text:
            source = Path(folder) / "document.txt"
            with open_text(path) as text, source.open("w", encoding="utf-8") as decoded:
                shutil.copyfileobj(text, decoded)
        command = [
            pypandoc.get_pandoc_path(),
            "+RTS",
            f"-M{_PANDOC_HEAP_MIB}M",
            "-RTS",
            "--sandbox",
            "--wrap=none",
        ]
        reading = [
            "--from",
            format_name,
            "--to",
            "html",
            "--output",
            str(target),
            "--syntax-highlighting=none",
        ]
        title = ["--template", str(template), "--shift-heading-level-by=1"]
        done = subprocess.run(
            [*command, *reading, *title, str(source)],
            check=False,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if done.returncode == _HEAP_EXHAUSTED:
            raise ParseFailed(
                ParseFailure.LIMIT, "This file takes more memory than a file may. Split it into smaller ones."
            )
        if done.returncode != 0:
            raise damaged()
        return target.read_text(encoding="utf-8")


_PANDOC_HEAP_MIB = 768
_TEMPLATE = "$if(title)$<h1>$title$</h1>$endif$\n$body$\n"
"""The title is no heading to pandoc, and above all of them to a reader."""
_HEAP_EXHAUSTED = 251
"""How programs written in Haskell end when their heap is full."""


@contextmanager
def office_converted(path: Path, source_ending: str, target_ending: str) -> Iterator[Path]:
    """The document as LibreOffice saves it in another format. Raises ParseFailed.

    It has a profile of its own each time, so that no document leaves anything for the next.
    """
    program = shutil.which("soffice")
    if program is None:
        raise ParseFailed(
            ParseFailure.UNSUPPORTED,
            f"A .{source_ending} file is read with LibreOffice, which is not installed here. Install the packages "
            f"{_PACKAGES} where the worker runs, or save the file as .{target_ending}.",
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"document.{source_ending}"
        # By name it chooses the reader; stored files have names that tell nothing.
        source.symlink_to(path.absolute())
        options = [
            "--headless",
            "--norestore",
            "--nologo",
            "--nolockcheck",
            "--nodefault",
            "--nofirststartwizard",
        ]
        profile = f"-env:UserInstallation=file://{folder}/profile"
        subprocess.run(
            [
                program,
                profile,
                *options,
                "--convert-to",
                target_ending,
                "--outdir",
                f"{folder}/out",
                str(source),
            ],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # It ends with 0 for a file that it cannot read, too.
        target = Path(folder) / "out" / f"document.{target_ending}"
        if not target.exists():
            raise damaged()
        yield target


_PACKAGES = "libreoffice-writer-nogui and libreoffice-impress-nogui"
