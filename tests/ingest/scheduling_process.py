"""One of several processes that run schedules on one database, for tests that stop some of them."""

import asyncio
import json
import signal
import sys
from pathlib import Path

from ingest.leadership import Election
from ingest.schedules import LEADERSHIP, Schedules
from retrieval.blobs import BlobStore
from retrieval.database import open_database
from tests.ingest.stack import SEALER


async def main(url: str, folder: Path) -> None:
    database = open_database(url)
    election = Election(database, LEADERSHIP)
    schedules = Schedules(
        database, BlobStore(folder / "blobs"), SEALER, cache=folder / "cache", election=election
    )
    print(json.dumps({"holder": election._holder}), flush=True)
    running = asyncio.create_task(schedules.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    await asyncio.gather(running, return_exceptions=True)
    database.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
