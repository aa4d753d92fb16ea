"""`python -m inmem.maintenance HELPER PATH ...`: a helper as a process of its own.

It prints one JSON document. `inmem.open` imports the helpers, so none of them
can be the program that runs: this module can.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Final

_HELPERS: Final = ("backup", "check", "checkpoint", "salvage")


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit status of the helper."""
    helper, *paths = _parsed(sys.argv[1:] if arguments is None else arguments)
    module = import_module(f"inmem.maintenance.{helper}")  # this one and no other: each helper starts sooner
    status: int = module.main(*map(Path, paths))
    return status


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
