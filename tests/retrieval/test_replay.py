"""What the ledger says is gone goes again, of every kind, and nothing beside it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from ingest.sources.registry import remove_source
from retrieval.blobs import BlobStore
from retrieval.catalog import delete_collection, delete_document, delete_file
from retrieval.conversations import add_items, create_conversation, delete_conversation, delete_item
from retrieval.database import Database
from retrieval.ledger import Entry, LedgerFile, recorded
from retrieval.replay import catch_up, is_alive, replay
from retrieval.responses import add_response, delete_response, get_response
from retrieval.saved_questions import delete_question, save_question
from retrieval.scope import Scope
from retrieval.stored_completions import add_completion, delete_completion
from retrieval.tables import (
    Conversation,
    DeletedKind,
    Deletion,
    Document,
    Item,
    Key,
    ResponseStatus,
    SavedQuestion,
    Source,
    StoredCompletion,
    StoredResponse,
    UploadPart,
    UploadState,
)
from retrieval.uploads import NewUpload, add_part, add_upload, close_upload, get_upload
from tests.retrieval.library import new_collection, shelve

Deleting = Callable[[Session], object]


class _Undone(Exception):
    """So that the database is as it was before, as after a restore."""


class Shelves:
    """One of everything that can be deleted, twice: the second of each has to stay."""

    def __init__(self, database: Database, scope: Scope, folder: Path) -> None:
        self.database, self.scope, self.blobs = database, scope, BlobStore(folder)
        self.collection = new_collection(database, scope)
        self.document = shelve(database, scope, self.collection, "The vault opens at nine.")
        shelve(database, scope, self.collection, "The key hangs in the hall.")
        with database.write() as session:
            for number in (1, 2):
                self._add(session, number)
        self.other_collection = new_collection(database, scope, "empty")

    def _add(self, session: Session, number: int) -> None:
        scope = self.scope
        item = {"id": f"msg_{number}", "type": "message", "role": "user", "content": []}
        source = Source(id=f"src_{number}", tenant_id=scope.tenant_id, collection_id=self.collection.id)
        source.url, source.include, source.exclude, source.max_bytes = f"/letters/{number}", [], [], 9
        source.is_watched = source.is_paused = False
        source.attributes, source.chunking, source.created_at = {}, {}, 1.0
        session.add(source)
        completion = StoredCompletion(id=f"chatcmpl-{number}", tenant_id=scope.tenant_id, model="rag")
        completion.attributes, completion.messages, completion.completion = {}, "[]", "{}"
        completion.created_at = 1.0
        add_completion(session, scope, completion, file_ids=[])
        response = StoredResponse(id=f"resp_{number}", tenant_id=scope.tenant_id, key_id=scope.key_id)
        response.status, response.is_background = ResponseStatus.COMPLETED, False
        response.content, response.created_at = {}, 1.0
        add_response(session, response, asked=[item])
        conversation = create_conversation(session, scope, attributes={}, now=1.0)
        add_items(session, scope, conversation.id, [item, {**item, "id": f"a client's own {number}"}])
        new = NewUpload("a.txt", "assistants", "text/plain", 9, None)
        upload = add_upload(session, scope, new, now=float(number))
        with self.blobs.receive(limit_bytes=9, blob_id=f"part_{number}") as receiver:
            receiver.write(b"some")
            received = receiver.finish()
            row = self.blobs.row(session, scope.tenant_id, received)
            add_part(session, upload, row, now=1.0)
            self.blobs.keep(received)
        question_id = save_question(
            session, scope, set_name="vault", question="How cold?", answer=None, places=[], now=1.0
        )
        if number == 1:
            self.question_id = question_id
            self.conversation_id, self.upload_id = conversation.id, upload.id

    def deleting(self, kind: DeletedKind) -> Deleting:
        """How the routes delete the first of that kind."""
        scope = self.scope
        acts: dict[DeletedKind, Deleting] = {
            DeletedKind.FILE: lambda session: delete_file(session, scope, self.document.file_id),
            DeletedKind.COLLECTION: lambda session: delete_collection(
                session, scope, self.other_collection.id
            ),
            DeletedKind.DOCUMENT: lambda session: delete_document(
                session, scope, self.collection.id, self.document.file_id
            ),
            DeletedKind.SOURCE: lambda session: remove_source(session, scope, "src_1"),
            DeletedKind.UPLOAD: lambda session: close_upload(
                session, get_upload(session, scope, self.upload_id), UploadState.COMPLETED
            ),
            DeletedKind.COMPLETION: lambda session: delete_completion(session, scope, "chatcmpl-1"),
            DeletedKind.RESPONSE: lambda session: delete_response(
                session, get_response(session, scope, "resp_1")
            ),
            DeletedKind.CONVERSATION: lambda session: delete_conversation(
                session, scope, self.conversation_id
            ),
            DeletedKind.ITEM: lambda session: delete_item(
                session, scope, self.conversation_id, "a client's own 1"
            ),
            DeletedKind.QUESTION: lambda session: delete_question(session, scope, self.question_id),
        }
        return acts[kind]

    def counts(self) -> dict[str, int]:
        tables = (
            Document,
            Source,
            StoredCompletion,
            StoredResponse,
            Conversation,
            Item,
            UploadPart,
            SavedQuestion,
        )
        with self.database.read() as session:
            return {table.__tablename__: session.query(table).count() for table in tables}


GONE_WITH_IT = {
    DeletedKind.FILE: {"documents": 1},
    DeletedKind.COLLECTION: {},
    DeletedKind.DOCUMENT: {"documents": 1},
    DeletedKind.SOURCE: {"sources": 1},
    DeletedKind.UPLOAD: {"upload_parts": 1},
    DeletedKind.COMPLETION: {"stored_completions": 1},
    DeletedKind.RESPONSE: {"responses": 1, "items": 1},
    DeletedKind.CONVERSATION: {"conversations": 1, "items": 2},
    DeletedKind.ITEM: {"items": 1},
    DeletedKind.QUESTION: {"saved_questions": 1},
}


@pytest.fixture
def shelves(database: Database, scope: Scope, tmp_path: Path) -> Shelves:
    return Shelves(database, scope, tmp_path / "blobs")


@pytest.mark.parametrize("kind", GONE_WITH_IT)
def test_what_was_deleted_later_than_this_database_goes_again(
    shelves: Shelves, tmp_path: Path, kind: DeletedKind
) -> None:
    entries: list[Entry] = []

    def delete_and_undo() -> None:
        with shelves.database.write() as session:
            shelves.deleting(kind)(session)
            entries.extend(recorded(session))
            raise _Undone

    before = shelves.counts()
    with pytest.raises(_Undone):
        delete_and_undo()
    (entry,) = entries
    assert entry.kind is kind
    ledger = LedgerFile(tmp_path / "deletions.ledger")
    ledger.append(entries)
    assert ledger.read() == {entry}
    assert catch_up(shelves.database, shelves.blobs, ledger) == 1
    assert shelves.counts() == {
        name: count - GONE_WITH_IT[kind].get(name, 0) for name, count in before.items()
    }
    with shelves.database.read() as session:
        assert not is_alive(session, entry)
    assert set(shelves.blobs.ids()) == ({"part_2"} if kind is DeletedKind.UPLOAD else {"part_1", "part_2"})
    assert catch_up(shelves.database, shelves.blobs, ledger) == 0


def test_what_is_another_tenants_by_now_stays(shelves: Shelves, other_scope: Scope) -> None:
    before = shelves.counts()
    entries = [
        Entry(kind, name, other_scope.tenant_id)
        for kind, name in (
            (DeletedKind.SOURCE, "src_1"),
            (DeletedKind.UPLOAD, shelves.upload_id),
            (DeletedKind.COMPLETION, "chatcmpl-1"),
            (DeletedKind.RESPONSE, "resp_1"),
            (DeletedKind.CONVERSATION, shelves.conversation_id),
        )
    ]
    replay(shelves.database, shelves.blobs, entries)
    assert shelves.counts() == before


def test_sessions_that_were_ended_stay_so_and_later_ones_of_the_key_go_on(
    shelves: Shelves, tmp_path: Path
) -> None:
    """One that was signed out has no row: the ledger in SQL is all that tells of it."""
    tenant_id, key_id = shelves.scope.tenant_id, shelves.scope.key_id
    ledger = LedgerFile(tmp_path / "deletions.ledger")
    of_key = [Entry(DeletedKind.KEY_SESSIONS, f"{key_id}/{at}", tenant_id) for at in (1700000000.25, 900.5)]
    ledger.append([*of_key, Entry(DeletedKind.SESSION, "session_1", tenant_id)])
    assert catch_up(shelves.database, shelves.blobs, ledger) == 1
    with shelves.database.read() as session:
        assert session.get_one(Key, key_id).sessions_since == 1700000000.25
        assert session.get(Deletion, (DeletedKind.SESSION, "session_1")) is not None
        assert not any(is_alive(session, entry) for entry in ledger.read())
    with shelves.database.write() as session:
        session.get_one(Key, key_id).sessions_since = 1800000000.0
    assert replay(shelves.database, shelves.blobs, of_key) == 0
    with shelves.database.read() as session:
        assert session.get_one(Key, key_id).sessions_since == 1800000000.0
