"""Fault 48: a time to live counts from the commit, by the clock of the store, however long that waited."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from support import wait_until, writer_pid

import inmem

RUN = "run"
TTL_S = 0.6
WAITS_S = 1.0  # longer than it lasts


def in_a_pipeline(db: inmem.Database, write: Callable[[inmem.Pipeline], object]) -> None:
    with db.pipeline() as pipe:
        write(pipe)


WRITES: dict[str, Callable[[inmem.Database, str], object]] = {  # each in a run of its own
    "put": lambda db, run: db.kv.put(run, "key", 1, ttl=TTL_S),
    "put_with_ttl": lambda db, run: db.run(run).kv.put_with_ttl("key", 1, timedelta(seconds=TTL_S)),
    "put_many": lambda db, run: db.kv.put_many(run, {"key": 1, "other": 2}, ttl=TTL_S),
    "transact": lambda db, run: db.transact(run, lambda txn: txn.kv.put("key", 1, ttl=TTL_S)),
    "pipeline": lambda db, run: in_a_pipeline(db, lambda pipe: pipe.kv.put(run, "key", 1, ttl=TTL_S)),
    "pipeline-many": lambda db, run: in_a_pipeline(
        db, lambda pipe: pipe.kv.put_many(run, {"key": 1}, ttl=TTL_S)
    ),
}


def test_while_the_writer_stands_still(db: inmem.Database, store_path: Path) -> None:
    db.kv.put(RUN, "first", 0)
    pid = writer_pid(store_path)
    os.kill(pid, signal.SIGSTOP)
    threads = [threading.Thread(target=write, args=(db, run)) for run, write in WRITES.items()]
    try:
        for thread in threads:
            thread.start()
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > WAITS_S, "they have waited for longer than they last")
        assert not any(db.kv.list(run) for run in WRITES)
    finally:
        os.kill(pid, signal.SIGCONT)
    left: dict[str, float | None] = {}

    def are_there() -> bool:
        for run in WRITES.keys() - left.keys():
            if db.kv.get(run, "key") == 1:
                left[run] = db.kv.ttl(run, "key")
        return len(left) == len(WRITES)

    wait_until(are_there, "they are there")
    assert all(ttl is not None and 0 < ttl <= TTL_S for ttl in left.values()), left
    for thread in threads:
        thread.join()
    wait_until(lambda: not any(db.kv.list(run) for run in WRITES), "they have expired")


def test_in_a_transaction_that_takes_its_time(db: inmem.Database) -> None:
    """It shows its own write as of now, and what is stored counts from the commit."""
    with db.transaction(RUN) as txn:
        txn.kv.put("key", 1, ttl=TTL_S)
        shown = txn.kv.ttl("key")
        assert txn.kv.get("key") == 1 and shown is not None and 0 < shown <= TTL_S
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > WAITS_S, "it takes longer than it lasts")
    left = db.kv.ttl(RUN, "key")
    assert db.kv.get(RUN, "key") == 1 and left is not None and 0 < left <= TTL_S


def test_a_moment_of_the_release_before_is_taken(db: inmem.Database) -> None:
    """Its clients send when an entry expires."""
    until = db.engine.latest().now_us() + 30_000_000
    sink = db.engine.direct()
    sink.put(db.namespace.run_prefix(RUN) + b"\0\x01key", b"\x01", until)
    left = db.kv.ttl(RUN, "key")
    assert left is not None and 20 < left <= 30
