"""The worker role as a program: `python -m app.running.worker_role`."""

import asyncio
import logging
import signal
import sys

import uvloop

from app.logs import start_logs
from app.observing.tracing import exporting
from app.running.core_dumps import forbid_core_dumps
from app.running.garbage import settle
from app.services import open_worker
from app.settings import Settings, read_settings


def main() -> None:
    settings = read_settings()
    start_logs("worker", settings.server.log_level)
    forbid_core_dumps()
    settle()
    with exporting(settings.traces, "worker"):
        uvloop.run(_work(settings))


async def _work(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_worker(settings) as (worker, schedules):
        working = asyncio.gather(worker.run(), schedules.run())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        working.cancel()
        await asyncio.gather(working, stopped, return_exceptions=True)
        if not stop.is_set():
            logging.getLogger("strongroom.worker").error("worker_ended")
            sys.exit(1)


if __name__ == "__main__":
    main()
