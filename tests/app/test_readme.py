"""README's tree is the tree."""

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
LISTED = ("app", "ingest", "retrieval", "serving")


def test_the_readmes_tree_is_each_module_with_the_first_line_of_its_docstring() -> None:
    tree = (ROOT / "README.md").read_text().split("## The tree")[1].split("\n## ")[0]
    told = dict(re.findall(r"^- `([^`]+)` (.+)$", tree, re.MULTILINE))
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *LISTED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    modules = [
        path
        for path in tracked
        if path.endswith(".py") and not path.endswith("__init__.py") and "/versions/" not in path
    ]
    assert told == {path: first_line(ROOT / path) for path in modules}


def first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]


def test_each_package_has_a_readme_that_names_its_modules() -> None:
    for package in LISTED:
        text = (ROOT / package / "README.md").read_text()
        for module in (ROOT / package).glob("*.py"):
            if module.name != "__init__.py":
                assert module.stem in text, f"{package}/README.md does not name {module.name}"
