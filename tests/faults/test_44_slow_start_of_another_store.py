"""Fault 44: while a process waits for the writer of one store, its other threads use other stores as ever."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkpointing import remove_image
from support import kill, kill_writer, process_state, processes_of, wait_until

import inmem

ROUNDS = 400
SLOWEST_S = 2.0  # of one call beside a start that takes as long as the test wants; on a busy machine too


def writers_of(path: Path) -> list[int]:
    return [pid for pid, command in processes_of(path) if "inmem.writer" in command]


def never_ready(path: Path) -> int:
    """The writer of a path that was stopped while it started, once there is one."""
    return int(wait_until(
        lambda: next((pid for pid in writers_of(path) if process_state(pid) == "T"), 0), "a writer is stopped"
    ))


@contextmanager
def slow(
    path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[], object]
) -> Iterator[None]:
    """Somebody uses a store whose writer stands still while it starts, until the block ends."""
    monkeypatch.setenv("INMEM_FAILPOINT", f"replayed:1:{scratch / 'stopped'}:stop")
    found: list[object] = []

    def run() -> None:
        try:
            found.append(use())
        except inmem.InmemError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    pid = never_ready(path)
    monkeypatch.delenv("INMEM_FAILPOINT")
    try:
        yield
        assert not found, "it has waited all the time"
    finally:
        os.kill(pid, signal.SIGCONT)
        thread.join()
    assert not isinstance(found[0], Exception), found[0]


def everything_else(db: inmem.Database, scratch: Path) -> dict[str, list[float]]:
    """How long calls take that have nothing to do with the slow store."""
    took: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], object]) -> None:
        began = time.monotonic()
        call()
        took.setdefault(name, []).append(time.monotonic() - began)

    def child() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if db.kv.get("run", "n") is not None and db.kv.put("run", "child", 1) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def open_another() -> None:
        with inmem.open(scratch / "third") as third:
            third.kv.put("run", "k", 1)

    def open_again() -> None:
        with inmem.open(db.path) as again, again.snapshot("run") as view:
            assert view.kv.get("n") is not None

    for n in range(ROUNDS):
        timed("put", lambda n=n: db.kv.put("run", "n", n))  # type: ignore[misc]
        timed("get", lambda: db.kv.get("run", "n"))
        timed("transact", lambda: db.transact("run", lambda txn: txn.kv.put("m", txn.kv.get("n"))))
    for _ in range(4):
        timed("fork", child)
        timed("open", open_another)
        timed("open again", open_again)
        timed("unpickle", lambda: pickle.loads(pickle.dumps(db)).close())  # noqa: S301
    timed("a new writer", lambda: (kill_writer(Path(db.path)), db.kv.put("run", "n", 1)))
    in_thread = threading.Thread(target=lambda: timed("in a new thread", lambda: db.kv.put("run", "n", 2)))
    in_thread.start()
    in_thread.join()
    return took


SLOW_USES: dict[str, Callable[[inmem.Database], object]] = {
    "read": lambda db: db.kv.get("run", "k"),
    "snapshot": lambda db: db.snapshot("run").close() or True,
    "put": lambda db: db.kv.put("run", "k", 2),
}


@pytest.mark.parametrize("use", ["open", *SLOW_USES])
def test_another_store_starts_slowly(
    store_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    lame = scratch / "lame"
    with inmem.open(store_path) as db, inmem.open(lame, timeout_s=120.0) as slow_db:
        slow_db.kv.put("run", "k", 1)
        db.kv.put("run", "n", 0)
        if use == "open":
            slow_db.close()

        def call() -> object:
            if use != "open":
                return SLOW_USES[use](slow_db)
            with inmem.open(lame, timeout_s=120.0) as opened:
                return opened.kv.get("run", "k")

        for pid in writers_of(lame):
            kill(pid)
        remove_image(lame)
        with slow(lame, scratch, monkeypatch, call):
            took = everything_else(db, scratch)
    for name, times in took.items():
        times.sort()
        p99_ms, slowest_ms = times[len(times) * 99 // 100] * 1e3, times[-1] * 1e3
        print(f"beside {use}: {name}: p99 {p99_ms:.1f} ms, slowest {slowest_ms:.0f} ms")
    assert {name: times[-1] for name, times in took.items() if times[-1] > SLOWEST_S} == {}
