"""`python -m inmem.demo.process`: one process of the fleet, as its first line of input says.

Invariant: an exception reaches the parent with its traceback, or standard
error if the parent is gone.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping

import inmem
from inmem.demo.link import ParentGoneError, ParentLink
from inmem.demo.roles import ROLES, FleetRole


def main(roles: Mapping[str, type[FleetRole]] = ROLES) -> None:
    """Play one role, until the parent says to stop."""
    link = ParentLink()
    code = 0
    try:
        with inmem.open(link.task.place, create=False) as database:
            roles[link.task.role](database, link).run()
    except ParentGoneError:
        code = 1
    except Exception:
        code = 1
        try:
            link.tell("error", text=traceback.format_exc())
        except ParentGoneError:
            traceback.print_exc()
    sys.stderr.flush()
    # Nothing is flushed at a usual end: standard output may have nobody who reads it.
    os._exit(code)


if __name__ == "__main__":
    main()
