"""The command `inmem`: a store seen and handled from a terminal.

Invariant: a failure that the package foresees is one line and a hint, never a
traceback, and the exit code says it too. Nothing here is needed by programs:
typer and rich come with the extra `cli`.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

from inmem.cli.streams import finish, make_ready


def main() -> None:
    """The entry point of the console script."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one of them
            signal.signal(number, _leave)
    make_ready()
    try:
        from inmem.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich", "click"):
            raise
        print("inmem: the command needs more than the library: pip install 'inmem[cli]'", file=sys.stderr)
        sys.exit(2)
    try:
        app(prog_name="inmem")
    finally:
        finish()


def _leave(number: int, _: Any) -> None:
    """End with all that was begun undone."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)
