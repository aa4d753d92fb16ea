"""The handles of a storage: one for each process that uses it, however it came to be.

Invariant: a process never uses what a fork has copied of its parent's handle.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import inmem

T = TypeVar("T")


class _Handle:
    """A process's handle of the store, and the run that is meant."""

    def __init__(self, db: inmem.Database, run_id: inmem.RunId, *, is_own: bool) -> None:
        self.db = db
        self.is_own = is_own
        self.run = db.run(run_id)
        try:
            if db.runs.get_run(run_id) is None:
                db.runs.create_run(run_id=run_id, tags=["huey"], exist_ok=True)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close it, unless the program has opened it."""
        if self.is_own:
            self.db.close()


class Handles:
    """Opens the store when a process first needs it.

    Raises:
        InvalidInputError: `db` is no place.
    """

    def __init__(self, db: str | Path | inmem.Database | None, run_id: inmem.RunId) -> None:
        if not isinstance(db, str | os.PathLike | inmem.Database):
            problem = f"db must be a path, a URL or a Database, not {type(db).__name__}"
            raise inmem.InvalidInputError(problem, argument="db")
        self.place = db
        self._run_id = run_id
        self._pid = os.getpid()
        self._handles: dict[int, _Handle] = {}  # by process

    @property
    def run(self) -> inmem.RunScope:
        """The run, by this process's handle."""
        return self._handle.run

    @property
    def _handle(self) -> _Handle:
        found = self._handles.get(os.getpid())
        return self._opened() if found is None else found

    @property
    def is_served(self) -> bool:
        """Whether the store is on a server."""
        try:
            return not self._handle.db.path
        except inmem.InvalidInputError:
            return True

    def close(self) -> bool:
        """Close this process's handle, unless the program has opened it; whether there was one."""
        found = self._handles.pop(os.getpid(), None)
        if found is not None:
            found.close()
        return found is not None

    def _opened(self) -> _Handle:
        pid = os.getpid()
        if not isinstance(self.place, inmem.Database):
            made = _Handle(inmem.open(self.place), self._run_id, is_own=True)
        elif pid == self._pid:
            made = _Handle(self.place, self._run_id, is_own=False)
        else:
            made = _Handle(copy.copy(self.place), self._run_id, is_own=True)  # attaches anew
        found = self._handles.setdefault(pid, made)
        if found is not made:  # another thread was faster
            made.close()
        return found


def is_green() -> bool:
    """Whether greenlets share this thread: gevent has replaced what sleeps."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def in_thread(work: Callable[[], T]) -> T:
    """Do what sleeps in a thread of gevent's, while other greenlets run."""
    import gevent

    result: T = gevent.get_hub().threadpool.apply(work)
    return result
