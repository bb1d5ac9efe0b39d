"""Groups: what a scope sees of collections, documents, files and answers, by every way that leads to them."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.access.auth import KeyRing, NewKey
from retrieval import catalog, request_batches
from retrieval.access import readable_documents, readers_of, would_read
from retrieval.batches import Access, Member, attach_files, count_batch, create_batch
from retrieval.catalog import (
    CollectionMissing,
    DocumentMissing,
    FileMissing,
    NotGranted,
    PageRequest,
    attach_file,
    set_readers,
)
from retrieval.conversations import TooOpen, add_items, create_conversation, get_conversation
from retrieval.database import Database
from retrieval.passages import read_text
from retrieval.quotes import read_quote
from retrieval.scope import Scope, within
from retrieval.search import DEPTH, Searcher, SearchMode, SearchOptions
from retrieval.stored_completions import CompletionMissing, add_completion, get_completion
from retrieval.tables import (
    EVERY_GROUP,
    Collection,
    Document,
    DocumentStatus,
    File,
    Key,
    Role,
    StoredCompletion,
    Tenant,
)
from retrieval.views import IndexViews
from tests.conftest import SERVER_SECRET
from tests.fakes import FakeEmbedder
from tests.retrieval.library import AUTO, attach, new_collection, new_file, shelve

OPEN, SECRET = "The vault opens at nine.", "The vault is closed by a brass wheel."


@pytest.fixture
def searcher(database: Database) -> Searcher:
    embedder = FakeEmbedder()
    return Searcher(database, IndexViews(), lambda _: embedder, None, default_embedding="fake")


def key(database: Database, tenant_id: str, *groups: str, role: Role = Role.READER) -> Scope:
    with database.write() as session:
        ring = KeyRing(database, SERVER_SECRET)
        made, _ = ring.add_to(session, tenant_id, NewKey("tests", role, groups), now=1.0)
        return Scope(tenant_id, made.id, role, frozenset(groups))


def restrict(database: Database, document: Document, *groups: str) -> None:
    with database.write() as session:
        set_readers(session, session.get_one(Document, document.id), groups or None)


def restrict_collection(
    database: Database,
    collection: Collection,
    *,
    readers: Sequence[str] | None = None,
    writers: Sequence[str] | None = None,
) -> None:
    with database.write() as session:
        row = session.get_one(Collection, collection.id)
        row.readers, row.writers = list(readers) if readers else None, list(writers) if writers else None
        catalog.note_restriction(session, row.tenant_id)


class Shelf:
    """A collection with an open document and one that the board alone reads."""

    def __init__(self, database: Database, scope: Scope) -> None:
        self.database = database
        self.collection = new_collection(database, scope)
        self.open = shelve(database, scope, self.collection, OPEN, filename="open.txt")
        self.secret = shelve(database, scope, self.collection, SECRET, filename="secret.txt")
        restrict(database, self.secret, "board")
        self.board = key(database, scope.tenant_id, "board", "staff")
        self.staff = key(database, scope.tenant_id, "staff")
        self.nobody = key(database, scope.tenant_id)
        self.admin = key(database, scope.tenant_id, role=Role.ADMIN)

    def sees(self, scope: Scope, document: Document) -> bool:
        """By every way; all must say the same."""
        with self.database.read() as session:
            found = session.scalar(
                select(Document.id).where(Document.id == document.id, readable_documents(scope))
            )
            ways = {
                found is not None,
                read_text(session, scope, document.id) is not None,
                read_quote(session, scope, document.id, 0, 9) is not None,
                document.file_id in _files(session, scope),
                document.file_id in _documents(session, scope, document.collection_id),
                self._gets(lambda: catalog.get_file(session, scope, document.file_id)),
                self._gets(
                    lambda: catalog.get_document(session, scope, document.collection_id, document.file_id)
                ),
            }
        (answer,) = ways
        return answer

    def _gets(self, get: object) -> bool:
        assert callable(get)
        try:
            get()
        except catalog.NotFound:
            return False
        return True


def _files(session: Session, scope: Scope) -> set[str]:
    return {file.id for file in catalog.list_files(session, scope, PageRequest())}


def _documents(session: Session, scope: Scope, collection_id: str) -> set[str]:
    try:
        return {row.file_id for row in catalog.list_documents(session, scope, collection_id, PageRequest())}
    except CollectionMissing:
        return set()


@pytest.fixture
def shelf(database: Database, scope: Scope) -> Shelf:
    return Shelf(database, scope)


async def found(
    searcher: Searcher, scope: Scope, mode: SearchMode, collection: Collection | None = None
) -> set[str]:
    candidates = await searcher.search(
        scope,
        "the vault",
        collection_ids=[collection.id] if collection is not None else None,
        options=SearchOptions(mode=mode),
    )
    return {chunk.text for chunk in candidates.chunks}


@pytest.mark.parametrize("mode", SearchMode)
async def test_searches_find_what_the_groups_of_the_key_may_read(
    shelf: Shelf, searcher: Searcher, mode: SearchMode
) -> None:
    for scope in (shelf.board, shelf.admin):
        assert await found(searcher, scope, mode) == {OPEN, SECRET}
        assert await found(searcher, scope, mode, shelf.collection) == {OPEN, SECRET}
    for scope in (shelf.staff, shelf.nobody):
        assert await found(searcher, scope, mode) == {OPEN}
        assert await found(searcher, scope, mode, shelf.collection) == {OPEN}


async def test_what_is_hidden_takes_no_place_among_the_candidates(
    database: Database, scope: Scope, searcher: Searcher
) -> None:
    """The restriction is part of the search: more better hits than a ranking is deep leave the key's own in."""
    collection = new_collection(database, scope)
    secrets = [f"The vault, the vault, the vault {number}." for number in range(DEPTH + 50)]
    secret = shelve(database, scope, collection, *secrets)
    shelve(database, scope, collection, OPEN, filename="open.txt")
    restrict(database, secret, "board")
    reader = key(database, scope.tenant_id)
    for mode in SearchMode:
        options = SearchOptions(mode=mode, limit=3)
        chunks = (await searcher.search(reader, "the vault", options=options)).chunks
        assert [chunk.text for chunk in chunks] == [OPEN]


async def test_a_restriction_during_a_search_counts_for_what_it_has_ranked(
    shelf: Shelf, database: Database
) -> None:
    """Its words are ranked when the document becomes the board's, its meaning is not."""
    restrict(database, shelf.secret)
    embedder = FakeEmbedder()

    async def restrict_meanwhile(_: Sequence[str]) -> None:
        await asyncio.sleep(0.5)
        await asyncio.to_thread(restrict, database, shelf.secret, "board")

    embedder.meanwhile = restrict_meanwhile
    searcher = Searcher(database, IndexViews(), lambda _: embedder, None, default_embedding="fake")
    assert await found(searcher, shelf.staff, SearchMode.HYBRID) == {OPEN}


def test_every_way_to_a_document_says_the_same(shelf: Shelf) -> None:
    assert [shelf.sees(each, shelf.secret) for each in (shelf.board, shelf.admin)] == [True, True]
    assert [shelf.sees(each, shelf.secret) for each in (shelf.staff, shelf.nobody)] == [False, False]
    assert all(shelf.sees(each, shelf.open) for each in (shelf.board, shelf.staff, shelf.nobody))


def test_a_group_that_is_taken_away_or_given_counts_at_once(shelf: Shelf, database: Database) -> None:
    restrict(database, shelf.secret, "staff")
    assert shelf.sees(shelf.staff, shelf.secret)
    assert not shelf.sees(replace(shelf.board, groups=frozenset({"board"})), shelf.secret)
    restrict(database, shelf.secret)
    assert shelf.sees(shelf.nobody, shelf.secret)


def test_no_group_crosses_tenants(shelf: Shelf, database: Database, other_scope: Scope) -> None:
    stranger = key(database, other_scope.tenant_id, "board", role=Role.ADMIN)
    for scope in (stranger, replace(stranger, role=Role.READER)):
        assert not shelf.sees(scope, shelf.secret)
        assert not shelf.sees(scope, shelf.open)
        with database.read() as session:
            assert catalog.list_collections(session, scope, PageRequest()) == []


def test_counts_tell_of_what_is_seen_alone(shelf: Shelf, database: Database) -> None:
    def counted(scope: Scope) -> tuple[int, bool]:
        with database.read() as session:
            counts = catalog.count_documents(session, scope, [shelf.collection.id])[shelf.collection.id]
            return counts.get(DocumentStatus.COMPLETED, 0), bool(
                catalog.usage_bytes(session, scope, [shelf.collection.id])
            )

    assert counted(shelf.board)[0] == counted(shelf.admin)[0] == 2
    assert counted(shelf.staff)[0] == counted(shelf.nobody)[0] == 1


@pytest.mark.parametrize("mode", SearchMode)
async def test_a_collection_is_there_for_its_readers_and_writers_alone(
    shelf: Shelf, database: Database, searcher: Searcher, mode: SearchMode
) -> None:
    restrict_collection(database, shelf.collection, readers=["board"], writers=["staff"])
    for scope in (shelf.board, shelf.staff, shelf.admin):
        assert OPEN in await found(searcher, scope, mode, shelf.collection)
    assert await found(searcher, shelf.nobody, mode) == set()
    with pytest.raises(CollectionMissing):
        await found(searcher, shelf.nobody, mode, shelf.collection)
    assert not shelf.sees(shelf.nobody, shelf.open)
    assert not shelf.sees(shelf.staff, shelf.secret)
    with database.read() as session:
        assert catalog.list_collections(session, shelf.nobody, PageRequest()) == []
        with pytest.raises(CollectionMissing):
            catalog.find_collection(session, shelf.nobody, "letters")


def test_only_its_writers_change_a_collection(shelf: Shelf, database: Database) -> None:
    restrict_collection(database, shelf.collection, writers=["staff"])
    writer = key(database, shelf.staff.tenant_id, "staff", role=Role.WRITER)
    other = key(database, shelf.staff.tenant_id, "board", role=Role.WRITER)
    file = new_file(database, writer, "A third text.")
    for scope in (other, replace(other, groups=frozenset())):
        with database.write() as session, pytest.raises(NotGranted):
            attach(session, scope, shelf.collection.id, file.id)
        with database.write() as session, pytest.raises(NotGranted):
            catalog.delete_document(session, scope, shelf.collection.id, shelf.open.file_id)
        with database.write() as session, pytest.raises(NotGranted):
            catalog.delete_collection(session, scope, shelf.collection.id)
        with database.write() as session, pytest.raises(NotGranted):
            catalog.delete_file(session, scope, shelf.open.file_id)
    with database.write() as session:
        attach(session, writer, shelf.collection.id, file.id)
        catalog.delete_document(session, writer, shelf.collection.id, shelf.open.file_id)
        catalog.delete_document(session, shelf.admin, shelf.collection.id, file.id)


def test_a_file_that_others_read_elsewhere_is_not_deleted_under_them(
    shelf: Shelf, database: Database
) -> None:
    """A writer sees it in one collection, and not that it is in another, too."""
    hidden = new_collection(database, shelf.admin, "hidden")
    restrict_collection(database, hidden, readers=["board"])
    with database.write() as session:
        attach(session, shelf.admin, hidden.id, shelf.open.file_id)
    writer = key(database, shelf.admin.tenant_id, role=Role.WRITER)
    with database.write() as session, pytest.raises(NotGranted):
        catalog.delete_file(session, writer, shelf.open.file_id)


def test_a_document_stays_restricted_when_it_is_attached_again_or_replaced(
    shelf: Shelf, database: Database
) -> None:
    chunked = {"type": "static", "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 0}}
    newer = new_file(database, shelf.admin, "A newer version.")
    inner = new_file(database, shelf.admin, "What lay in it.")
    with database.write() as session:
        again = attach(
            session, shelf.board, shelf.collection.id, shelf.secret.file_id, chunking=chunked, now=2.0
        )
        version = attach_to(session, shelf, newer.id, replaces_id=again.id)
        child = attach_to(session, shelf, inner.id, parent_id=version.id)
        assert [each.readers for each in (again, version, child)] == [["board"]] * 3
        set_readers(session, version, ["staff"])
        session.refresh(child)
        assert child.readers == ["staff"]


def attach_to(
    session: Session,
    shelf: Shelf,
    file_id: str,
    *,
    replaces_id: int | None = None,
    parent_id: int | None = None,
) -> Document:
    return attach_file(
        session,
        shelf.admin,
        collection=catalog.lock_collection(session, shelf.admin, shelf.collection.id),
        file=catalog.get_file(session, shelf.admin, file_id),
        attributes={},
        chunking=AUTO,
        now=3.0,
        replaces_id=replaces_id,
        parent_id=parent_id,
    )


def test_who_does_not_see_a_document_cannot_attach_it_again(shelf: Shelf, database: Database) -> None:
    """Though its file is to be seen in another collection."""
    other = new_collection(database, shelf.admin, "other")
    with database.write() as session:
        document = attach(session, shelf.admin, other.id, shelf.secret.file_id)
        set_readers(session, document, None)
    writer = key(database, shelf.admin.tenant_id, role=Role.WRITER)
    member = Member(shelf.secret.file_id, attributes={}, chunking=AUTO)
    with database.write() as session:
        assert catalog.get_file(session, writer, shelf.secret.file_id)
    with database.write() as session, pytest.raises(DocumentMissing):
        attach(session, writer, shelf.collection.id, shelf.secret.file_id)
    with database.write() as session, pytest.raises(DocumentMissing):
        attach_files(session, writer, shelf.collection.id, [member], now=2.0)
    with database.read() as session:
        assert session.get_one(Document, shelf.secret.id).readers == ["board"]


def test_a_batch_of_files_takes_readers_and_counts_for_each_what_it_sees(
    shelf: Shelf, database: Database
) -> None:
    writer = key(database, shelf.admin.tenant_id, "staff", role=Role.WRITER)
    files = [new_file(database, writer, f"Text {number}.") for number in range(2)]
    accesses = (Access(["board"]), None)
    members = [
        Member(file.id, attributes={}, chunking=AUTO, access=access)
        for file, access in zip(files, accesses, strict=True)
    ]
    with database.write() as session:
        batch = create_batch(session, writer, shelf.collection.id, members, now=2.0)
    with database.read() as session:
        assert count_batch(session, shelf.board, batch) == {DocumentStatus.IN_PROGRESS: 2}
        assert count_batch(session, writer, batch) == {DocumentStatus.IN_PROGRESS: 1}
    with database.write() as session, pytest.raises(FileMissing):
        attach_files(session, writer, new_collection_id(session, writer), members[:1], now=3.0)


def new_collection_id(session: Session, scope: Scope) -> str:
    return catalog.create_collection(
        session, scope, name="new", attributes={}, embedding_model="fake", now=1.0
    ).id


def test_a_file_in_no_collection_is_read_by_who_could_read_it_last(shelf: Shelf, database: Database) -> None:
    def sees(scope: Scope, document: Document) -> bool:
        with database.read() as session:
            return document.file_id in _files(session, scope)

    with database.write() as session:
        catalog.delete_document(session, shelf.admin, shelf.collection.id, shelf.secret.file_id)
    assert [sees(each, shelf.secret) for each in (shelf.board, shelf.admin)] == [True, True]
    assert not sees(shelf.staff, shelf.secret)
    restrict_collection(database, shelf.collection, readers=["staff"])
    with database.write() as session:
        catalog.delete_collection(session, shelf.admin, shelf.collection.id)
    assert [sees(each, shelf.open) for each in (shelf.staff, shelf.board)] == [True, True]
    assert not sees(shelf.nobody, shelf.open)
    with database.write() as session:
        # Attached again by one who sees it, it is still the board's.
        collection_id = new_collection_id(session, shelf.board)
        writer = replace(shelf.board, role=Role.WRITER)
        assert attach(session, writer, collection_id, shelf.secret.file_id).readers == ["board"]


def test_who_made_a_file_may_read_it_while_it_is_in_no_collection(shelf: Shelf, database: Database) -> None:
    maker = key(database, shelf.admin.tenant_id, "staff", role=Role.WRITER)
    file = new_file(database, maker, "For the board.")
    with database.write() as session:
        document = attach(session, maker, shelf.collection.id, file.id)
        set_readers(session, document, ["board"])
    with database.read() as session:
        assert file.id not in _files(session, maker)
    with database.write() as session:
        catalog.delete_document(session, shelf.admin, shelf.collection.id, file.id)
    with database.read() as session:
        assert file.id in _files(session, maker) & _files(session, shelf.board)
        assert file.id not in _files(session, shelf.staff)


def test_a_new_file_is_for_all_keys_of_its_tenant(shelf: Shelf, database: Database) -> None:
    file = new_file(database, shelf.board, "Not attached yet.")
    with database.read() as session:
        assert file.id in _files(session, shelf.nobody)


@pytest.mark.parametrize(
    ("readers", "writers", "own", "told"),
    [
        (None, None, None, None),
        (None, None, ["a"], ["a"]),
        (["a"], None, None, ["a"]),
        (["a"], ["b"], None, ["a", "b"]),
        (["a", "b"], None, ["b", "c"], ["b"]),
        (["a"], None, ["b"], []),
        (None, ["a"], None, None),
    ],
)
def test_readers_of_a_document_are_those_of_both(
    readers: list[str] | None, writers: list[str] | None, own: list[str] | None, told: list[str] | None
) -> None:
    assert readers_of(Collection(readers=readers, writers=writers), Document(readers=own)) == told


def test_answers_are_for_their_key_and_for_keys_with_all_its_groups(shelf: Shelf, database: Database) -> None:
    def kept(scope: Scope, number: int) -> str:
        completion = StoredCompletion(id=f"chatcmpl-{number}", tenant_id=scope.tenant_id, key_id=scope.key_id)
        completion.model, completion.messages, completion.completion = "rag", "[]", "{}"
        completion.attributes, completion.created_at = {}, 1.0
        with database.write() as session:
            assert add_completion(session, scope, completion, file_ids=[])
        return completion.id

    scopes = (shelf.board, shelf.staff, shelf.nobody, shelf.admin)
    ids = [kept(scope, number) for number, scope in enumerate(scopes)]

    def seen(scope: Scope) -> list[bool]:
        with database.read() as session:
            told = []
            for completion_id in ids:
                try:
                    get_completion(session, scope, completion_id)
                except CompletionMissing:
                    told.append(False)
                else:
                    told.append(True)
            return told

    assert seen(shelf.board) == [True, True, True, False]
    assert seen(shelf.staff) == [False, True, True, False]
    assert seen(shelf.nobody) == [False, False, True, False]
    assert seen(shelf.admin) == [True, True, True, True]


def test_what_a_key_wrote_with_a_group_stays_hidden_when_it_loses_the_group(
    shelf: Shelf, database: Database
) -> None:
    with database.write() as session:
        conversation = create_conversation(session, shelf.board, attributes={}, now=1.0)
        row = session.get_one(Key, shelf.board.key_id)
        assert row.groups_held == ["board", "staff"]
        row.groups = []
    with database.read() as session:
        assert get_conversation(session, replace(shelf.board, groups=frozenset()), conversation.id)
        with pytest.raises(catalog.NotFound):
            get_conversation(session, shelf.nobody, conversation.id)
    with database.read() as session:
        assert session.get_one(Key, shelf.admin.key_id).groups_held == [EVERY_GROUP]


def test_nobody_adds_to_a_conversation_what_its_maker_may_not_read(shelf: Shelf, database: Database) -> None:
    with database.write() as session:
        conversation = create_conversation(session, shelf.staff, attributes={}, now=1.0)
    item = {"id": "msg_1", "type": "message", "role": "user", "content": []}
    for scope in (shelf.board, shelf.admin):
        with database.write() as session, pytest.raises(TooOpen):
            add_items(session, scope, conversation.id, [item])
    with database.write() as session:
        add_items(session, shelf.staff, conversation.id, [item])


def test_where_no_group_was_ever_named_all_keys_of_a_tenant_share_answers(
    database: Database, scope: Scope
) -> None:
    admin, reader = key(database, scope.tenant_id, role=Role.ADMIN), key(database, scope.tenant_id)
    with database.write() as session:
        assert not session.get_one(Tenant, scope.tenant_id).restricts
        conversation = create_conversation(session, admin, attributes={}, now=1.0)
        item = {"id": "msg_1", "type": "message", "role": "user", "content": []}
        add_items(session, reader, conversation.id, [item])
        batch = request_batches.create_batch(
            session,
            admin,
            endpoint="/v1/responses",
            input_file_id="file-1",
            attributes={},
            output_life_s=None,
            now=1.0,
        )
        assert request_batches.get_batch(session, reader, batch.id)


def test_a_file_of_answers_is_for_who_may_read_the_answers(shelf: Shelf, database: Database) -> None:
    file = new_file(database, shelf.board, "Answers.")
    with database.write() as session:
        session.get_one(File, file.id).purpose = "batch_output"
    with database.read() as session:
        assert file.id in _files(session, shelf.board) & _files(session, shelf.admin)
        assert file.id not in _files(session, shelf.staff) | _files(session, shelf.nobody)


GROUPS = st.lists(st.sampled_from(["a", "b", "c"]), unique=True)
NAMED = st.none() | st.lists(st.sampled_from(["a", "b", "c"]), unique=True, min_size=1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(held=GROUPS, own=NAMED, readers=NAMED, writers=NAMED, role=st.sampled_from(Role))
def test_sql_decides_as_sets_do(
    shelf: Shelf,
    database: Database,
    held: list[str],
    own: list[str] | None,
    readers: list[str] | None,
    writers: list[str] | None,
    role: Role,
) -> None:
    restrict(database, shelf.open, *(own or ()))
    restrict_collection(database, shelf.collection, readers=readers, writers=writers)
    groups = set(held)
    in_collection = readers is None or bool(groups & {*readers, *(writers or ())})
    in_document = own is None or bool(groups & set(own))
    scope = replace(shelf.nobody, groups=frozenset(held), role=role)
    assert shelf.sees(scope, shelf.open) == (role is Role.ADMIN or (in_collection and in_document))


def test_our_own_work_sees_all_of_a_tenant(shelf: Shelf) -> None:
    assert shelf.sees(within(shelf.admin.tenant_id, "ingestion"), shelf.secret)


def test_what_a_key_writes_is_for_itself_for_admins_and_for_who_has_all_its_groups(
    shelf: Shelf, database: Database, scope: Scope, other_scope: Scope
) -> None:
    with database.read() as session:
        for reader, is_for in (
            (shelf.staff, True),
            (shelf.board, True),
            (key(database, scope.tenant_id, "staff"), True),
            (shelf.admin, True),
            (shelf.nobody, False),
            (key(database, scope.tenant_id, "board"), False),
        ):
            assert would_read(session, reader.key_id, shelf.staff) is is_for
        assert not would_read(session, "key_absent", shelf.staff)
        # Work of our own, whose groups nobody knows.
        assert not would_read(session, shelf.staff.key_id, within(scope.tenant_id, "upkeep"))
        free = key(database, other_scope.tenant_id, "staff")
        assert would_read(session, other_scope.key_id, free)


def test_work_of_our_own_names_itself_and_sees_all_of_a_tenant() -> None:
    assert within("tenant-1", "upkeep") == Scope("tenant-1", "upkeep", Role.ADMIN)
    assert not within("tenant-1", "upkeep").keeps_nothing


def test_no_other_tenants_collections_hide_documents_of_ones_own(
    shelf: Shelf, database: Database, scope: Scope
) -> None:
    """The collections that are hidden are asked of the key's tenant alone."""
    condition = str(readable_documents(shelf.staff).compile(database.engine))
    assert condition.count("tenant_id = ") == 2
    assert scope.tenant_id not in condition


def test_a_file_in_no_collection_is_its_tenants_alone(
    shelf: Shelf, database: Database, other_scope: Scope
) -> None:
    theirs = key(database, other_scope.tenant_id)
    file = new_file(database, theirs, "Not attached yet.")
    with database.read() as session:
        assert file.id in _files(session, theirs)
        assert file.id not in _files(session, shelf.nobody) | _files(session, shelf.admin)


def test_groups_of_another_tenant_hide_no_answers_of_ones_own(
    shelf: Shelf, database: Database, other_scope: Scope
) -> None:
    admin, reader = (key(database, other_scope.tenant_id, role=role) for role in (Role.ADMIN, Role.READER))
    with database.write() as session:
        conversation = create_conversation(session, admin, attributes={}, now=1.0)
        assert get_conversation(session, reader, conversation.id)
