"""The writer is killed, at random and at every step: what was acknowledged stays, once."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from crash_workers import RUN, keep_reading, keep_working
from support import Workers, alive, control_state, epoch, kill, kill_writer, wait_until, writer_pid

import inmem

KILLS = int(os.environ.get("INMEM_TEST_KILLS", "50"))
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
WORKERS = 8
# Launching backs off when writers die within a second of their start, several in a row. That is
# right, and not what is measured here: after so many quick kills one writer lives longer.
QUICK_KILLS = 5
LONG_LIFE_S = 1.05


def one_kill(path: Path, workers: Workers, long_life: bool) -> float:
    """Kill the writer amid work; the seconds until somebody's commit was acknowledged again."""
    pid = wait_until(lambda: writer_pid(path), "a writer serves")
    born = time.monotonic()
    before = workers.words.total(WORKERS)
    wait_until(
        lambda: workers.words.total(WORKERS) >= before + WORKERS
        and (not long_life or time.monotonic() - born > LONG_LIFE_S),
        "the workers work",
    )
    killed_epoch = epoch(path)
    killed_at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: epoch(path) > killed_epoch and writer_pid(path) not in (0, pid), "a new writer serves")
    progress = workers.words.total(WORKERS)
    wait_until(lambda: workers.words.total(WORKERS) > progress, "commits go on")
    workers.check()
    return time.monotonic() - killed_at


@pytest.mark.timeout(120 + 4 * KILLS)
@pytest.mark.parametrize("durability", ["buffered", "sync"])
def test_killed_again_and_again_under_work(store_path: Path, workers: Workers, durability: str) -> None:
    print(f"seed {SEED}, {KILLS} kills")
    with inmem.open(store_path, durability=durability):
        for index in range(WORKERS):
            workers.start(keep_working, index, store_path, SEED)
        reader = workers.start(keep_reading, store_path)
        wait_until(lambda: all(workers.words[i] for i in range(WORKERS)), "all workers have begun")
        recoveries = [
            one_kill(store_path, workers, long_life=number % QUICK_KILLS == 0) for number in range(KILLS)
        ]
        workers.words.stop()
        *acked, reading = workers.results()
    assert reader.process.returncode == 0

    with inmem.open(store_path) as db:
        assert db.kv.get(RUN, "transacted", 0) == sum(one["transacted"] for one in acked)
        assert db.kv.get(RUN, "added", 0) == sum(one["added"] for one in acked)
        for index, one in enumerate(acked):
            assert db.kv.get(RUN, f"last-{index}") == one["last"]

        stored = [(event.sequence, event.payload) for event in db.events.iter(RUN)]
        claimed = sorted((sequence, name) for one in acked for sequence, name in one["appended"])
        lost, doubled = compare([name for _, name in stored], [name for _, name in claimed])
        assert (lost, doubled) == ([], [])
        assert stored == claimed, "each append is where its answer said"

        for part in range(2):
            run = f"{RUN}-{part}"
            names = [event.payload for event in db.events.iter(run)]
            expected = [name for one in acked for name in one["piped"] if int(name[-1]) % 2 == part]
            assert compare(names, expected) == ([], [])
            for index, one in enumerate(acked):
                mine = [name for name in names if name.startswith(f"{index}-")]
                sent = [name for name in one["piped"] if int(name[-1]) % 2 == part]
                assert mine == sent, "a pipeline keeps its order"
            assert db.events.verify_chain(run).is_valid
        chain = db.events.verify_chain(RUN)
        assert chain.is_valid and chain.length == len(stored)
        report = db.check()
        assert report.problems == []

    assert reading["reads"] > 1000 and reading["views"] > 50
    total = sum(workers.words[i] for i in range(WORKERS))
    times = sorted(recoveries)
    print(
        f"{durability}: {KILLS} kills, {total} operations, lost 0, doubled 0, reads {reading['reads']}, "
        f"slowest 20 reads {reading['slowest_s'] * 1000:.0f} ms, recovery s: median "
        f"{statistics.median(times):.2f}, p90 {times[int(len(times) * 0.9)]:.2f}, max {times[-1]:.2f}"
    )


def compare(stored: list[str], acked: list[str]) -> tuple[list[str], list[str]]:
    """What is missing, and what is there without or beyond an acknowledgement."""
    there, claimed = Counter(stored), Counter(acked)
    return sorted((claimed - there).elements()), sorted((there - claimed).elements())


# --- at every step --------------------------------------------------------------------------------


class Script:
    """A fixed order of commits of every kind, and what must be stored after each."""

    def __init__(self, db: inmem.Database) -> None:
        self.db = db
        self.added = self.counted = 0
        self.log: list[Any] = []
        self.piped: list[Any] = []

    def round(self, number: int) -> None:
        db = self.db
        self.added += 1
        assert db.kv.add(RUN, "added") == self.added
        appended = db.events.append(RUN, "note", number)
        assert appended.sequence == len(self.log)
        self.log.append(number)
        self.counted += 1

        def step(txn: Any) -> Any:
            count = txn.kv.get("counted", 0) + 1
            txn.kv.put("counted", count)
            return txn.events.append("counted", count)

        assert db.transact(RUN, step).sequence == len(self.log)
        self.log.append(self.counted)
        with db.pipeline() as pipe:
            for part in range(4):
                pipe.events.append(f"{RUN}-{part % 2}", "piped", [number, part])
                pipe.kv.put(f"{RUN}-{part % 2}", "last", [number, part])
                self.piped.append([number, part])
        self.check()

    def check(self) -> None:
        db = self.db
        assert db.kv.get(RUN, "added", 0) == self.added
        assert db.kv.get(RUN, "counted", 0) == self.counted
        assert [e.payload for e in db.events.iter(RUN)] == self.log
        for half in range(2):
            expected = [item for item in self.piped if item[1] % 2 == half]
            assert [e.payload for e in db.events.iter(f"{RUN}-{half}")] == expected
            if expected:
                assert db.kv.get(f"{RUN}-{half}", "last") == expected[-1]
        assert db.events.verify_chain(RUN).is_valid


@pytest.mark.parametrize("durability", ["memory", "buffered", "sync"])
@pytest.mark.parametrize("name", ["logged", "synced", "published", "answering"])
def test_killed_at_a_step_of_a_commit(
    store_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, durability: str, name: str
) -> None:
    """Each writer in turn dies at a later arrival at the step; every commit has one result."""
    counts = (4, 7)
    with inmem.open(store_path, durability=durability) as db:
        script = Script(db)
        script.round(0)
        for count in counts:
            flag = scratch / f"died-{count}"
            # Picked up by the writer that the client starts after this kill.
            monkeypatch.setenv("INMEM_FAILPOINT", f"{name}:{count}:{flag}")
            kill_writer(store_path)
            first = epoch(store_path)
            for number in range(10):
                script.round(number)
                if flag.exists():
                    break
            assert flag.exists(), f"{name} was not reached {count} times"
            assert epoch(store_path) == first + 2
        assert db.check().problems == []
    print(f"{name} in {durability}: {len(counts)} deaths, lost 0, doubled 0, reordered 0")


@pytest.mark.parametrize("durability", ["buffered", "sync"])
@pytest.mark.parametrize("name", ["tail", "replayed"])
@pytest.mark.parametrize("image", ["kept", "removed"])
def test_killed_inside_recovery(
    store_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, durability: str, name: str, image: str
) -> None:
    flag = scratch / "died"
    with inmem.open(store_path, durability=durability) as db:
        script = Script(db)
        script.round(0)
        state = control_state(store_path)
        kill(state.pid)
        if image == "removed":
            for entry in Path(state.image).iterdir():
                entry.unlink()
            os.rmdir(state.image)
        monkeypatch.setenv("INMEM_FAILPOINT", f"{name}:1:{flag}")
        script.round(1)  # its first commit starts the writer that dies, and must not notice
        assert flag.exists()
        monkeypatch.delenv("INMEM_FAILPOINT")
        script.round(2)
        assert db.check().problems == []
    assert not alive(state.pid)
