"""`python -m inmem.maintenance HELPER PATH ...`: a helper as a process of its own.

It prints one JSON document. `inmem.open` imports the helpers, so none of them
can be the program that runs: this module can.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

_HELPERS: Final = ("backup", "check", "checkpoint", "salvage")


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit status of the helper."""
    helper, *paths = _parsed(sys.argv[1:] if arguments is None else arguments)
    return _program_of(helper)(*map(Path, paths))


def _program_of(helper: str) -> Callable[..., int]:
    """A helper; no other is imported, so that it starts sooner."""
    match helper:
        case "backup":
            from inmem.maintenance import backup

            return backup.main
        case "check":
            from inmem.maintenance import check

            return check.main
        case "checkpoint":
            from inmem.maintenance import checkpoint

            return checkpoint.main
        case _:
            from inmem.maintenance import salvage

            return salvage.main


def _parsed(arguments: list[str]) -> list[str]:
    match arguments:  # as they come from the package: without loading a parser
        case [helper, path, *_] if helper in _HELPERS and not path.startswith("-"):
            return arguments
    import argparse

    parser = argparse.ArgumentParser(prog="python -m inmem.maintenance", description=__doc__)
    parser.add_argument("helper", choices=_HELPERS)
    parser.add_argument("paths", nargs="+", metavar="PATH")
    options = parser.parse_args(arguments)
    return [options.helper, *options.paths]


if __name__ == "__main__":
    sys.exit(main())
