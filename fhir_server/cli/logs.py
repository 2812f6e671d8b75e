"""The log: one JSON object a line, to stderr. https://docs.python.org/3/howto/logging.html#optimization

A person reads it with `jq`, a machine as it is. Fields of a record's own come in `extra={"fields": {…}}`.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
QUIET = ("uvicorn", "asyncio", "pymongo", "httpx", "httpcore")  # below warning they speak of themselves

_encode = msgspec.json.Encoder(enc_hook=str).encode


class Line(logging.Formatter):
    """time, level, logger, message, then the record's fields; `exception` is the stack trace."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = record.__dict__.get("fields")
        if fields:
            line.update(fields)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return _encode(line).decode()
        except UnicodeEncodeError:  # half a surrogate pair in a message
            return ascii(line)


def configure(level: str) -> None:
    """Everything of at least `level`, one of LEVELS, goes to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Line())
    logging.basicConfig(level=LEVELS[level.lower()], handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, LEVELS[level.lower()]))
    # What no line shows need not be looked up for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
