"""Logs as one JSON object a line: an event, its fields, and never a document's or a person's words."""

import logging
import sys
import time
import traceback
from typing import Any

import orjson

from serving.request_ids import REQUEST_ID

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_EVENTS_ONLY = "strongroom"


class EventFormatter(logging.Formatter):
    """Writes time, level, role, event, the id of the request that it is part of, and fields.

    Of an error only its type and the code lines that it passed are kept: messages of libraries may quote what
    they were given, which may be a document. For the same reason messages of foreign loggers are left out.
    """

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        own = record.name.startswith(_EVENTS_ONLY)
        event: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "role": self._role,
            "event": record.getMessage() if own else f"{record.name}:{record.funcName}:{record.lineno}",
        }
        if (request_id := REQUEST_ID.get()) is not None:
            event["request"] = request_id
        event |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info and record.exc_info[0] is not None:
            event["error"] = record.exc_info[0].__name__
            frames = traceback.extract_tb(record.exc_info[2])
            event["at"] = [f"{frame.filename}:{frame.lineno}:{frame.name}" for frame in frames[-8:]]
        return orjson.dumps(event, default=str).decode()


def start_logs(role: str, level: str) -> None:
    """Sends every log of this process to stderr in that form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EventFormatter(role))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger(_EVENTS_ONLY).setLevel(level.upper())
