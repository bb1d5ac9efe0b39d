"""Files that hold secrets: whole or absent whatever happens, and refused when others can read them."""

import os
import secrets
import stat
from pathlib import Path


class KeysUnusable(Exception):
    """A key is missing, unsafe or the wrong one; the message says which and what to do."""


def check_private(path: Path) -> None:
    """Raises KeysUnusable for a key that others may read."""
    mode = path.stat().st_mode
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise KeysUnusable(
            f"{path} can be read or changed by others (mode {stat.S_IMODE(mode):04o}): run `chmod 600 {path}`. "
            "If anyone had access, change the key."
        )


def write_once(path: Path, text: str) -> None:
    """A file that only its owner reads, complete or absent whatever happens; an existing one is left alone."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = _written_beside(path, text)
    try:
        # Unlike a rename, a link fails when another process was first: both then read that one's secret.
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    _sync_folder(path.parent)


def replace_file(path: Path, text: str) -> None:
    """As `write_once`, in the place of what is there: a reader sees the one or the other."""
    _written_beside(path, text).replace(path)
    _sync_folder(path.parent)


def _written_beside(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _sync_folder(path: Path) -> None:
    # Else a power cut could forget the name after the database has kept what rests on this secret.
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
