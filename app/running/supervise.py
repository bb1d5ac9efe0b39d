"""Keeps role processes running on one box: restarts what ends, and leaves nothing behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass

from app.running.serve_log import ServeLog
from app.settings import inherited_environment

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0
"""A role that ran this long was healthy: its next restart does not wait."""
GRACE_S = 7.0
"""From SIGTERM to SIGKILL; with what follows it, everything has ended within 10 s."""
LONGEST_LINE = 1024 * 1024


@dataclass(frozen=True)
class RoleProcess:
    """How to start a role."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]


class Supervisor:
    """Runs processes until it is told to stop."""

    def __init__(self, roles: Sequence[RoleProcess], log: ServeLog) -> None:
        self._roles = roles
        self._log = log
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def run(self, *, until: asyncio.Event) -> None:
        reaper = subprocess.Popen(  # noqa: ASYNC220 - returns at once
            [sys.executable, "-m", "app.running.reaper"],
            stdin=subprocess.PIPE,
            start_new_session=True,
            env=inherited_environment(),
        )
        assert reaper.stdin is not None
        self._to_reaper = reaper.stdin
        keepers = [asyncio.create_task(self._keep(role)) for role in self._roles]
        stopped = asyncio.create_task(until.wait())
        try:
            # A keeper never returns: one that is done has met a bug, which must not go unseen.
            await asyncio.wait([*keepers, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            await self._stop(keepers)
            reaper.stdin.close()
            await asyncio.to_thread(reaper.wait)

    async def _keep(self, role: RoleProcess) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            started = time.monotonic()
            code = await self._run_once(role)
            if time.monotonic() - started > STEADY_S:
                pause_s = FIRST_PAUSE_S
            self._log.say("role_ended", level="warning", name=role.name, code=code, restart_in_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _run_once(self, role: RoleProcess) -> int:
        # A pipe of our own, for asyncio's would make `wait` wait until the role's children have closed it too: vLLM's
        # engine core outlives a killed server. And a group of its own, so that such children are ended with it.
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *role.command,
                env=dict(role.environment),
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
            )
        finally:
            os.close(writing)
        self._running[role.name] = process
        self._tell_reaper("+", process.pid)
        self._log.say("role_started", name=role.name, pid=process.pid)
        copying = asyncio.create_task(self._copy_lines(role, reading))
        try:
            code = await process.wait()
            _kill_group(process.pid)
            with suppress(TimeoutError):
                await asyncio.wait_for(copying, 1.0)
            return code
        finally:
            copying.cancel()
            self._running.pop(role.name, None)
            self._tell_reaper("-", process.pid)

    async def _copy_lines(self, role: RoleProcess, descriptor: int) -> None:
        reader = asyncio.StreamReader(limit=LONGEST_LINE)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
        )
        with closing(transport):
            while True:
                try:
                    line = await reader.readline()
                except ValueError:
                    continue  # beyond the limit: the reader has dropped it
                if not line:
                    return
                self._log.write(role.name, line.decode("utf-8", "replace").rstrip())

    async def _stop(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        processes = list(self._running.values())
        for process in processes:
            with suppress(ProcessLookupError):
                process.terminate()
        for keeper in keepers:
            keeper.cancel()
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(process.wait() for process in processes)), GRACE_S)
        for process in processes:
            _kill_group(process.pid)
        await asyncio.gather(*keepers, return_exceptions=True)

    def _tell_reaper(self, sign: str, group: int) -> None:
        with suppress(BrokenPipeError, ValueError):
            self._to_reaper.write(f"{sign}{group}\n".encode())
            self._to_reaper.flush()


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
