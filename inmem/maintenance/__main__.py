"""`python -m inmem.maintenance HELPER PATH ...`: a helper as a process of its own.

It prints one JSON document. `inmem.open` imports the helpers, so none of them
can be the program that runs: this module can.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from inmem.maintenance import backup, check, checkpoint, salvage

_HELPERS: dict[str, Callable[..., int]] = {
    "backup": backup.main, "check": check.main, "checkpoint": checkpoint.main, "salvage": salvage.main,
}


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit status of the helper."""
    parser = argparse.ArgumentParser(prog="python -m inmem.maintenance", description=__doc__)
    parser.add_argument("helper", choices=sorted(_HELPERS))
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH")
    options = parser.parse_args(arguments)
    return _HELPERS[options.helper](*options.paths)


if __name__ == "__main__":
    sys.exit(main())
