"""The README's table of OpenAI's parameters, made of both documents: `python -m tests.contracts.parameters --write`."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from app.api import create_app
from app.settings import read_settings
from tests.contracts.coverage import PASSED_THROUGH, is_taken, kinds_of
from tests.contracts.openai_spec import AREAS, Json, Operation, Spec, openai_spec

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = (
    "<!-- parameters: python -m tests.contracts.parameters --write -->\n",
    "<!-- end of parameters -->",
)


def table(document: Json) -> str:
    """Markdown; `document` is our OpenAPI document."""
    theirs, ours = openai_spec(), Spec(document)
    rows = [
        "| operation | honoured | passed through | refused | ours beside |",
        "| --- | --- | --- | --- | --- |",
    ]
    for area in AREAS:
        for operation in theirs.operations.values():
            if operation.area == area:
                rows += _row(theirs, operation, ours)
    return "\n".join(rows) + "\n"


def written(readme: str, made: str) -> str:
    """The README with this table in it."""
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}{made}{END}{rest.partition(END)[2]}"


def _row(theirs: Spec, operation: Operation, ours: Spec) -> Iterator[str]:
    name = f"`{operation.method.upper()} /v1{operation.path}`"
    own = ours.operations.get(operation.shape)
    told = dict(_names(theirs, operation))
    if own is None:
        yield f"| {name} | | | not there | |"
        return
    declared = dict(_names(ours, own))
    if not told and not declared:
        return
    honoured = [each for each in told if each in declared and not declared[each]]
    passed = [each for each in told if declared.get(each)]
    refused = [each for each in told if each not in declared]
    beside = [each for each in declared if each not in told]
    yield f"| {name} | {_list(honoured)} | {_list(passed)} | {_list(refused)} | {_list(beside)} |"


def _names(spec: Spec, operation: Operation) -> Iterator[tuple[str, bool]]:
    """Of query parameters and of a body's fields that are taken, and whether they are passed through."""
    for each in operation.parameters:
        yield each["name"], False
    for body in list(operation.body.values())[:1]:
        for kind in kinds_of(spec, body):
            for name, schema in kind.get("properties", {}).items():
                if is_taken(schema):
                    yield name, all(each.get(PASSED_THROUGH) for each in kinds_of(spec, schema))


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def our_document() -> Json:
    return create_app(read_settings()).openapi()


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints the README's table of OpenAI's parameters.")
    parser.add_argument("--write", action="store_true", help="put it into README.md")
    made = table(our_document())
    if parser.parse_args().write:
        README.write_text(written(README.read_text(), made))
    else:
        print(made)


if __name__ == "__main__":
    main()
