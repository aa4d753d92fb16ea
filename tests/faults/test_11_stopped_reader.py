"""A reader that is stuck: the writer goes on in a copy, and memory stays bounded.

An old snapshot pins pages, so the image grows with every commit. When that is
more than `slack` the writer copies the image, says so, and goes on; the old
one is unlinked and stays with the reader, for as long as that holds it.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from crash_workers import RUN, keep_reading, keep_working
from generation_workers import get_stuck
from generations import STUCK, churn, generation, image_of, log_of, resume, running, stop, verify
from small_disks import needs_root, tmpfs
from support import Workers, stop_writer, wait_until

import inmem
from inmem.storage.environment import PAGE_BYTES

MIB = 1 << 20
STUCK_S = float(os.environ.get("INMEM_TEST_STUCK_SECONDS", "3"))
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
# Between two looks at the image are 32 groups; each copies a path in each of five tables, and its leaves.
# What is committed while the next generation is made comes on top: as much again, if the copy has to wait.
OVERSHOOT_BYTES = 2 * 32 * 5 * 4 * PAGE_BYTES


def slack(quota_bytes: int, live_bytes: int) -> int:
    """What old snapshots may pin before the writer leaves the image to them."""
    return max(quota_bytes // 8, live_bytes // 2)


class Meter(threading.Thread):
    """The highest figures of the image's file, and of all memory behind a mount, unlinked files included."""

    def __init__(self, path: Path, memory: Path) -> None:
        super().__init__(daemon=True)
        self._path, self._memory = path, memory
        self._stopping = threading.Event()
        self.file_bytes = self.total_bytes = 0
        self.by_generation: dict[str, int] = {}

    def run(self) -> None:
        while not self._stopping.wait(0.003):
            self.look()

    def look(self) -> int:
        """Take the figures now; what is in use."""
        info = os.statvfs(self._memory)
        used = (info.f_blocks - info.f_bfree) * info.f_frsize
        self.total_bytes = max(self.total_bytes, used)
        for file in self._memory.glob("*.image/data.mdb"):
            try:
                size = file.stat().st_blocks * 512
            except FileNotFoundError:
                continue
            self.file_bytes = max(self.file_bytes, size)
            name = file.parent.name
            self.by_generation[name] = max(self.by_generation.get(name, 0), size)
        return used

    def __enter__(self) -> Meter:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.join()


@needs_root
@pytest.mark.timeout(120 + 3 * int(STUCK_S))
def test_a_stopped_reader_costs_a_bounded_amount_of_memory(
    scratch: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight work beside two stopped readers: one comes back in time for its snapshot, one too late."""
    # What they append stays: about a MiB a second.
    path, quota = scratch / "store", (64 if STUCK_S <= 10 else 256) * MIB
    print(f"seed {SEED}, stuck for {STUCK_S} s, quota {quota // MIB} MiB")
    with tmpfs(scratch / "memory", 1024 * MIB) as memory:
        monkeypatch.setenv("INMEM_IMAGE_DIR", str(memory))
        monkeypatch.setenv("INMEM_QUOTA_BYTES", str(quota))
        try:
            with inmem.open(path) as db, Meter(path, memory) as meter:
                db.kv.put_many(RUN, {"a": 1, "b": 2, "transacted": 0, "mirror": 0})
                keys = ["a", "b", "transacted", "mirror"]
                before = generation(path)  # they pin from when they have their snapshot on
                some = [workers.start(keep_working, index, path, SEED) for index in range(8)]
                reading = workers.start(keep_reading, path)
                ages = (3600.0, 0.5)
                stuck = [
                    workers.start(
                        get_stuck, STUCK + number, path, keys,
                        environment={"INMEM_SNAPSHOT_MAX_AGE_S": str(age)},
                    )
                    for number, age in enumerate(ages)
                ]
                wait_until(lambda: workers.check() or all(workers.words[i] for i in range(8)), "all work")
                for number, worker in enumerate(stuck):
                    stop(worker, workers, STUCK + number)
                began, worked = time.monotonic(), workers.words.total(8)
                with running(stuck[0].pid), running(stuck[1].pid):
                    wait_until(lambda: generation(path) > before, "the writer leaves the image to them")
                    db.kv.put_many(RUN, {"a": 10, "b": 20})
                    assert db.kv.get(RUN, "a") == 10 and db.kv.get(RUN, "b") == 20
                    # This process reads on: one that does not keeps what it has read from.
                    wait_until(
                        lambda: workers.check() or (db.kv.get(RUN, "a") == 10
                                                    and time.monotonic() - began > STUCK_S),
                        "time passes", STUCK_S + 30,
                    )
                rate = (workers.words.total(8) - worked) / (time.monotonic() - began)
                status = db.status()
                old, late = (resume(worker, workers, STUCK + n) for n, worker in enumerate(stuck))
                workers.words.stop()
                acked = [worker.result() for worker in some]
                views = reading.result()

                assert old["again"] == old["first"] and old["refused"] is None
                assert old["first"]["a"] == 1 and old["first"]["transacted"] == -old["first"]["mirror"]
                assert late["refused"] and "limit is 0.5 s" in late["refused"]
                for one in (old, late):
                    assert (one["newest"]["a"], one["newest"]["b"]) == (10, 20)
                    assert one["generation_after"] > one["generation"]
                assert views["reads"] > 200 and views["views"] > 10
                verify(db, acked)

                live = status.image_bytes
                bound = live + slack(quota, live) + OVERSHOOT_BYTES
                figures = (
                    f"peak of the file {meter.file_bytes / MIB:.1f} MiB, bound {bound / MIB:.1f}; of all "
                    f"shared memory {meter.total_bytes / MIB:.1f} MiB; live {live / MIB:.1f} MiB; "
                    f"{rate:.0f} operations/s; generations {status.generation}"
                )
                print(figures)
                assert meter.file_bytes <= bound, figures
                # Each stopped reader may have a generation of its own; the one in use has the same bound.
                assert meter.total_bytes <= (1 + len(stuck)) * bound, figures
                wait_until(
                    lambda: meter.look() <= bound, f"the old generation is given back: {meter.look()}", 5.0
                )
            assert log_of(path).count("an old snapshot pins") == status.generation - before
        finally:
            stop_writer(path)


@needs_root
def test_stuck_readers_one_after_another(
    scratch: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each keeps the generation in which it stopped, and only that."""
    path, quota, count = scratch / "store", 16 * MIB, 3
    with tmpfs(scratch / "memory", 256 * MIB) as memory:
        monkeypatch.setenv("INMEM_IMAGE_DIR", str(memory))
        monkeypatch.setenv("INMEM_QUOTA_BYTES", str(quota))
        try:
            with inmem.open(path) as db:
                some = [
                    workers.start(get_stuck, STUCK + n, path, ["n", "churn-1"], 10 * (n + 1))
                    for n in range(count)
                ]
                meter = Meter(path, memory)
                used = []
                for number, worker in enumerate(some):
                    db.kv.put(RUN, "n", number)
                    workers.words[STUCK + number] = 10 * (number + 1)
                    stop(worker, workers, STUCK + number)
                    churn(db, path)
                    used.append(meter.look())
                    assert list(memory.glob("*.image")) == [image_of(path)]
                for number in (1, 0, 2):
                    seen = resume(some[number], workers, STUCK + number)
                    assert seen["first"]["n"] == number and seen["again"] == seen["first"]
                    assert seen["newest"]["n"] == count - 1
                    assert seen["generation"] == 1 + number and seen["generation_after"] == 1 + count
                live = db.status().image_bytes
                bound = live + slack(quota, live) + OVERSHOOT_BYTES
                assert all(size <= (n + 2) * bound for n, size in enumerate(used)), (used, bound)
                wait_until(lambda: meter.look() <= bound, "all old generations are given back", 5.0)
                assert db.check().problems == []
        finally:
            stop_writer(path)
    print(f"{count} stuck readers, shared memory in use MiB: {[round(size / MIB, 1) for size in used]}")


def test_a_snapshot_has_a_maximum_age(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INMEM_SNAPSHOT_MAX_AGE_S", "0.3")
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)

        def too_old(read: Any) -> bool:
            try:
                read()
            except inmem.SnapshotTooOldError as error:
                assert error.retryable
                return True
            return False

        with db.snapshot(RUN) as view:
            assert view.kv.get("k") == 1
            wait_until(lambda: too_old(lambda: view.kv.get("k")), "the snapshot ends", 5.0)
            assert too_old(lambda: view.kv.count()), "and says so as often as it is asked"
        txn = db.transaction(RUN)
        assert txn.kv.get("k") == 1
        wait_until(lambda: too_old(lambda: txn.kv.get("other")), "the transaction ends", 5.0)
        txn.abort()
        assert db.kv.get(RUN, "k") == 1, "the handle goes on"
