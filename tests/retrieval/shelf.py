"""A collection with a generation beside, filled without models or jobs that run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sqlalchemy import delete, func, select

from retrieval import generations
from retrieval.chunks import log_chunks
from retrieval.database import Database
from retrieval.generation_progress import GenerationStanding, list_generations
from retrieval.scope import Scope
from retrieval.tables import Chunk, ChunkLog, Collection, Document, Job, LogOp
from retrieval.views import CollectionView, IndexViews
from tests.fakes import DIMENSIONS, _bag_of_words
from tests.retrieval.library import new_collection, shelve

NINE, KEY, WHALES = "The vault opens at nine.", "The key hangs in the hall.", "Whales feed on krill."


class Shelf:
    """A collection with three documents of two chunks."""

    def __init__(self, database: Database, scope: Scope) -> None:
        self.database = database
        self.scope = scope
        self.collection = new_collection(database, scope)
        self.documents = [shelve(database, scope, self.collection, text, KEY) for text in (NINE, KEY, WHALES)]

    def begin(self, **settings: Any) -> int:
        wanted = {"embedding_model": "fake", "chunking": None, **settings}
        with self.database.write() as session:
            return generations.begin(session, self.scope, self.collection.id, now=2.0, **wanted).number

    def fill(self, number: int, documents: Sequence[Document]) -> None:
        """Does what jobs do, with a chunk for each document."""
        with self.database.write() as session:
            for document in documents:
                session.add(
                    Chunk(
                        tenant_id=document.tenant_id,
                        collection_id=document.collection_id,
                        document_id=document.id,
                        generation=number,
                        position=0,
                        text=NINE,
                        start_char=0,
                        end_char=len(NINE),
                        headings=[],
                        token_count=5,
                        places=[],
                        embedding=_bag_of_words(NINE, 0, DIMENSIONS).astype(np.float16).tobytes(),
                    )
                )
                session.flush()
                log_chunks(session, document, number, LogOp.ADD)
                session.execute(delete(Job).where(Job.document_id == document.id, Job.generation == number))

    def switch(self, number: int, *, force: bool = False) -> None:
        with self.database.write() as session:
            generations.switch(session, self.scope, self.collection.id, number, force=force, now=3.0)

    def discard(self, number: int) -> None:
        with self.database.write() as session:
            generations.discard(session, self.scope, self.collection.id, number)

    def remove(self, number: int, *, limit: int) -> int:
        """All of it. Returns in how many transactions."""
        after_id, slices = 0, 0
        while True:
            with self.database.write() as session:
                last = generations.remove_slice(
                    session, self.collection.id, number, after_id=after_id, limit=limit
                )
            slices += 1
            if last is None:
                return slices
            after_id = last

    def standings(self) -> list[GenerationStanding]:
        with self.database.read() as session:
            return list_generations(session, self.scope, self.collection.id)

    def count(self, table: type[Chunk | ChunkLog], number: int) -> int:
        with self.database.read() as session:
            query = select(func.count()).select_from(table).where(table.generation == number)
            return session.scalar(query) or 0

    def follow(self, views: IndexViews) -> CollectionView:
        with self.database.read() as session:
            view = views.follow(session, session.get_one(Collection, self.collection.id))
        assert view is not None
        return view

    def keep_ready(self, views: IndexViews) -> None:
        with self.database.read() as session:
            views.keep_ready(session)
