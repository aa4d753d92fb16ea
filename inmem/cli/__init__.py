"""The command `inmem`: a store seen and handled from a terminal.

Invariant: a failure that the package foresees is one line and a hint, never a
traceback, and the exit code says it too. Nothing here is needed by programs:
typer and rich come with the extra `cli`.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point of the console script."""
    try:
        from inmem.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich", "click"):
            raise
        print("inmem: the command needs more than the library: pip install 'inmem[cli]'", file=sys.stderr)
        sys.exit(2)
    app()
