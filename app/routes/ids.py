"""Ids as clients send them: one of another kind, or that no id can be, is 400; one that nothing has is 404."""

from typing import Annotated

from fastapi import Path
from pydantic import StringConstraints

_REST = "[A-Za-z0-9_-]{1,64}$"
STORE, FILE, BATCH = f"^vs_{_REST}", f"^file-{_REST}", f"^vsfb_{_REST}"
UPLOAD, PART = f"^upload_{_REST}", f"^part_{_REST}"

StoreId = Annotated[str, Path(alias="vector_store_id", pattern=STORE)]
FileId = Annotated[str, Path(pattern=FILE)]
BatchId = Annotated[str, Path(pattern=BATCH)]
UploadId = Annotated[str, Path(pattern=UPLOAD)]

NamedFile = Annotated[str, StringConstraints(pattern=FILE)]
"""In a body: which file is meant."""
NamedPart = Annotated[str, StringConstraints(pattern=PART)]
