"""Files that a message shows: their text, which was uploaded and read, or is sent along."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.answers.prompt import quoted
from app.errors import BadRequest
from retrieval import catalog
from retrieval.access import readable_documents
from retrieval.passages import read_text
from retrieval.scope import Scope
from retrieval.tables import Document, DocumentStatus


def uploaded_text(session: Session, scope: Scope, file_id: str, *, param: str) -> str:
    """As it was parsed for a vector store. Raises BadRequest, FileMissing."""
    catalog.get_file(session, scope, file_id)
    document_id = session.scalar(
        select(Document.id).where(
            readable_documents(scope),
            Document.file_id == file_id,
            Document.status == DocumentStatus.COMPLETED,
        )
    )
    text = None if document_id is None else read_text(session, scope, document_id)
    if text is None:
        raise BadRequest(f"File '{file_id}' has not been read: add it to a vector store first.", param=param)
    return text


def file_text(file_data: str, param: str) -> str:
    """The text in a data URL, or in base64 alone. Raises BadRequest."""
    content = file_data.partition(",")[2] if file_data.startswith("data:") else file_data
    try:
        return base64.b64decode(content, validate=True).decode()
    except ValueError as error:
        raise BadRequest(
            f"{param} is no text in base64. Add other files to a vector store, and send their file_id.",
            param=param,
        ) from error


def check_addresses(messages: Sequence[Mapping[str, Any]]) -> None:
    """An engine fetches what a part's address names, and nothing is fetched here. Raises BadRequest."""
    for number, message in enumerate(messages):
        if not isinstance(parts := message.get("content"), list):
            continue
        for place, part in enumerate(parts):
            for name, value in part.items() if isinstance(part, dict) else ():
                url = (
                    value.get("url") if isinstance(value, dict) else value if name.endswith("_url") else None
                )
                if url is not None and not (isinstance(url, str) and url.startswith("data:")):
                    param = f"messages[{number}].content[{place}].{name}"
                    raise BadRequest(
                        f"{param} must be a data URL: nothing is fetched from the network here.", param=param
                    )


def shown(filename: str | None, text: str) -> str:
    """As the model reads it: a file is a stranger's text, whoever sent it along."""
    return f"File {filename or ''}:\n{quoted(text)}"
