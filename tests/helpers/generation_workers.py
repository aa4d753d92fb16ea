"""What worker processes of the tests of generations do. Each gets the shared words, and returns JSON."""

from __future__ import annotations

import time
from typing import Any

import inmem

RUN = "shared"
DEADLINE_S = 30.0
READY, GO_ON = 1, 2  # of a reader that is stuck: its word says where it is, and the test says when to go on


def get_stuck(words: Any, slot: int, path: str, keys: list[str], start: int = 0) -> dict[str, Any]:
    """Hold a snapshot; what it shows then, what it shows when told to go on, and what is there by then.

    It begins when its word is at `start`, so that several can follow each other.
    """
    with inmem.open(path, timeout_s=DEADLINE_S) as db:
        while words[slot] < start:
            time.sleep(0.001)
        generation = db.status().generation  # before: as soon as there is a snapshot it may be left behind
        with db.snapshot(RUN) as view:
            first = {key: view.kv.get(key) for key in keys}
            words[slot] = start + READY
            while words[slot] < start + GO_ON:
                time.sleep(0.001)
            refused = None
            again: dict[str, Any] = {}
            try:
                again = {key: view.kv.get(key) for key in keys}
            except inmem.SnapshotTooOldError as error:
                refused = str(error)
        newest = {key: db.kv.get(RUN, key) for key in keys}
        return {
            "generation": generation, "first": first, "again": again, "newest": newest, "refused": refused,
            "generation_after": db.status().generation,
        }


def come_and_go(words: Any, slot: int, path: str) -> dict[str, Any]:
    """Open, write, read one version twice, close; again and again. How often, and the slowest time."""
    visits = 0
    slowest = 0.0
    while not words.stopping():
        began = time.monotonic()
        with inmem.open(path, timeout_s=DEADLINE_S) as db:
            visits += 1
            assert db.kv.add("visits", f"of-{slot}") == visits
            with db.snapshot(RUN) as view:
                for _ in range(20):
                    count, mirror = view.kv.get("transacted", 0), view.kv.get("mirror", 0)
                    assert count == -mirror, (count, mirror)
                    events = view.events.count()
                    head = view.events.head()
                    assert events == (0 if head is None else head.sequence + 1)
            assert db.kv.get("visits", f"of-{slot}") == visits
        slowest = max(slowest, time.monotonic() - began)
        words[slot] = visits
    return {"visits": visits, "slowest_s": slowest}


def visit(words: Any, path: str, timeout_s: float) -> dict[str, Any]:
    """One new client: what it found, or the code of the error that it got, and how long that took."""
    began = time.monotonic()
    found: dict[str, Any] = {}
    try:
        with inmem.open(path, timeout_s=timeout_s) as db:
            found = {"value": db.kv.get(RUN, "k"), "writer": db.status().writer_pid}
            found["version"] = db.kv.put(RUN, "visited", found["writer"])
    except inmem.InmemError as error:
        found = {"code": error.code}
    return found | {"seconds": time.monotonic() - began}
