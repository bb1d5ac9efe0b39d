"""What PostgreSQL's row security costs: `python -m tests.bench.row_security`.

The same reads by a superuser, whom no policy binds, and as the api role reads. Ten tenants of 300 documents each; the
two take turns, so that a busy machine is busy for both.
"""

import statistics
import time
from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.storage.migrate import migrate
from retrieval import catalog
from retrieval.access import readable_files
from retrieval.database import Database, open_database
from retrieval.row_security import act_for
from retrieval.scope import Scope
from retrieval.tables import Chunk, ChunkLog, Document, File
from tests.conftest import tenant_scope
from tests.postgres import running_postgres
from tests.retrieval.library import new_collection, shelve

TENANTS, FILES, ROUNDS = 10, 300, 300
PARAGRAPHS = [f"paragraph {number} of a letter" for number in range(20)]

Work = Callable[[Session], object]


def main() -> None:
    with running_postgres() as server:
        database = open_database(server.url(server.create_database()))
        migrate(database)
        tenants = [_furnished(database, number) for number in range(TENANTS)]
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("analyze")
        # Transactions that do not say for whom they are: as they were before there were policies.
        plain = database.engine.execution_options(isolation_level="REPEATABLE READ")
        held = database.for_callers()
        scope, collection_id = tenants[0]
        act_for(scope.tenant_id)
        print(f"{f'ms, median of {ROUNDS}':32}{'without':>10}{'with':>10}{'ratio':>8}")
        for name, work in _works(scope, collection_id).items():
            took: dict[str, list[float]] = {"without": [], "with": []}
            for number in range(ROUNDS):
                for which in ("without", "with") if number % 2 else ("with", "without"):
                    began = time.perf_counter()
                    with Session(plain) if which == "without" else held.read() as session:
                        work(session)
                    took[which].append(1000 * (time.perf_counter() - began))
            without, walled = (statistics.median(took[which]) for which in ("without", "with"))
            print(f"{name:32}{without:>10.3f}{walled:>10.3f}{walled / without:>8.2f}")
        database.close()


def _furnished(database: Database, number: int) -> tuple[Scope, str]:
    scope = tenant_scope(database, f"tenant {number}")
    collection = new_collection(database, scope)
    for file in range(FILES):
        shelve(database, scope, collection, *PARAGRAPHS, filename=f"{file}.txt", now=float(file))
    return scope, collection.id


def _works(scope: Scope, collection_id: str) -> dict[str, Work]:
    def one_collection(session: Session) -> object:
        return catalog.get_collection(session, scope, collection_id)

    def list_files(session: Session) -> object:
        newest = select(File).where(readable_files(scope)).order_by(File.created_at.desc(), File.id).limit(20)
        return session.scalars(newest).all()

    def join_candidates(session: Session) -> object:
        some = select(Chunk.id).where(Chunk.collection_id == collection_id).limit(100).scalar_subquery()
        joined = select(Chunk.id, Chunk.text, Document.file_id).join(
            Document, Document.id == Chunk.document_id
        )
        return session.execute(joined.where(Chunk.id.in_(some), Chunk.tenant_id == scope.tenant_id)).all()

    def follow_log(session: Session) -> object:
        log = select(ChunkLog.op, ChunkLog.chunk_id).where(ChunkLog.collection_id == collection_id)
        return session.execute(log.where(ChunkLog.generation == 0, ChunkLog.seq > 1_000)).all()

    def read_chunks(session: Session) -> object:
        return session.scalars(select(Chunk.text).where(Chunk.collection_id == collection_id)).all()

    return {
        "a collection by its id": one_collection,
        "list of 20 files": list_files,
        "100 candidates joined": join_candidates,
        f"log of {FILES * len(PARAGRAPHS) - 1000} changes": follow_log,
        f"{FILES * len(PARAGRAPHS)} chunks read": read_chunks,
    }


if __name__ == "__main__":
    main()
