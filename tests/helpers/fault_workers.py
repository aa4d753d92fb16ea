"""What worker processes of the tests of faults do. Each gets the shared words, and returns JSON."""

from __future__ import annotations

import os
import time
from typing import Any

import inmem

RUN = "shared"
DEADLINE_S = 30.0


def quantile(values: list[float], share: float) -> float:
    """The value below which this share of the values is."""
    some = sorted(values)
    return some[min(len(some) - 1, int(len(some) * share))]


def measured_adds(words: Any, index: int, path: str, pause_s: float) -> dict[str, Any]:
    """Small commits without haste until told; latencies by phase, the phase being word 200."""
    latencies: dict[int, list[float]] = {}
    with inmem.open(path, timeout_s=DEADLINE_S) as db:
        n = 0
        while not words.stopping():
            phase = words[200]
            began = time.perf_counter()
            n += 1
            assert db.kv.add(f"normal-{index}", "n") == n
            assert db.kv.get(f"normal-{index}", "n") == n
            latencies.setdefault(phase, []).append(time.perf_counter() - began)
            words[index] = n
            time.sleep(pause_s)
    return {
        "count": n,
        "phases": {
            phase: {"count": len(some), "p50": quantile(some, 0.5), "p99": quantile(some, 0.99),
                    "max": max(some)}
            for phase, some in latencies.items()
        },
    }


def flood(words: Any, index: int, path: str, giants: bool) -> dict[str, Any]:
    """As much as one client can send: pipelines without a pause, giant transactions among them."""
    sent = busy = 0
    with inmem.open(path, timeout_s=DEADLINE_S) as db:
        while not words.stopping():
            try:
                with db.pipeline() as pipe:
                    for n in range(2000):
                        # Runs in turn: each write is a commit of its own.
                        pipe.kv.put(f"flood-{index}-{n % 2}", f"k{n % 500}", n)
                sent += 2000
                if giants:
                    with db.transaction(f"flood-{index}") as txn:
                        for n in range(4):
                            txn.kv.put(f"giant-{n}", os.urandom(4 << 20))
                    sent += 1
            except inmem.BusyError:
                busy += 1
            words[index] = sent
    return {"sent": sent, "busy": busy}


def come_and_go(words: Any, index: int, path: str, rounds: int) -> int:
    """Open, commit, read, close, again and again; how often."""
    for _ in range(rounds):
        with inmem.open(path, timeout_s=DEADLINE_S) as db:
            words[index] = db.kv.add(f"guest-{index}", "n")
            assert db.kv.get(f"guest-{index}", "n") == words[index]
    return int(words[index])


def in_children(words: Any, first: int, count: int, work: Any) -> list[int]:
    """`work(index)` in forked children, each of which has nothing open yet; their ids."""
    pids = []
    for index in range(first, first + count):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work(index)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    return pids


def hold_snapshots(words: Any, first: int, count: int, path: str) -> list[int]:
    """So many processes, each with a snapshot of its own, until told; says how many have one."""

    def hold(index: int) -> None:
        with inmem.open(path, timeout_s=DEADLINE_S) as db, db.snapshot(RUN) as view:
            assert view.kv.get("k") == "v"
            words[index] = os.getpid()
            while not words.stopping():
                time.sleep(0.01)

    return [os.waitpid(pid, 0)[1] for pid in in_children(words, first, count, hold)]


def visit(words: Any, first: int, count: int, path: str, wave: int) -> int:
    """So many processes at once: each opens, commits, waits for the others, and leaves in its own way."""

    def one(index: int) -> None:
        db = inmem.open(path, timeout_s=DEADLINE_S)
        db.kv.add("guests", "n")
        db.events.append("guests", "came", index)
        words[index] = wave
        words.pass_gate(wave)
        if index % 3 == 0:
            db.close()
        elif index % 3 == 1:
            os.kill(os.getpid(), 9)  # without a word

    statuses = [os.waitpid(pid, 0)[1] for pid in in_children(words, first, count, one)]
    return sum(status in (0, 9) for status in statuses)


def queue_up(words: Any, index: int, path: str, rounds: int) -> dict[str, int]:
    """Pipelines and counters, one after the other, whatever becomes of the writer."""
    added = 0
    with inmem.open(path, timeout_s=60.0) as db:
        for number in range(rounds):
            with db.pipeline() as pipe:
                for part in range(40):
                    # Runs in turn: each write is a commit of its own, so many wait at once.
                    pipe.events.append(f"log-{index}-{part % 2}", "queued", number * 40 + part)
            assert db.kv.add("queued", f"n-{index}") == added + 1
            added += 1
            words[index] = number + 1
    return {"rounds": rounds, "added": added}
