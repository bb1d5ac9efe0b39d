"""Prompt templates: text files of the owner's that requests name, with their variables filled in."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field

from app.errors import BadRequest
from app.responses.items import InputText
from app.routes.body import Body

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_VARIABLE = re.compile(r"\{\{\s*([A-Za-z0-9_-]+)\s*\}\}")


class Prompt(Body):
    id: Name
    version: Name | None = None
    variables: dict[str, str | InputText] | None = None


def filled(prompt: Prompt, folder: str) -> str:
    """The template `ID.md`, or `ID@VERSION.md`, in which `{{name}}` is a variable. Blocks. Raises BadRequest."""
    named = prompt.id if prompt.version is None else f"{prompt.id}@{prompt.version}"
    file = Path(folder, f"{named}.md")
    if not folder or not file.is_file():
        raise BadRequest(
            f"prompt: there is no template '{named}'. Templates are files in the folder of the setting "
            "chat.prompts_folder.",
            param="prompt.id" if prompt.version is None else "prompt.version",
        )
    values = {
        name: value if isinstance(value, str) else value.text
        for name, value in (prompt.variables or {}).items()
    }
    template = file.read_text("utf-8").strip()
    wanted = set(_VARIABLE.findall(template))
    for name in sorted(wanted ^ values.keys()):
        wrong = "needs" if name in wanted else "does not know"
        raise BadRequest(
            f"prompt.variables: the template '{named}' {wrong} '{name}'.", param=f"prompt.variables.{name}"
        )
    # In one pass: a value that looks like a variable stays what it is.
    return _VARIABLE.sub(lambda found: values[found[1]], template)
