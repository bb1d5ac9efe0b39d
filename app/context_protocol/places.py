"""Ids of documents, their pages and places in them: what `search` gives, `fetch` takes and resources are named by."""

import re
from dataclasses import dataclass

from app.errors import BadRequest
from app.routes.ids import FILE, STORE

SCHEME = "strongroom://"
_ID = re.compile(
    rf"(?P<collection>{STORE[1:-1]})/(?P<file>{FILE[1:-1]})"
    r"(?:/page/(?P<page>[1-9][0-9]{0,5}))?(?:/from/(?P<start>[0-9]{1,10}))?"
)


@dataclass(frozen=True)
class DocumentPlace:
    """A document, or one page of it, from a character on: `start_char` counts in the document's text."""

    collection_id: str
    file_id: str
    page: int | None = None
    start_char: int | None = None

    @property
    def id(self) -> str:
        page = "" if self.page is None else f"/page/{self.page}"
        start = "" if self.start_char is None else f"/from/{self.start_char}"
        return f"{self.collection_id}/{self.file_id}{page}{start}"

    @property
    def uri(self) -> str:
        return SCHEME + self.id

    @classmethod
    def read(cls, told: str, *, param: str) -> "DocumentPlace":
        """Raises BadRequest."""
        found = _ID.fullmatch(told)
        if found is None:
            raise BadRequest(
                f"{param} must be an id as `search` gives it, such as 'vs_…/file-…' or 'vs_…/file-…/page/3'.",
                param=param,
            )
        page, start = found["page"], found["start"]
        return cls(
            found["collection"],
            found["file"],
            page=None if page is None else int(page),
            start_char=None if start is None else int(start),
        )
