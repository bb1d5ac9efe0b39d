"""README's words on sizes and on what goes wrong are those of the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.sizing import table, written
from tests.stack import ROOT

ROOMS = ("app", "ingest", "retrieval", "serving")
TROUBLE = (ROOT / "README.md").read_text().split("\n## When something is wrong\n")[1].split("\n## ")[0]
MESSAGES = re.findall(r"^\| `([^`]+)` \|", TROUBLE, re.MULTILINE)


def texts(path: Path) -> Iterator[str]:
    """Each text of a module, with … for what is put into it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.fixture(scope="module")
def all_texts() -> list[str]:
    in_code = [text for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")) for text in texts(path)]
    return [*in_code, (ROOT / "app" / "running" / "haproxy.cfg").read_text()]


def test_there_are_messages() -> None:
    assert len(MESSAGES) >= 15


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_that_readme_explains_is_one_that_the_code_gives(
    all_texts: list[str], message: str
) -> None:
    assert any(message in text for text in all_texts)


def test_the_sizing_table_is_what_plan_counts() -> None:
    assert written() == table()
