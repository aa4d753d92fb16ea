"""The stores of the programs, opened; a throw-away store leaves nothing behind.

Invariant: when a throw-away store is over, its writer process is gone and so
is its directory; if not in time, that is an error that names what is left.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import inmem

LEAVE_TIMEOUT_S: Final = 20.0  # for the writer to notice that nobody is left, and to remove the store
POLL_S: Final = 0.02
MAX_ATTEMPTS: Final = 10_000  # of one transaction: hundreds of workers meet at one key; time bounds it


class Abandoned(Exception):
    """Raised inside a transaction on purpose: nothing of it may remain."""


def transact(
    db: Any, run: str, fn: Callable[[Any], Any], timeout_s: float, reran: Callable[[int], None],
    lease: Any = None,
) -> Any:
    """`db.transact` that tells `reran`, failed or not, how often the function was run again."""
    calls = 0

    def counted(txn: Any) -> Any:
        nonlocal calls
        calls += 1
        return fn(txn)

    try:
        return db.transact(run, counted, max_attempts=MAX_ATTEMPTS, timeout_s=timeout_s, lease=lease)
    finally:
        reran(max(0, calls - 1))


class LeftBehind(Exception):
    """A process or a file of a throw-away store is still there."""


def process_is_gone(pid: int) -> bool:
    """True if no process with this id runs; one that only waits to be reaped counts as gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def running_with(*words: bytes) -> list[int]:
    """The processes that have all these in their command line, this one left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                if all(word in line for word in words):
                    found.append(int(entry.name))
    return found


def left_after(find: Callable[[], list[str]], timeout_s: float = LEAVE_TIMEOUT_S) -> list[str]:
    """What `find` still finds when nothing is left, or when the time is over."""
    deadline = time.monotonic() + timeout_s
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left


def wait_until_gone(pids: set[int], paths: list[Path], timeout_s: float = LEAVE_TIMEOUT_S) -> None:
    """Return once all these processes and paths are gone.

    Raises:
        LeftBehind: they are not after `timeout_s` seconds.
    """
    left = left_after(
        lambda: [f"process {pid}" for pid in sorted(pids) if not process_is_gone(pid)]
        + [str(path) for path in paths if os.path.lexists(path)],
        timeout_s,
    )
    if left:
        raise LeftBehind(f"still there after {timeout_s:g} s: {', '.join(left)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Which store a program uses, and how its processes start."""

    path: str | None = None  # None: a throw-away store
    durability: str | None = None
    start_method: str = "spawn"
    timeout_s: float = 30.0  # of opening the store and of one transaction

    def place(self, db: Any) -> str:
        """What worker processes open: the store as it was named, for `db.name` has no password."""
        return self.path if self.path is not None and "://" in self.path else str(db.path)


@contextmanager
def opened_store(options: StoreOptions, failures: list[str]) -> Iterator[Any]:
    """A database for a program that starts worker processes; they open `options.place(db)`.

    With a path the store stays, and its writer leaves by itself a moment
    after its last client. Without one it is a throw-away store, `buffered`
    unless asked otherwise: on the way out this waits until nothing of it is
    left, and adds to `failures` what is.

    Raises:
        LeftBehind: the throw-away store did not go away after the block had
            raised; with that exception as its context.
        InmemError: the store could not be opened.
    """
    throw_away = options.path is None
    durability = options.durability or ("buffered" if throw_away else None)
    db = inmem.open(options.path, durability=durability, timeout_s=options.timeout_s)
    pids: set[int] = set()
    try:
        pids.add(db.status().writer_pid)
        yield db
        pids.add(db.status().writer_pid)  # another one, if the first was killed
    except BaseException:
        db.close()
        if throw_away:
            wait_until_gone(pids, [Path(db.path)])
        raise
    db.close()
    if throw_away:
        try:
            wait_until_gone(pids, [Path(db.path)])
        except LeftBehind as error:
            failures.append(str(error))
