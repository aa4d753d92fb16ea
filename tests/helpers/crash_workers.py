"""What worker processes of the crash tests do. Each gets the shared words, and returns JSON."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Any

import inmem
from inmem import ConflictError

RUN = "shared"
DEADLINE_S = 30.0


# --- under a writer that keeps dying -----------------------------------------------------------


def keep_working(words: Any, index: int, path: str, seed: int) -> dict[str, Any]:
    """Every kind of commit, until told to stop; what was acknowledged, for the test to look for."""
    rng = random.Random(seed * 1000 + index)
    acked: dict[str, Any] = {"transacted": 0, "added": 0, "appended": [], "last": None, "piped": []}

    def step(txn: Any) -> None:
        count = txn.kv.get("transacted", 0) + 1
        txn.kv.put("transacted", count)
        txn.kv.put("mirror", -count)

    with inmem.open(path, timeout_s=DEADLINE_S) as db:
        n = 0
        while not words.stopping():
            n += 1
            kind = rng.randrange(5)
            if kind == 0:
                db.transact(RUN, step, max_attempts=1000)
                acked["transacted"] += 1
            elif kind == 1:
                db.kv.add(RUN, "added")
                acked["added"] += 1
            elif kind == 2:
                name = f"{index}-{n}"
                appended = db.events.append(RUN, "note", name)
                acked["appended"].append([appended.sequence, name])
            elif kind == 3:
                db.kv.put(RUN, f"last-{index}", n)
                acked["last"] = n
            else:
                with db.pipeline() as pipe:
                    for part in range(4):
                        # Two runs in turn: each write is a commit of its own.
                        pipe.events.append(f"{RUN}-{part % 2}", "piped", f"{index}-{n}-{part}")
                acked["piped"] += [f"{index}-{n}-{part}" for part in range(4)]
            words[index] += 1
    return acked


def keep_reading(words: Any, path: str) -> dict[str, Any]:
    """Reads without a pause; every view must be whole, and nothing may go backwards."""
    reads = views = 0
    seen = length = 0
    slowest = 0.0
    with inmem.open(path, timeout_s=DEADLINE_S) as db:
        while not words.stopping():
            began = time.perf_counter()
            with db.snapshot(RUN) as view:
                count, mirror = view.kv.get("transacted", 0), view.kv.get("mirror", 0)
                assert count == -mirror, (count, mirror)
                events = view.events.count()
                head = view.events.head()
                assert events == (0 if head is None else head.sequence + 1)
            assert count >= seen and events >= length, "what was published has gone"
            seen, length = count, events
            views += 1
            for _ in range(20):
                assert db.kv.get(RUN, "transacted", 0) >= seen
                reads += 1
            slowest = max(slowest, time.perf_counter() - began)
            time.sleep(0.001)  # readers are many in real life, cores are two
    return {"reads": reads, "views": views, "slowest_s": slowest}


# --- contention ------------------------------------------------------------------------------------


def increment(words: Any, index: int, path: str, count: int) -> dict[str, Any]:
    """Count one shared counter up, in transactions."""
    calls = 0

    def step(txn: Any) -> None:
        nonlocal calls
        calls += 1
        txn.kv.put("counter", txn.kv.get("counter", 0) + 1)

    with inmem.open(path, timeout_s=DEADLINE_S) as db:
        words[index] = 1
        words.pass_gate()
        began = time.monotonic()
        for _ in range(count):
            db.transact(RUN, step, max_attempts=10_000, timeout_s=90.0)
        return {"calls": calls, "seconds": time.monotonic() - began}


def race(words: Any, index: int, path: str, seconds: float) -> dict[str, int]:
    """Change one shared key in a tight loop, with the attempts that a transaction has by default."""
    attempts = most = done = 0

    def step(txn: Any) -> None:
        nonlocal attempts
        attempts += 1
        txn.kv.put("raced", txn.kv.get("raced", 0) + 1)

    with inmem.open(path, timeout_s=DEADLINE_S) as db:
        words[index] = 1
        words.pass_gate()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            attempts = 0
            db.transact(RUN, step)
            most, done = max(most, attempts), done + 1
    return {"done": done, "most_attempts": most}


def append(words: Any, index: int, path: str, count: int) -> list[list[int]]:
    """Append to one shared log; the sequences that came back."""
    with inmem.open(path, timeout_s=DEADLINE_S) as db:
        words[index] = 1
        words.pass_gate()
        sequences = []
        for n in range(count):
            if n % 3:
                sequences.append([db.events.append(RUN, f"type-{index % 3}", [index, n]).sequence, n])
            else:
                def step(txn: Any, n: int = n) -> Any:
                    txn.kv.add(f"appended-{index}")
                    return txn.events.append("in-txn", [index, n])
                sequences.append([db.transact(RUN, step).sequence, n])
        return sequences


def anomaly(words: Any, index: int, path: str, kind: str, rounds: int) -> list[str]:
    """Two at once, each round: read, meet, write. Who was refused in which round."""
    outcomes = []
    with inmem.open(path, timeout_s=DEADLINE_S) as db:
        for number in range(rounds):
            words.meet(index, 2, 3 * number + 1)
            try:
                with db.transaction(f"{kind}-{number}") as txn:
                    if kind == "lost-update":
                        seen = txn.kv.get("n", 0)
                        words.meet(index, 2, 3 * number + 2)
                        txn.kv.put("n", seen + 1)
                    elif kind == "write-skew":
                        on_call = txn.kv.get("a", True) + txn.kv.get("b", True)
                        words.meet(index, 2, 3 * number + 2)
                        if on_call == 2:
                            txn.kv.put("ab"[index], False)
                    elif kind == "phantom":
                        booked = txn.kv.count("slot-")
                        words.meet(index, 2, 3 * number + 2)
                        if not booked:
                            txn.kv.put(f"slot-{index}", True)
                    else:
                        length = txn.events.count()
                        words.meet(index, 2, 3 * number + 2)
                        if not length:
                            txn.events.append("first", index)
                outcomes.append("done")
            except ConflictError as error:
                assert error.retryable
                outcomes.append("refused")
            words.meet(index, 2, 3 * number + 3)
    return outcomes


def move(words: Any, index: int, path: str, accounts: int) -> int:
    """Move amounts between two accounts and note each move, as one."""
    rng = random.Random(index)
    moves = 0

    def step(txn: Any) -> None:
        amount = rng.randrange(1, 10)
        txn.kv.put("left", txn.kv.get("left") - amount)
        txn.kv.put("right", txn.kv.get("right") + amount)
        txn.events.append("moved", amount)

    with inmem.open(path, timeout_s=DEADLINE_S) as db:
        while not words.stopping():
            db.transact(RUN, step, max_attempts=10_000)
            moves += 1
            words[index] = moves
    return moves


def audit(words: Any, path: str, views: int, states_wanted: int) -> dict[str, int]:
    """Look at both accounts and the log, again and again: no view may be half of a move.

    All views can fit into one moment in which the system lets no mover run: so it looks on until it has seen
    enough states.
    """
    states: set[tuple[int, int]] = set()
    looks = 0
    deadline = time.monotonic() + DEADLINE_S
    with inmem.open(path, timeout_s=DEADLINE_S) as db:
        while looks < views or (len(states) < states_wanted and time.monotonic() < deadline):
            looks += 1
            with db.snapshot(RUN) as view:
                left, right = view.kv.get("left"), view.kv.get("right")
                head = view.events.head()
                length = view.events.count()
                assert left + right == 1000, (left, right)
                assert left == view.kv.get("left")
                assert length == (0 if head is None else head.sequence + 1)
                states.add((left, length))
        with db.snapshot(RUN) as view:
            moved = sum(event.payload for event in view.events.iter())
            assert view.kv.get("right") == 500 + moved
    return {"views": looks, "states": len(states)}


# --- programs that come and go -------------------------------------------------------------------


def leave_a_note(words: Any, index: int, path: str) -> dict[str, int]:
    """Open at the same moment as others, write, read, and say who the writer was."""
    words[index] = 1
    words.pass_gate()
    with inmem.open(path, timeout_s=DEADLINE_S) as db:
        db.kv.put(RUN, f"note-{index}", os.getpid())
        status = db.status()
        words[64 + index] = 1
        words.pass_gate(2)  # all have written, and everyone sees everyone
        notes = db.kv.count(RUN, "note-")
        return {"writer": status.writer_pid, "epoch": status.epoch, "notes": notes, "pid": os.getpid()}


def hold_open(words: Any, index: int, path: str) -> None:
    """Commit once, then stay until told."""
    with inmem.open(path, timeout_s=DEADLINE_S) as db:
        db.kv.put(RUN, f"here-{index}", True)
        words[index] = 1
        while not words.stopping():
            time.sleep(0.002)


def write_until_told(words: Any, index: int, path: str) -> int:
    """Blind writes without a pause; how many were acknowledged."""
    with inmem.open(path, timeout_s=DEADLINE_S) as db:
        n = 0
        while not words.stopping():
            n += 1
            db.kv.put(f"mine-{index}", f"k{n % 50}", n)
            words[index] = n
        return n


def fill(words: Any, index: int, path: str, size: int) -> dict[str, Any]:
    """Write big values until the store is full; what the refusal was."""
    with inmem.open(path, timeout_s=DEADLINE_S) as db:
        n = 0
        while True:
            try:
                db.kv.put(f"filler-{index}", f"k{n}", os.urandom(size))
            except inmem.StoreFullError as error:
                return {"written": n, "code": error.code, "hint": bool(error.hint)}
            n += 1


def read_slots(words: Any, path: str, threads: int) -> int:
    """Hold one snapshot in each of many threads at the same time."""
    ready = threading.Barrier(threads + 1)
    done = threading.Event()
    wrong: list[BaseException] = []

    def hold(db: inmem.Database) -> None:
        try:
            with db.snapshot(RUN) as view:
                assert view.kv.get("k") == "v"
                ready.wait(DEADLINE_S)
                done.wait(DEADLINE_S)
                assert view.kv.get("k") == "v"
        except BaseException as error:
            wrong.append(error)
            ready.abort()

    with inmem.open(path, timeout_s=DEADLINE_S) as db:
        some = [threading.Thread(target=hold, args=(db,)) for _ in range(threads)]
        for thread in some:
            thread.start()
        try:
            ready.wait(DEADLINE_S)
            words[0] = 1
            words.pass_gate()
        finally:
            done.set()
            for thread in some:
                thread.join()
        if wrong:
            raise wrong[0]
    return threads
