"""Lets Python 3.11 read OGX, which asks for 3.12 for the sake of some type parameters: only annotations change.

As of 1.5, six of its modules declare `def name[T](…)`, `class Name[T]:` or `type Name = …`.
"""

import re
from pathlib import Path

ALIAS = re.compile(r"^type (\w+) = (.+)$", re.MULTILINE)
FUNCTION = re.compile(r"^((?:async )?def \w+)\[(\w+)(?:: (\w+))?\](?=\()", re.MULTILINE)
CLASS = re.compile(r"^(class \w+)\[(\w+)\]:", re.MULTILINE)
IMPORT = "from typing import Generic, TypeVar"


def rewrite(packages: Path) -> None:
    """Each module of OGX under `packages` (a site-packages folder) that this Python cannot compile."""
    for path in sorted((*packages.glob("ogx/**/*.py"), *packages.glob("ogx_api/**/*.py"))):
        source = path.read_text("utf-8")
        try:
            compile(source, path, "exec")
        except SyntaxError:
            path.write_text(rewritten(source), "utf-8")


def rewritten(source: str) -> str:
    source = ALIAS.sub(r'\1 = "\2"', source)  # quoted, since its names may be imported for type checkers only
    source = FUNCTION.sub(lambda found: f"{_parameter(found[2], found[3])}{found[1]}", source)
    return CLASS.sub(lambda found: f"{_parameter(found[2], None)}{found[1]}(Generic[{found[2]}]):", source)


def _parameter(name: str, bound: str | None) -> str:
    of = f', bound="{bound}"' if bound else ""
    return f'{IMPORT}\n\n{name} = TypeVar("{name}"{of})\n\n\n'
