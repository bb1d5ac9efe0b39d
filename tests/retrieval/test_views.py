"""Views of collections: however they came to be, they equal SQL."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sqlalchemy import select

from retrieval import catalog
from retrieval.chunks import remove_chunks
from retrieval.database import Database, open_database
from retrieval.rankings import Ranking
from retrieval.scope import Scope
from retrieval.tables import Collection
from retrieval.views import CollectionView, IndexViews, build_view
from tests.fakes import _bag_of_words
from tests.retrieval.library import (
    add_text_file,
    attach,
    chunk_ids,
    complete,
    log_of,
    new_collection,
    replayed,
    shelve,
)

SUBJECTS = [
    "vault",
    "key",
    "hall",
    "lamp",
    "whale",
    "krill",
    "ledger",
    "seal",
    "archive",
    "stair",
    "bell",
    "gate",
]
QUERIES = ["vault key", "whale krill lamp", "seal"]


def followed(database: Database, views: IndexViews, collection: Collection) -> CollectionView | None:
    with database.read() as session:
        return views.follow(session, session.get_one(Collection, collection.id))


def rebuilt(database: Database, collection: Collection) -> CollectionView | None:
    with database.read() as session:
        return build_view(session, session.get_one(Collection, collection.id))


def rankings(view: CollectionView) -> list[Ranking]:
    vectors = np.stack([_bag_of_words(query, 0) for query in QUERIES])
    return view.vectors.search(vectors, 1000)


def keyword_hits(view: CollectionView) -> list[set[int]]:
    return [{hit.chunk_id for hit in ranking} for ranking in view.keywords.search(QUERIES, 1000)]


def assert_same(left: CollectionView | None, right: CollectionView | None) -> None:
    if left is None or right is None:
        present = left or right
        assert present is None or not present.vectors.chunk_ids()
        return
    assert left.seq == right.seq
    assert left.vectors.chunk_ids() == right.vectors.chunk_ids()
    assert left.keywords.chunk_ids() == right.keywords.chunk_ids()
    assert rankings(left) == rankings(right)
    assert keyword_hits(left) == keyword_hits(right)


def paragraph(generator: random.Random) -> str:
    return " ".join(generator.choices(SUBJECTS, k=generator.randint(1, 12)))


def change_at_random(
    database: Database, scope: Scope, collection: Collection, generator: random.Random
) -> None:
    """Adds, deletes or ingests again one document or a few, in one transaction."""
    with database.write() as session:
        for _ in range(generator.randint(1, 3)):
            present = catalog.list_documents(session, scope, collection.id, catalog.PageRequest(limit=100))
            paragraphs = [paragraph(generator) for _ in range(generator.randint(1, 5))]
            what = generator.choice(["add", "add", "add", "delete", "delete the file", "ingest again"])
            if what == "add" or not present:
                file = add_text_file(session, scope, "\n\n".join(paragraphs))
                complete(session, attach(session, scope, collection.id, file.id), paragraphs)
            elif what == "delete":
                catalog.delete_document(session, scope, collection.id, generator.choice(present).file_id)
            elif what == "delete the file":
                catalog.delete_file(session, scope, generator.choice(present).file_id)
            else:
                document = generator.choice(present)
                remove_chunks(session, document)
                complete(session, document, paragraphs)


@pytest.mark.parametrize("seed", range(2))
def test_a_view_that_followed_equals_one_that_was_rebuilt(
    database: Database, scope: Scope, seed: int
) -> None:
    """The second follower looks rarely, as a process does that is seldom searched."""
    generator = random.Random(seed)
    collection = new_collection(database, scope)
    often, rarely = IndexViews(), IndexViews()
    for step in range(12):
        change_at_random(database, scope, collection, generator)
        view = followed(database, often, collection)
        assert_same(view, rebuilt(database, collection))
        if step % 5 == 4:
            assert_same(followed(database, rarely, collection), view)
    alive = chunk_ids(database, collection)
    assert view is not None
    assert view.vectors.chunk_ids() == view.keywords.chunk_ids() == alive
    assert replayed(log_of(database, collection)) == alive


def test_an_empty_collection_has_no_view_until_its_first_chunk(database: Database, scope: Scope) -> None:
    collection, views = new_collection(database, scope), IndexViews()
    assert followed(database, views, collection) is None
    shelve(database, scope, collection, "The vault opens at nine.")
    view = followed(database, views, collection)
    assert view is not None
    assert view.vectors.chunk_ids() == chunk_ids(database, collection)


def test_a_view_keeps_following_after_its_collection_was_emptied(database: Database, scope: Scope) -> None:
    collection, views = new_collection(database, scope), IndexViews()
    document = shelve(database, scope, collection, "The vault opens at nine.")
    followed(database, views, collection)
    with database.write() as session:
        catalog.delete_document(session, scope, collection.id, document.file_id)
    emptied = followed(database, views, collection)
    assert emptied is not None
    assert emptied.vectors.chunk_ids() == set()
    shelve(database, scope, collection, "The key hangs in the hall.")
    assert_same(followed(database, views, collection), rebuilt(database, collection))


def test_what_came_and_went_between_two_looks_is_never_indexed(database: Database, scope: Scope) -> None:
    collection, views = new_collection(database, scope), IndexViews()
    shelve(database, scope, collection, "The vault opens at nine.")
    followed(database, views, collection)
    passing = shelve(database, scope, collection, "A secret that was uploaded by mistake.")
    with database.write() as session:
        catalog.delete_file(session, scope, passing.file_id)
    assert_same(followed(database, views, collection), rebuilt(database, collection))


def test_an_older_transaction_gets_the_newer_view_unharmed(database: Database, scope: Scope) -> None:
    """A search that began before a commit may come to the view after one that began later."""
    collection, views = new_collection(database, scope), IndexViews()
    shelve(database, scope, collection, "The vault opens at nine.")
    with database.read() as old:
        before = old.get_one(Collection, collection.id)
        shelve(database, scope, collection, "The key hangs in the hall.")
        newer = followed(database, views, collection)
        assert views.follow(old, before) is newer
    assert_same(newer, rebuilt(database, collection))


def test_a_view_built_by_an_older_transaction_catches_up(database: Database, scope: Scope) -> None:
    collection, views = new_collection(database, scope), IndexViews()
    shelve(database, scope, collection, "The vault opens at nine.")
    with database.read() as old:
        before = old.get_one(Collection, collection.id)
        shelve(database, scope, collection, "The key hangs in the hall.")
        built = views.follow(old, before)
        assert built is not None
        assert len(built.vectors.chunk_ids()) == 1
    assert_same(followed(database, views, collection), rebuilt(database, collection))


def test_the_view_of_a_deleted_collection_is_dropped(database: Database, scope: Scope) -> None:
    """Even when another process deleted it."""
    views = IndexViews()
    kept, deleted = new_collection(database, scope), new_collection(database, scope)
    for collection in (kept, deleted):
        shelve(database, scope, collection, "The vault opens at nine.")
        followed(database, views, collection)
    with database.write() as session:
        catalog.delete_collection(session, scope, deleted.id)
    with database.read() as session:
        views.keep_ready(session)
    assert set(views._views) == {(kept.id, 0)}


def test_a_forgotten_view_is_built_anew(database: Database, scope: Scope) -> None:
    collection, views = new_collection(database, scope), IndexViews()
    shelve(database, scope, collection, "The vault opens at nine.")
    first = followed(database, views, collection)
    views.forget(collection.id)
    views.forget("vs_absent")
    assert followed(database, views, collection) is not first
    assert_same(followed(database, views, collection), first)


def test_writers_at_once_leave_no_gap_in_the_log_and_readers_miss_nothing(
    database: Database, database_url: str, scope: Scope
) -> None:
    """Commit order must be seq order: a reader that saw 5 would never look again for a 4 that commits later."""
    collection, views = new_collection(database, scope), IndexViews()
    elsewhere = open_database(database_url)
    done = threading.Event()

    def write(writer: Database, name: str) -> None:
        for number in range(6):
            shelve(writer, scope, collection, f"{name} {number} vault", f"{name} {number} hall")

    def read() -> None:
        while not done.is_set():
            followed(database, views, collection)

    with ThreadPoolExecutor(4) as threads:
        readers = [threads.submit(read) for _ in range(2)]
        writers = [threads.submit(write, database, "ada"), threads.submit(write, elsewhere, "bob")]
        for writer in writers:
            writer.result()
        done.set()
        for reader in readers:
            reader.result()
    elsewhere.close()
    assert [seq for seq, _, _ in log_of(database, collection)] == list(range(1, 25))
    assert_same(followed(database, views, collection), rebuilt(database, collection))
    with database.read() as session:
        assert session.scalar(select(Collection.head)) == 24
