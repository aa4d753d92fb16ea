"""Bugs to plant into a writer, and a look over its shoulder: the suite has to notice the bugs.

A Python process imports a module of this name as it starts. With this
directory on PYTHONPATH, a writer (and no other process) does what these name:

    INMEM_TEST_PLANT    one of PLANTS: the writer has this bug
    INMEM_TEST_PLANTED  a file; a line is added to it when the bug first has its effect
    INMEM_TEST_SYNCED   a file; it always says how much of which log segment has been synced

    INMEM_TEST_GROUPS   a file; it says which groups of commits took long

    INMEM_TEST_FATAL    a file; the writer has the procedure `test.fatal`, which adds its process id
                        to the file and ends the writer in the way that its argument names

and writers and helpers have the primitive of `tests/helpers/notes` with

    INMEM_TEST_PRIMITIVE    anything; the tests' directory is on PYTHONPATH too

So nothing in the package knows of any bug, and a bug that is not there any
more, since what it replaces has another name, is one that says nothing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any


def _effective() -> None:
    """Tell, once, that the planted code runs."""
    file = os.environ.pop("INMEM_TEST_PLANTED", None)
    if file is not None:
        with open(file, "a", encoding="utf-8") as told:
            told.write(f"{os.getpid()}\n")


def skip_validation() -> None:
    """Nothing that a transaction read is looked at again."""
    from inmem.commit import decide

    def validate(*_: Any) -> None:
        _effective()

    assert callable(decide.validate)
    decide.validate = validate


def ack_before_logging() -> None:
    """A group is published and answered, and written to the log with the next group."""
    from inmem.storage.wal.log import Wal

    append = Wal.append
    waiting: list[tuple[Any, dict[str, Any]]] = []

    def later(self: Any, ops: Any, **position: Any) -> int:
        if waiting:
            _effective()
            earlier, where = waiting.pop()
            append(self, earlier, **where)
        waiting.append((list(ops), position))
        return 0

    Wal.append = later  # type: ignore[method-assign]


def publish_before_sync() -> None:
    """In `sync` mode a group is visible before the log is durable; it is answered afterwards."""
    from inmem.writer.committer import Committer

    publish = Committer._publish

    def early(self: Any, txn: Any, ops: Any, now_us: int, sync: bool) -> None:
        if sync:
            _effective()
        publish(self, txn, ops, now_us, False)
        if sync:
            self._log.sync()

    Committer._publish = early  # type: ignore[method-assign]


def drop_deduplication() -> None:
    """A commit that arrives again is taken for a new one."""
    from inmem.writer.outcomes import Outcome, Sessions

    find = Sessions.find

    def forget(self: Any, session: bytes, sequence: int, answered_below: int, digest: int) -> Any:
        found = find(self, session, sequence, answered_below, digest)
        if isinstance(found, Outcome):
            _effective()
            return None
        return found

    Sessions.find = forget  # type: ignore[method-assign]


def let_late_holders_write() -> None:
    """Whoever has had a lease may commit under it."""
    from inmem.primitives.leases import procedures

    is_of = procedures._Held.is_of

    def any_of(self: Any, token: object, acquired_at: object) -> bool:
        if not is_of(self, token, acquired_at) and self.record is not None and not self.record.is_free:
            _effective()
            return True
        return is_of(self, token, acquired_at)

    procedures._Held.is_of = any_of  # type: ignore[method-assign]


def let_late_workers_ack() -> None:
    """Whoever has had a job may end it."""
    from inmem.primitives.queues import rules

    held = rules.held

    def by_anybody(queue: str, number: int, state: Any, token: int, mark: int) -> Any:
        if state is not None and not rules.is_held(state, token, mark):
            _effective()
            return state
        return held(queue, number, state, token, mark)

    rules.held = by_anybody


PLANTS: dict[str, Callable[[], None]] = {
    plant.__name__: plant
    for plant in (
        skip_validation, ack_before_logging, publish_before_sync, drop_deduplication,
        let_late_holders_write, let_late_workers_ack,
    )
}


def note_what_is_synced(file: str) -> None:
    """Keep account of what a power cut could not take: the bytes of each segment at its last sync."""
    from inmem.storage.wal.files import Files

    synced: dict[str, int] = {}

    def noted(sync: Callable[[Any, int], None]) -> Callable[[Any, int], None]:
        def and_note(self: Any, fd: int) -> None:
            size = os.fstat(fd).st_size  # before: what is written meanwhile may be left out
            sync(self, fd)
            synced[os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))] = size
            with open(f"{file}.new", "w", encoding="utf-8") as new:
                json.dump(synced, new)
            os.replace(f"{file}.new", file)

        return and_note

    Files.fsync = noted(Files.fsync)  # type: ignore[method-assign]
    Files.fdatasync = noted(Files.fdatasync)  # type: ignore[method-assign]


def note_long_groups(file: str) -> None:
    """Write down each group of commits that took a millisecond: its end, its time, that of the processor."""
    import time

    from inmem.writer.committer import Committer
    from inmem.writer.sampler import Sampler

    commit = Committer.commit
    spent: list[float] = []

    def timed(self: Any, requests: Any, now_us: int) -> Any:
        began = time.thread_time()
        try:
            return commit(self, requests, now_us)
        finally:
            spent[:] = [time.thread_time() - began]

    def add(self: Any, total_s: float) -> None:
        took_s = total_s - self.__dict__.get("group_s", 0.0)
        self.__dict__["group_s"] = total_s
        if took_s >= 0.001:
            with open(file, "a", encoding="utf-8") as told:
                told.write(json.dumps([time.monotonic(), took_s, spent[0]]) + "\n")

    Committer.commit = timed  # type: ignore[method-assign]
    Sampler.group_s = property(lambda self: self.__dict__["group_s"], add)  # type: ignore[assignment]


def offer_an_end(file: str) -> None:
    """A procedure that ends its writer."""
    import resource
    import signal

    from inmem.primitives.server import PROCEDURES

    def fatal(workspace: Any, key: bytes, how: str) -> None:
        workspace.put(key, b"\xc0")
        with open(file, "a", encoding="utf-8") as told:
            told.write(f"{os.getpid()}\n")
        if how == "raise":
            raise RuntimeError("planted")
        if how == "recurse":
            fatal(workspace, key, how)
        hoard = []
        if how == "allocate":
            with open("/proc/self/statm", encoding="ascii") as statm:
                size = int(statm.read().split()[0]) * resource.getpagesize()
            _, hard = limits = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (size + 256 * 1024 * 1024, hard))
            try:
                while True:
                    hoard.append(bytes(8 * 1024 * 1024))
            finally:
                resource.setrlimit(resource.RLIMIT_AS, limits)
        if how == "grow":
            hoard += [bytes([1]) * 1024 * 1024 for _ in range(64)]
        os.kill(os.getpid(), signal.SIGSEGV if how == "crash" else signal.SIGKILL)

    PROCEDURES["test.fatal"] = fatal


def _runs(module: str) -> bool:
    """Whether this is a process that was started as `python -m MODULE`."""
    return any(pair == ("-m", module) for pair in pairwise(sys.orig_argv))


if _runs("inmem.writer"):
    if "INMEM_TEST_FATAL" in os.environ:
        offer_an_end(os.environ["INMEM_TEST_FATAL"])
    if "INMEM_TEST_PLANT" in os.environ:
        PLANTS[os.environ["INMEM_TEST_PLANT"]]()
    if "INMEM_TEST_SYNCED" in os.environ:
        note_what_is_synced(os.environ["INMEM_TEST_SYNCED"])
    if "INMEM_TEST_GROUPS" in os.environ:
        note_long_groups(os.environ["INMEM_TEST_GROUPS"])

if "INMEM_TEST_PRIMITIVE" in os.environ and (_runs("inmem.writer") or _runs("inmem.maintenance")):
    import adding_notes

    adding_notes.add()
