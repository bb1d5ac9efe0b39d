"""Each documented command exists, with its options; `make docs-check` runs it, or tells why not."""

import importlib.util
import re
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from app.cli import cli
from tests.docs.commands import AS_RUN, NOT_RUN
from tests.docs.documented import PAGES, commands
from tests.stack import ROOT

COMMANDS = commands()


def test_the_tables_are_of_commands_that_are_documented() -> None:
    assert not AS_RUN.keys() & NOT_RUN.keys()
    assert (AS_RUN.keys() | NOT_RUN.keys()) <= set(COMMANDS)


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("strongroom ")])
def test_a_command_of_ours_exists_with_its_options(command: str) -> None:
    found = get_command(cli)
    path = "strongroom"
    words = re.sub(r"[\[\]]", "", command).split()[1:]
    while words and isinstance(found, TyperGroup) and words[0] in found.commands:
        path = f"{path} {words[0]}"
        found = found.commands[words.pop(0)]
    known = {option for each in found.params for option in each.opts}
    known |= {"--install-completion", "--help"}
    assert {word for word in words if word.startswith("--")} <= known, path
    if isinstance(found, TyperGroup):
        assert all(word.startswith("--") for word in words), path


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("make ")])
def test_a_target_exists(command: str) -> None:
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("python -m ")])
def test_a_module_exists(command: str) -> None:
    assert importlib.util.find_spec(command.split()[2]) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.parent.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = re.findall(r"`((?:app|ingest|retrieval|serving|tests)/[\w./]+?)(?:::\w+)?`", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.parent.relative_to(ROOT)))
def test_settings_that_a_page_names_are_there(page: Path) -> None:
    known = set(re.findall(r"STRONGROOM_\w+", (ROOT / ".env.example").read_text()))
    named = set(re.findall(r"STRONGROOM_[A-Z_]+__[A-Z_]+\b", page.read_text()))
    assert {name.removesuffix("_FILE") for name in named} - {"STRONGROOM_SECTION__NAME"} <= known
