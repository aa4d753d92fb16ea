"""How long does it take to come back? `python -m bench.recovery`

A writer is killed while clients write, with its image in memory: how long
until each client's next answer. A store is opened that was stopped, and whose
image is gone: from a checkpoint, and from the log alone. Nothing may be
missing afterwards, and nothing there twice.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import inmem
from bench import workloads
from bench.harness import Bench, Options, bench, main
from bench.measuring import BenchError
from bench.peers import Client
from bench.peers.ours import CONFIG, Ours, wait_for_end

CLIENTS = 4
_BEFORE_S, _AFTER_S = 0.5, 1.0
_WINDOW = 32


def count_up(client: Client, index: int, seconds: float) -> list[int]:
    """Add one to a number of this process until time is up: when each answer came, and the number."""
    run = client._run  # type: ignore[attr-defined]  # the facade itself: counters are no peer's
    name, answers = f"adds-{index}", []
    end = time.perf_counter_ns() + int(seconds * 1e9)
    before = run.kv.get(name, 0)
    while time.perf_counter_ns() < end:
        run.kv.add(name)
        answers.append(time.perf_counter_ns())
    counted = run.kv.get(name) - before
    if counted != len(answers):
        raise BenchError(f"{len(answers)} additions were answered, the number says {counted}")
    return answers


def kill_under_load(b: Bench) -> tuple[float, float]:
    """Milliseconds from the kill to the next answer: of the first client that has one, and of the last."""
    subject = b.subjects[b.ours]
    ours = subject.peer
    assert isinstance(ours, Ours)
    assert ours.database is not None
    b.processes.need(CLIENTS)
    pid = ours.database.status().writer_pid
    for index in range(CLIENTS):
        b.processes.begin(index, "with_client", subject.connector, count_up, index, _BEFORE_S + _AFTER_S)
    time.sleep(_BEFORE_S)
    killed_ns = time.perf_counter_ns()
    os.kill(pid, signal.SIGKILL)
    answered = []
    for index in range(CLIENTS):
        answers = b.processes.collect(index)
        # What the dead writer has answered may be fetched later: the longest pause is the one it left.
        pauses = [(after - before, after) for before, after in pairwise(answers) if after > killed_ns]
        if not pauses:
            raise BenchError(f"client {index} had no answer after the kill")
        answered.append((max(pauses)[1] - killed_ns) / 1e6)
    if ours.database.status().writer_pid == pid:
        raise BenchError("the writer was not replaced")
    return min(answered), max(answered)


def one_by_one(path: str, config: str, count: int) -> None:
    """`count` commits of one entry each, so that the log has a record for each commit that it got alone."""
    with inmem.open(path, config=config) as db, db.pipeline() as p:
        for n in range(count):
            p.kv.put("bench", workloads.key(n), workloads.value(n))


def reopened(path: Path, config: Path, count: int) -> float:
    """Seconds until a stopped store answers, the start of the process included. All entries are counted."""
    began = time.perf_counter()
    with inmem.open(path, config=config) as db:
        version = db.kv.get_versioned("bench", workloads.key(count - 1))
        elapsed = time.perf_counter() - began
        if version is None or version.value != workloads.value(count - 1) or db.kv.count("bench") != count:
            raise BenchError(f"{db.kv.count('bench')} of {count} entries came back")
        pid = db.status().writer_pid
    wait_for_end(pid)
    return elapsed


def stopped_store(b: Bench, name: str, config: Path, fill: Any, *arguments: Any, checkpoint: bool) -> Path:
    """A store that was filled and stopped."""
    store = Ours("buffered", config=config)
    (b.scratch / name).mkdir()
    try:
        store.start(b.scratch / name)
        b.processes.call(0, fill, str(store.path), str(config), *arguments)
        if checkpoint:
            assert store.database is not None
            store.database.checkpoint()
    finally:
        store.stop()
    return store.path


def fill(path: str, config: str, count: int) -> None:
    """`count` entries, many at a time."""
    with inmem.open(path, config=config) as db:
        run = db.run("bench")
        for start in range(0, count, 1000):
            numbers = range(start, min(count, start + 1000))
            run.kv.put_many({workloads.key(n): workloads.value(n) for n in numbers})


def run(options: Options) -> dict[str, Any]:
    """Kills under load, and starts from what is on disk."""
    keys, records = options.size(1_000_000, 50_000), options.size(300_000, 20_000)
    with bench("recovery", "how long does it take to come back?", options, ("inmem",)) as b:
        # The log keeps everything, and each write is a commit of its own.
        config = b.scratch / "one.toml"
        config.write_text(CONFIG.read_text().replace(
            "[store]", "[store]\ncheckpoint_wal_bytes = 1_000_000_000_000"
        ).replace("[client]", f"[client]\npipeline_group = 1\npipeline_window = {_WINDOW}"))
        checkpointed = stopped_store(b, "checkpoint", config, fill, keys, checkpoint=True)
        logged = stopped_store(b, "log", config, one_by_one, records, checkpoint=False)
        empty = stopped_store(b, "empty", config, fill, 1, checkpoint=False)
        for number in range(1, options.rounds + 1):
            first, last = kill_under_load(b)
            b.figure("killed under load: ms to the next answer, fastest client", first)
            b.figure("killed under load: ms to the next answer, slowest client", last)
            start = reopened(empty, config, 1)
            b.figure("a start with nothing to read: ms", start * 1000)
            for what, path, count in (("a checkpoint: keys", checkpointed, keys),
                                      ("the log: records", logged, records)):
                # A reopened store may checkpoint what it found: each round starts from the same files.
                copy = b.scratch / "copy"
                shutil.copytree(path, copy)
                elapsed = reopened(copy, config, count)
                shutil.rmtree(copy)
                b.figure(f"from {what} per second", count / elapsed)
                b.figure(f"from {what} per second, without the start of a process",
                         count / max(1e-9, elapsed - start))
            b.say_round(number, f"killed: {last:.0f} ms")
        b.note(f"{keys:,} keys in the checkpoint; {records:,} commits of one entry in the log")
        return b.document()


if __name__ == "__main__":
    sys.exit(main("recovery", __doc__, run))
