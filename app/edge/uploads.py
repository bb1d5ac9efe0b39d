"""Reads a multipart form as it arrives: its file goes straight to disk, and no byte beyond the limit is kept."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.edge.filenames import safe_filename
from app.errors import BadRequest, WrongContentType
from retrieval.blobs import Receiver

MAX_FIELD_BYTES = 64 * 1024
MAX_PARTS = 32
MAX_HEADER_BYTES = 8 * 1024


@dataclass
class Form:
    """The form's fields; the file's bytes went to the receiver."""

    filename: str | None = None
    fields: dict[str, str] = field(default_factory=dict)


async def receive_form(
    content_type: str | None, body: AsyncIterator[bytes], receiver: Receiver, *, file_field: str
) -> Form:
    """Raises WrongContentType, BadRequest for what is not a whole multipart form with one file, and TooLarge."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data":
        raise WrongContentType("multipart/form-data")
    if not boundary:
        raise BadRequest("The header Content-Type names no boundary of the form's parts.", param=file_field)
    form = _Events(receiver, file_field)
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": form.begin_part,
            "on_header_field": form.add_header_name,
            "on_header_value": form.add_header_value,
            "on_header_end": form.end_header,
            "on_headers_finished": form.end_headers,
            "on_part_data": form.add_data,
            "on_part_end": form.end_part,
            "on_end": form.end,
        },
    )
    try:
        async for piece in body:
            parser.write(piece)
    except FormParserError as error:
        raise BadRequest(f"The multipart body is malformed: {error}") from error
    if not form.complete:
        raise BadRequest("The multipart body ends before its last boundary: the upload was cut.")
    if not form.has_file:
        raise BadRequest(f"The form has no file in its field '{file_field}'.", param=file_field)
    return form.form


class _Events:
    """Takes the parser's events."""

    def __init__(self, receiver: Receiver, file_field: str) -> None:
        self.form = Form()
        self.complete = False
        self.has_file = False
        self._file_field = file_field
        self._receiver = receiver
        self._parts = 0

    def begin_part(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise BadRequest(f"The form has more than {MAX_PARTS} parts.")
        self._name = ""
        self._is_file = False
        self._headers: dict[bytes, bytes] = {}
        self._header_name = b""
        self._header_value = b""
        self._value = b""

    def add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]
        self._limit_header()

    def add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        self._limit_header()

    def end_header(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._is_file = self._name == self._file_field
        if self._name in self.form.fields or (self._is_file and self.has_file):
            raise BadRequest(f"The field '{self._name}' stands in the form twice.", param=self._name)
        if self._is_file:
            self.has_file = True
            if b"filename" in options:
                self.form.filename = safe_filename(options[b"filename"].decode("utf-8", "replace"))

    def add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._receiver.write(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            raise BadRequest(
                f"The field '{self._name}' is longer than {MAX_FIELD_BYTES} bytes.", param=self._name
            )

    def end_part(self) -> None:
        if not self._is_file:
            self.form.fields[self._name] = self._value.decode("utf-8", "replace")

    def end(self) -> None:
        self.complete = True

    def _limit_header(self) -> None:
        if len(self._header_name) + len(self._header_value) > MAX_HEADER_BYTES:
            raise BadRequest(f"A part's header is longer than {MAX_HEADER_BYTES} bytes.")
