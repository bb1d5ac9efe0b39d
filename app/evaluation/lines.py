"""Reads JSON lines that somebody wrote: each is checked, and what is wrong is told with its line."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError


class EvaluationRefused(Exception):
    """What was given cannot be evaluated; the message says what is wrong, and where."""


Line = TypeVar("Line", bound=BaseModel)


def read_lines(path: Path, kind: type[Line]) -> Iterator[tuple[int, Line]]:
    """Each line with its number, from 1; empty ones are passed over. Raises EvaluationRefused."""
    try:
        with path.open("rb") as content:
            for number, raw in enumerate(content, 1):
                if raw.strip():
                    yield number, _checked(path, number, raw, kind)
    except OSError as error:
        raise EvaluationRefused(f"{path} cannot be read: {error.strerror}.") from error


def _checked(path: Path, number: int, raw: bytes, kind: type[Line]) -> Line:
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        what = f"{field}: {first['msg']}" if field else first["msg"]
        raise EvaluationRefused(f"{path}, line {number}: {what}.") from error
