"""What a writer must not inherit of the process that started it: signals, priority, limits.

A writer outlives its starter and serves others. So it puts right what it can,
tells the journal what it cannot, and refuses with the limit's name if it
could not work under it.
"""

from __future__ import annotations

import os
import resource
import signal
from typing import Final

from inmem.config import MAP_BYTES, MIB, Settings
from inmem.errors import LimitError
from inmem.writer.journal import Journal

_LEAST_CPU_S: Final = 10  # starting takes a tenth of a second: fewer would make writers come and go
_SPACE: Final = MAP_BYTES + 512 * MIB  # of addresses: the image, and the program itself
_LIMITS: Final = {
    "RLIMIT_AS": "address space (ulimit -v)", "RLIMIT_DATA": "data (ulimit -d)",
    "RLIMIT_FSIZE": "the size of a file (ulimit -f)", "RLIMIT_CPU": "CPU time (ulimit -t)",
}  # fmt: skip

journal = Journal()


def close_inherited(keep: int) -> None:
    """Close the files of the starter that came along, but for one."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != keep:
            try:
                os.close(int(name))
            except OSError:
                continue  # it was the one by which they are listed


def allow_open_files() -> None:
    """Raise the soft limit of open files to the hard one: each thread of a client is a connection."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def leave_starter() -> None:
    """Be rid of the starter's signal mask, ignored signals, priority and limits, as far as that goes.

    For a writer that detaches: one in the foreground was given what it has.
    """
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if os.getpriority(os.PRIO_PROCESS, 0) > 0:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        except PermissionError:
            pass  # `report` says so
    for name in _LIMITS:
        limit = getattr(resource, name)
        _, hard = resource.getrlimit(limit)
        try:
            resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except (PermissionError, ValueError):  # then as far as it goes
            resource.setrlimit(limit, (hard, hard))


def check_limits(settings: Settings) -> None:
    """Refuse limits under which a writer could not work; journal those that may end it one day.

    Raises:
        LimitError: names the limit, what is needed and what there is.
    """
    needed = {
        "RLIMIT_AS": _SPACE, "RLIMIT_FSIZE": settings.segment_bytes + MIB, "RLIMIT_CPU": _LEAST_CPU_S,
        "RLIMIT_DATA": 64 * MIB,
    }  # fmt: skip
    for name, least in needed.items():
        limit, _ = resource.getrlimit(getattr(resource, name))
        if limit == resource.RLIM_INFINITY:
            continue
        what = _LIMITS[name]
        if limit < least:
            raise LimitError(
                f"the writer cannot work under the limit on {what}: it needs {least}, and has {limit}",
                what=what, size=least, limit=limit,
                hint="Start it without that limit: inmem start -d DIR. Or raise the limit of this process.",
            )
        journal.warning("limited", what=what, limit=limit)
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if nice > 0:
        journal.warning("low_priority", nice=nice, problem="all clients wait for it; see inmem start")
