"""The input file of a batch: its lines, read and checked, with the number of each that is wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from ingest.elements import Openable

MOST_LINES = 50_000
MOST_LINE_BYTES = 16 * 1024 * 1024
MOST_ERRORS = 100
"""That are told of one file; who mends those finds the others."""

Json = dict[str, Any]


@dataclass(frozen=True)
class InputLine:
    """A request of a batch."""

    number: int
    """From 1, blank lines counted."""
    custom_id: str
    body: Json


class LineWrong(Exception):
    """A line is no request, or not one that this batch runs."""

    def __init__(self, code: str, message: str, *, line: int | None, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.line = line
        self.param = param

    def told(self) -> Json:
        return {"code": self.code, "message": str(self), "param": self.param, "line": self.line}


@dataclass(frozen=True)
class Surveyed:
    """What a whole file holds."""

    total: int
    model: str | None
    """Of the first request."""
    errors: tuple[LineWrong, ...]


def survey(content: Openable, *, endpoint: str) -> Surveyed:
    """Reads it all. Without errors, each line can be asked for with `read_lines`."""
    errors: list[LineWrong] = []
    seen: dict[str, int] = {}
    model: str | None = None
    for number, raw in _raw_lines(content):
        if len(seen) == MOST_LINES or len(errors) == MOST_ERRORS:
            break
        try:
            line = _read(number, raw, endpoint)
            if (first := seen.setdefault(line.custom_id, number)) != number:
                raise LineWrong(
                    "duplicate_custom_id",
                    f"The custom_id '{line.custom_id}' stands in line {first} already.",
                    line=number,
                    param="custom_id",
                )
            model = model or line.body["model"]
        except LineWrong as wrong:
            errors.append(wrong)
    else:
        if not seen and not errors:
            errors.append(LineWrong("empty_file", "The file holds no requests.", line=None))
        return Surveyed(len(seen), model, tuple(errors))
    if len(errors) < MOST_ERRORS:
        errors.append(LineWrong("too_many_tasks", f"A batch has at most {MOST_LINES} requests.", line=number))
    return Surveyed(len(seen), model, tuple(errors))


def read_lines(content: Openable, *, endpoint: str) -> Iterator[InputLine]:
    """Of a file that was surveyed without errors."""
    for number, raw in _raw_lines(content):
        yield _read(number, raw, endpoint)


def _raw_lines(content: Openable) -> Iterator[tuple[int, bytes]]:
    with content.open("rb") as file:
        number = 0
        while raw := file.readline(MOST_LINE_BYTES + 1):
            number += 1
            if raw.strip():
                yield number, raw
            if len(raw) > MOST_LINE_BYTES:
                return  # It is refused, and the rest of the file with it.


def _read(number: int, raw: bytes, endpoint: str) -> InputLine:
    """Raises LineWrong."""

    def wrong(code: str, message: str, param: str | None = None) -> LineWrong:
        return LineWrong(code, message, line=number, param=param)

    if len(raw) > MOST_LINE_BYTES:
        raise wrong("line_too_long", f"The line is longer than {MOST_LINE_BYTES} bytes.")
    try:
        sent = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise wrong("invalid_json_line", f"The line is not valid JSON: {error}.") from error
    if not isinstance(sent, dict):
        raise wrong("invalid_json_line", "The line is not a JSON object.")
    custom_id = sent.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= 512:
        raise wrong("invalid_custom_id", "custom_id must be a text of 1 to 512 characters.", "custom_id")
    if sent.get("method") != "POST":
        raise wrong("invalid_method", "method must be 'POST'.", "method")
    if sent.get("url") != endpoint:
        raise wrong("mismatched_url", f"url must be the batch's endpoint, '{endpoint}'.", "url")
    body = sent.get("body")
    if not isinstance(body, dict):
        raise wrong("invalid_body", "body must be an object.", "body")
    if not isinstance(body.get("model"), str):
        raise wrong("missing_model", "body.model must name a model.", "body.model")
    if body.get("stream"):
        raise wrong("stream_not_taken", "body.stream: a batch does not stream.", "body.stream")
    return InputLine(number, custom_id, body)
