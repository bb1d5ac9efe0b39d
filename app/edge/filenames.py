"""Names of files as clients send them, made fit to be shown."""


def safe_filename(name: str) -> str:
    """A name to show, never a path: without folders and control characters, at most 255 characters."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    printable = "".join(character for character in last if character.isprintable())
    return printable[:255] if printable not in ("", ".", "..") else "unnamed"
