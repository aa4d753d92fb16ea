"""The standard streams, whatever they are: closed, or of a character set that lacks what is printed."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from typing import Final

# What the commands themselves draw with. All else is escaped as JSON does it.
_PLAIN: Final = {
    "…": "...", "→": "->", "·": "-", "–": "-", "µ": "u", "├": "|", "└": "`", "│": "|", "─": "-",
    "▁": "_", "▂": ".", "▃": ":", "▄": "-", "▅": "=", "▆": "+", "▇": "*", "█": "#",
}
_ERRORS: Final = "inmem.plain"  # the name under which Python knows `_plainly`


def make_ready() -> None:
    """Open what is closed, so that no file takes its number; print plainly what cannot be encoded."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    codecs.register_error(_ERRORS, _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def finish() -> None:
    """Write out what is left; if nobody reads it any more, drop it without a word."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(each) or json.dumps(each)[1:-1] for each in text), error.end
