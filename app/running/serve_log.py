"""The one log of `strongroom serve`: every role's lines, readable, on the terminal and in a file that rotates."""

import logging
import sys
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import orjson

FILE_BYTES = 20_000_000
FILES_KEPT = 3


class ServeLog:
    """Takes lines from roles. Ours are JSON events; an engine's are its own, of which the terminal shows errors."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = RotatingFileHandler(
            folder / "strongroom.log", maxBytes=FILE_BYTES, backupCount=FILES_KEPT
        )

    def write(self, role: str, line: str) -> None:
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:
            event = line
        if isinstance(event, dict):
            text, shown = _readable(event), True
        else:
            text, shown = f"{_now()} {role:8} {line}", _is_error(line)
        self._file.emit(logging.makeLogRecord({"msg": text}))
        if shown:
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - the terminal is where people look

    def say(self, event: str, **fields: Any) -> None:
        """A line of the supervisor's own."""
        self.write("serve", orjson.dumps({"role": "serve", "event": event, **fields}, default=str).decode())

    def close(self) -> None:
        self._file.close()


def _readable(event: dict[str, Any]) -> str:
    at = str(event.pop("time", ""))[11:19] or _now()
    role, name = event.pop("role", "?"), event.pop("event", "")
    level = event.pop("level", "info")
    fields = " ".join(f"{key}={value}" for key, value in event.items())
    mark = "" if level == "info" else f"{level.upper()} "
    return f"{at} {role:8} {mark}{name} {fields}".rstrip()


def _is_error(line: str) -> bool:
    return any(mark in line for mark in (" ERROR ", " CRITICAL ", "Traceback"))


def _now() -> str:
    return time.strftime("%H:%M:%S", time.gmtime())
