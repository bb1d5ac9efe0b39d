"""Deletes again what a ledger says was deleted: for a database that was put back to an earlier state."""

import secrets
from collections.abc import Iterable
from contextlib import suppress

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.orm import Session

from retrieval.blobs import BlobStore
from retrieval.catalog import NotFound, delete_collection, delete_document, delete_file
from retrieval.conversations import delete_conversation, delete_item, name_in_ledger
from retrieval.database import Database
from retrieval.ledger import Entry, LedgerFile, entries_in_sql, record
from retrieval.responses import delete_response, get_response
from retrieval.saved_questions import delete_question
from retrieval.scope import within
from retrieval.stored_completions import delete_completion
from retrieval.tables import (
    Base,
    Collection,
    Conversation,
    DeletedKind,
    Document,
    File,
    Item,
    Key,
    SavedQuestion,
    Source,
    StoredCompletion,
    StoredResponse,
    Upload,
    UploadState,
)
from retrieval.uploads import close_upload, get_upload


def catch_up(database: Database, blobs: BlobStore, ledger: LedgerFile) -> int:
    """Makes the ledgers in SQL and in the file one, and the tables obey it. Returns how much was deleted again."""
    with database.read() as session:
        in_sql = entries_in_sql(session)
    in_file = ledger.read()
    ledger.append(sorted(in_sql - in_file))
    return replay(database, blobs, in_file - in_sql)


def replay(database: Database, blobs: BlobStore, entries: Iterable[Entry]) -> int:
    """Returns how much of it was there. It may be stopped at any time and run again."""
    count = 0
    for entry in sorted(entries):
        with database.write() as session:
            is_there = is_alive(session, entry)
            orphans = _delete(session, entry) if is_there else []
            # Also what is not there now: a backup that is older still may have it.
            record(session, *entry)
        for blob_id in orphans:
            blobs.remove(blob_id)
        count += is_there
    return count


def is_alive(session: Session, entry: Entry) -> bool:
    """Whether what the ledger says is gone can still be seen."""
    match entry.kind:
        case DeletedKind.DOCUMENT:
            return _document(session, entry) is not None
        case DeletedKind.ITEM:
            return _item(session, entry) is not None
        case DeletedKind.UPLOAD:
            upload = session.get(Upload, entry.object_id)
            return upload is not None and upload.state is UploadState.PENDING
        case DeletedKind.QUESTION:
            return session.scalar(_rows_of_question(entry).limit(1)) is not None
        case DeletedKind.KEY:
            key = session.get(Key, entry.object_id)
            return key is not None and key.revoked_at is None
        case DeletedKind.KEY_TEXT:
            return _key_of_text(session, entry) is not None
        case DeletedKind.SESSION:
            return False
        case DeletedKind.KEY_SESSIONS:
            return _key_with_sessions(session, entry) is not None
        case _:
            return session.get(_ROW[entry.kind], entry.object_id) is not None


_ROW: dict[DeletedKind, type[Base]] = {
    DeletedKind.FILE: File,
    DeletedKind.COLLECTION: Collection,
    DeletedKind.SOURCE: Source,
    DeletedKind.COMPLETION: StoredCompletion,
    DeletedKind.RESPONSE: StoredResponse,
    DeletedKind.CONVERSATION: Conversation,
}


def _delete(session: Session, entry: Entry) -> list[str]:
    """Returns the ids of blobs to remove after the commit."""
    scope = within(entry.tenant_id, "ledger")
    # What is another tenant's by now is not what was deleted.
    with suppress(NotFound):
        match entry.kind:
            case DeletedKind.FILE:
                return delete_file(session, scope, entry.object_id)
            case DeletedKind.COLLECTION:
                delete_collection(session, scope, entry.object_id)
            case DeletedKind.DOCUMENT:
                collection_id, file_id, _ = entry.object_id.split("/")
                delete_document(session, scope, collection_id, file_id)
            case DeletedKind.SOURCE:
                owned = (Source.id == entry.object_id, Source.tenant_id == entry.tenant_id)
                session.execute(delete(Source).where(*owned))
            case DeletedKind.UPLOAD:
                upload = get_upload(session, scope, entry.object_id, locks=True)
                return close_upload(session, upload, UploadState.CANCELLED)
            case DeletedKind.COMPLETION:
                delete_completion(session, scope, entry.object_id)
            case DeletedKind.RESPONSE:
                delete_response(session, get_response(session, scope, entry.object_id, lock=True))
            case DeletedKind.CONVERSATION:
                delete_conversation(session, scope, entry.object_id)
            case DeletedKind.ITEM:
                item = _item(session, entry)
                assert item is not None, "it is alive"
                delete_item(session, scope, entry.object_id.split("/")[0], item.public_id)
            case DeletedKind.QUESTION:
                delete_question(session, scope, entry.object_id)
            case DeletedKind.KEY | DeletedKind.KEY_TEXT | DeletedKind.KEY_SESSIONS:
                _end_key(session, entry)
    return []


def _end_key(session: Session, entry: Entry) -> None:
    """What it opened: all of it, by its text alone, or the sessions of the console from before."""
    match entry.kind:
        case DeletedKind.KEY_TEXT:
            key = _key_of_text(session, entry)
            assert key is not None, "it is alive"
            # No text has this digest: the one that came after is not in this database.
            key.digest, key.old_digest, key.old_until = secrets.token_hex(32), None, None
        case DeletedKind.KEY_SESSIONS:
            key = _key_with_sessions(session, entry)
            assert key is not None, "it is alive"
            key.sessions_since = float(entry.object_id.split("/")[1])
        case _:
            session.execute(
                update(Key)
                .where(Key.id == entry.object_id, Key.tenant_id == entry.tenant_id)
                .values(revoked_at=func.coalesce(Key.revoked_at, Key.created_at))
            )


def _rows_of_question(entry: Entry) -> Select[int]:
    return select(SavedQuestion.id).where(
        SavedQuestion.tenant_id == entry.tenant_id, SavedQuestion.question_id == entry.object_id
    )


def _document(session: Session, entry: Entry) -> Document | None:
    """That very one: its file may have been put into the collection again since, as another document."""
    collection_id, file_id, created_at = entry.object_id.split("/")
    document = session.scalar(
        select(Document).where(Document.collection_id == collection_id, Document.file_id == file_id)
    )
    return document if document is not None and str(document.created_at) == created_at else None


def _key_of_text(session: Session, entry: Entry) -> Key | None:
    """The key that this text still opens."""
    key_id, digest = entry.object_id.split("/")
    key = session.get(Key, key_id)
    return key if key is not None and digest == key.digest else None


def _key_with_sessions(session: Session, entry: Entry) -> Key | None:
    """The key, if sessions from before that time would open it."""
    key_id, ended_at = entry.object_id.split("/")
    key = session.get(Key, key_id)
    return key if key is not None and (key.sessions_since or 0.0) < float(ended_at) else None


def _item(session: Session, entry: Entry) -> Item | None:
    _, row, _ = entry.object_id.split("/")
    item = session.get(Item, int(row))
    return item if item is not None and name_in_ledger(item) == entry.object_id else None
