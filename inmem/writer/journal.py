"""The journal of the writer: `writer.log`, one line for each event, as `key=value` (logfmt).

Invariant: an event is one line, whatever its fields hold, and no field holds
user data: names of files, sizes, versions and counts only.

    time=2026-07-01T12:00:00.123 level=info pid=4711 event=recovered adopted=True replayed=0 ...

Values with spaces or anything unusual in them are JSON strings.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Final

NAME: Final = "inmem.writer"
_BARE: Final = re.compile(r"[A-Za-z0-9_./:+@-]+\Z")
_MAX_VALUE: Final = 2000  # characters: an error may name a long path; a trace is longer
_MAX_TRACE: Final = 20_000


class Journal:
    """Writes events with their fields."""

    def __init__(self) -> None:
        self._logger = logging.getLogger(NAME)

    def debug(self, event: str, **fields: object) -> None:
        """Of use when a problem is investigated."""
        self._say(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Normal for every writer."""
        self._say(logging.INFO, event, fields)

    def warning(self, event: str, *, trace: bool = False, **fields: object) -> None:
        """Something was lost, refused or repaired."""
        self._say(logging.WARNING, event, fields, trace)

    def critical(self, event: str, *, trace: bool = False, **fields: object) -> None:
        """The writer ends because of it."""
        self._say(logging.CRITICAL, event, fields, trace)

    def _say(self, level: int, event: str, fields: dict[str, object], trace: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", line_of({"event": event} | fields), exc_info=trace)


def line_of(fields: dict[str, object]) -> str:
    """Fields as logfmt.

    >>> line_of({"event": "torn", "where": "wal/1 at 7", "bytes": 12, "seconds": 0.12345})
    'event=torn where="wal/1 at 7" bytes=12 seconds=0.123'
    """
    return " ".join(f"{name}={_value(value, _MAX_VALUE)}" for name, value in fields.items())


def _value(value: object, limit: int) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    if len(text) > limit:
        text = text[:limit] + "..."
    return text if _BARE.match(text) else json.dumps(text)


class RotatingFile(logging.FileHandler):
    """A file that is followed by a new one when it has grown to `max_bytes`; so many files are kept.

    That of the standard library loads pickle and sockets, which is memory of every writer.
    """

    def __init__(self, path: Path, *, max_bytes: int, files: int) -> None:
        super().__init__(path)
        self._path = path
        self._max_bytes = max_bytes
        self._files = files

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        super().emit(record)
        try:
            if self.stream is not None and self.stream.tell() >= self._max_bytes:
                self._rotate()
        except (OSError, ValueError):
            self.handleError(record)

    def _rotate(self) -> None:
        self.close()
        names = [self._path, *(Path(f"{self._path}.{number}") for number in range(1, self._files))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            if newer.exists():
                newer.replace(older)


class LineFormatter(logging.Formatter):
    """Formats all log records of this process, those of other packages too."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        message = record.getMessage()
        if record.name != NAME:
            message = line_of({"event": "message", "logger": record.name, "text": message})
        when = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        line = (
            f"time={when}.{int(record.msecs):03} level={record.levelname.lower()} "
            f"pid={record.process} {message}"
        )
        if record.exc_info:
            line += f" trace={_value(self.formatException(record.exc_info), _MAX_TRACE)}"
        return line
