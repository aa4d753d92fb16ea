"""What processes do that wait: followers, watchers, and those who feed them."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from support import kill_writer, wait_until, writer_pid

import inmem

RUN = "waited"
STUCK_S = 60.0


def kill_one(path: Path, rng: random.Random) -> None:
    """Kill a writer that has served for a moment: many that die while they start are taken for broken."""
    wait_until(lambda: writer_pid(path), "a writer serves")
    (path / "launches").unlink(missing_ok=True)  # launching backs off when writers die one by one
    time.sleep(rng.uniform(0.05, 0.4))
    kill_writer(path)


def follow(words: Any, index: int, path: str) -> dict[str, Any]:
    """Follow a log; the events in their order of arrival, and the longest time from commit to receipt."""
    with inmem.open(path, timeout_s=STUCK_S) as db:
        found: list[int] = []
        longest_s = 0.0
        for event in db.events.follow(RUN, timeout_s=STUCK_S):
            longest_s = max(longest_s, time.time() - event.timestamp / 1e6)
            if event.payload is None:
                break
            found.append(event.payload)
            words[index] = len(found)
        return {"found": found, "longest_s": longest_s}


def answer(words: Any, index: int, path: str, count: int) -> dict[str, Any]:
    """Add to one number whenever another process has added to its own; the longest time that a wait took."""
    mine, other = f"n-{index % 2}", f"n-{1 - index % 2}"
    longest_s = 0.0
    with inmem.open(path, timeout_s=STUCK_S) as db:
        for turn in range(count):
            wanted = turn + (index % 2)

            def is_there(view: inmem.Snapshot, wanted: int = wanted) -> Any:
                return (view.kv.get(other, 0) >= wanted and view.kv.get_versioned(other)) or wanted == 0

            seen = db.wait(RUN, is_there, timeout_s=STUCK_S)
            if isinstance(seen, inmem.Versioned):
                longest_s = max(longest_s, time.time() - seen.timestamp / 1e6)
            db.kv.add(RUN, mine)
            words[index] = turn + 1
    return {"longest_s": longest_s}


def watch(words: Any, index: int, path: str, last: str) -> dict[str, Any]:
    """Watch a prefix until one key has come, and all else is as it is stored; versions that went back.

    What was deleted before that key was put may be told after it.
    """
    state: dict[str, Any] = {}
    versions: dict[str, int] = {}
    back = 0
    with inmem.open(path, timeout_s=STUCK_S) as db:
        for change in db.kv.watch(RUN, "w-", timeout_s=STUCK_S):
            if change.versioned is None:
                state.pop(change.key, None)
            else:
                back += change.versioned.version <= versions.get(change.key, 0)
                versions[change.key] = change.versioned.version
                state[change.key] = change.versioned.value
                words[index] = len(versions)
            if last in state and state == dict(db.kv.list_with_values(RUN, "w-")):
                return {"back": back}
    raise AssertionError("unreachable")


def sleep_on_a_key(words: Any, index: int, path: str, key: str) -> Any:
    """Wait for a key; when it came, by the clock of the machine."""
    with inmem.open(path, autostart=False) as db:
        words[index] = 1
        found = db.kv.wait(RUN, key, timeout_s=STUCK_S)
        assert found is not None
        return [time.time(), found.value]
