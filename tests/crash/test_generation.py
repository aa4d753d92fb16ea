"""A reader that is stuck, and files that vanish: the writer goes on in a copy, and nobody notices.

An old snapshot pins pages, so the image grows with every commit. When that is
more than `slack` the writer copies the image, says so, and goes on; the old
one is unlinked and stays with the reader, for as long as that holds it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from crash_workers import RUN, hold_open, keep_reading, keep_working, write_until_told
from generation_workers import GO_ON, READY, come_and_go, get_stuck, visit
from support import (
    Worker,
    Workers,
    alive,
    control_state,
    epoch,
    kill_writer,
    process_state,
    processes_of,
    runtime_entries,
    stop_writer,
    wait_until,
    writer_pid,
)
from test_limits import ballast, needs_root, tmpfs
from test_writer_kill import compare

import inmem
from inmem import wire
from inmem.config import FORMAT_VERSION, PROTOCOL_VERSION
from inmem.host.board import RING
from inmem.storage.environment import PAGE_BYTES, Table
from inmem.writeset import OP_CALL, encode_single

MIB = 1 << 20
STUCK_S = float(os.environ.get("INMEM_TEST_STUCK_SECONDS", "3"))
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
STUCK = 100  # the word of the first stuck reader; workers that count have the words below
# Between two looks at the image are 32 groups; each copies a path in each of five tables, and its leaves.
OVERSHOOT_BYTES = 32 * 5 * 4 * PAGE_BYTES
NOTICED_S = 3.0  # the writer looks once a second


# --- what is looked at ------------------------------------------------------------------------------


def generation(path: Path) -> int:
    return int(control_state(path).generation)


def image_of(path: Path) -> Path:
    return Path(control_state(path).image)


def log_of(path: Path) -> str:
    return (path / "writer.log").read_text()


def images_left(path: Path) -> list[Path]:
    return [entry for entry in runtime_entries(path) if entry.suffix == ".image"]


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


def stop(worker: Worker, workers: Workers, slot: int) -> None:
    """Stop a reader when it holds its snapshot."""
    wait_until(lambda: workers.check() or workers.words[slot] % 10 == READY, "the reader has its snapshot")
    os.kill(worker.pid, signal.SIGSTOP)
    wait_until(lambda: process_state(worker.pid) == "T", "the reader is stopped")


def resume(worker: Worker, workers: Workers, slot: int) -> dict[str, Any]:
    """Let a stopped reader go on; what it saw."""
    workers.words[slot] += GO_ON - READY
    os.kill(worker.pid, signal.SIGCONT)
    found: dict[str, Any] = worker.result()
    return found


@contextmanager
def running(pid: int) -> Iterator[None]:
    """A process that was stopped runs again when the block ends, whatever happened in it."""
    try:
        yield
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGCONT)


def verify(db: inmem.Database, acked: list[dict[str, Any]]) -> None:
    """What `keep_working` was told is stored, once, in its order; and nothing else."""
    assert db.kv.get(RUN, "transacted", 0) == sum(one["transacted"] for one in acked)
    assert db.kv.get(RUN, "added", 0) == sum(one["added"] for one in acked)
    for index, one in enumerate(acked):
        assert db.kv.get(RUN, f"last-{index}") == one["last"]
    stored = [[event.sequence, event.payload] for event in db.events.iter(RUN)]
    assert stored == sorted(item for one in acked for item in one["appended"])
    for part in range(2):
        names = [event.payload for event in db.events.iter(f"{RUN}-{part}")]
        sent = [[name for name in one["piped"] if int(name[-1]) % 2 == part] for one in acked]
        assert compare(names, [name for mine in sent for name in mine]) == ([], [])
        for index, mine in enumerate(sent):
            assert [name for name in names if name.startswith(f"{index}-")] == mine
    assert db.check().problems == []


def churn(db: inmem.Database, path: Path, number: int = 1, key: str = "churn") -> int:
    """Overwrite until so many more generations have come; how many writes that took."""
    until = generation(path) + number
    deadline = time.monotonic() + 30.0
    writes = 0
    while generation(path) < until:
        writes += 1
        db.kv.put(RUN, f"{key}-{writes % 20}", "x" * 4000)
        assert time.monotonic() < deadline, "no switch of generation"
    return writes


# --- a reader that is stuck -------------------------------------------------------------------------


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


def test_threads_of_one_process_go_through_switches(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process moves on to the next generation while some of its threads are inside the one before."""
    monkeypatch.setenv("INMEM_QUOTA_BYTES", str(4 * MIB))
    stopping = threading.Event()
    wrong: list[BaseException] = []
    done = [0] * 4
    with inmem.open(store_path) as db:
        db.kv.put_many(RUN, {f"k{n:04}": n for n in range(1000)})

        def counts(index: int) -> None:
            assert db.kv.count(RUN, "k") == 1000

        def views(index: int) -> None:
            with db.snapshot(RUN) as view:
                for n in range(0, 1000, 7):
                    assert view.kv.get(f"k{n:04}") == n

        def gets(index: int) -> None:
            for n in range(50):
                assert db.kv.get(RUN, f"k{n:04}") == n

        def counter(index: int) -> None:
            def step(txn: Any) -> None:
                txn.kv.put("n", txn.kv.get("n", 0) + 1)

            db.transact(RUN, step)

        def keep(work: Callable[[int], None], index: int) -> None:
            try:
                while not stopping.is_set():
                    work(index)
                    done[index] += 1
            except BaseException as error:
                wrong.append(error)

        threads = [
            threading.Thread(target=keep, args=(work, index))
            for index, work in enumerate((counts, views, gets, counter))
        ]
        for thread in threads:
            thread.start()
        try:
            for number in range(4):
                db.kv.put(RUN, "round", number)
                with db.snapshot(RUN) as view:
                    assert view.kv.get("round") == number
                    churn(db, store_path, key=f"churn-{number % 2}")
                    db.kv.put(RUN, "round", -1)
                    before = list(done)
                    wait_until(
                        lambda b=before: wrong or all(a > c for a, c in zip(done, b, strict=True)),
                        "all threads go on",
                    )
                    # Others have moved on; what this thread reads from is still what it was.
                    assert view.kv.get("round") == number and view.kv.count("k") == 1000
                assert db.kv.get(RUN, "round") == -1
        finally:
            stopping.set()
            for thread in threads:
                thread.join(30)
        assert wrong == []
        assert db.kv.get(RUN, "n") == done[3]
        assert generation(store_path) >= 5

        # A process keeps one generation beside the newest: what is open in an older one ends.
        with db.snapshot(RUN) as first:
            churn(db, store_path)
            with db.snapshot(RUN) as second:
                assert first.kv.get("round") == -1
                churn(db, store_path)
                db.kv.put(RUN, "round", 7)
                assert db.kv.get(RUN, "round") == 7
                with pytest.raises(inmem.SnapshotTooOldError, match="was replaced"):
                    first.kv.get("round")
                assert second.kv.get("round") == -1
        assert db.check().problems == []


def expiring(db: inmem.Database) -> int:
    """How many keys are still to expire."""
    snapshot = db.engine.attachment.image.snapshot(10.0)
    try:
        return sum(1 for _ in snapshot.table(Table.EXPIRY))
    finally:
        snapshot.close()


class RawSession:
    """A session that talks to the writer by hand, and may say the same twice."""

    KEY = b"default/default/default/shared\0\1raw"
    COUNT = 40  # answers that do not fit the board come through the socket

    def __init__(self, path: Path) -> None:
        self._path = path
        self._id = os.urandom(16)

    def talk(self, resume: bool) -> list[tuple[int, int]]:
        """Add 1 so many times; status and version of each answer that came through the socket."""
        state = control_state(self._path)
        context = zmq.Context()
        try:
            dealer = context.socket(zmq.DEALER)
            dealer.setsockopt(zmq.RCVTIMEO, 10_000)
            dealer.connect(state.endpoint)
            dealer.send(wire.hello(
                protocol=PROTOCOL_VERSION, format=FORMAT_VERSION, database=state.database_id,
                session=self._id, pid=os.getpid(), resume=resume,
            ))
            welcome = wire.parse_map(dealer.recv())
            assert welcome["known"] and welcome["last"] == (self.COUNT if resume else 0), welcome
            add = encode_single([OP_CALL, "kv.add", [self.KEY, 1, 0]])
            for sequence in range(1, self.COUNT + 1):
                dealer.send(wire.COMMIT_HEADER.pack(wire.COMMIT, 0, self._id, sequence, 1) + add)
            answers = []
            while not answers or answers[-1][1] != self.COUNT:
                _, status, sequence, version = wire.ANSWER_HEADER.unpack_from(dealer.recv())
                answers.append((status, sequence, version))
            assert len(answers) == self.COUNT - RING and all(a[0] == wire.APPLIED for a in answers)
            return [(sequence, version) for _, sequence, version in answers]
        finally:
            context.destroy(0)


@pytest.mark.parametrize("durability", ["memory", "buffered", "sync"])
def test_nothing_is_lost_in_a_switch(
    store_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch, durability: str
) -> None:
    """Outcomes, sessions and times to live are in the copy; the writer that comes next goes on in it."""
    monkeypatch.setenv("INMEM_QUOTA_BYTES", str(4 * MIB))
    with inmem.open(store_path, durability=durability) as db:
        db.kv.put(RUN, "k", "old")
        stuck = workers.start(get_stuck, STUCK, store_path, ["k", "raw", "once"])
        stop(stuck, workers, STUCK)
        db.kv.put(RUN, "k", "new")
        db.kv.put(RUN, "brief", 1, ttl=1.5)
        db.kv.put(RUN, "long", 1, ttl=600)
        raw = RawSession(store_path)
        answers = raw.talk(resume=False)
        pid = writer_pid(store_path)
        os.kill(pid, signal.SIGSTOP)
        with running(pid), pytest.raises(inmem.CommitUnknownError) as unknown:  # noqa: SIM117
            with db.transaction(RUN, timeout_s=0.1) as txn:
                txn.kv.add("once")
                txn.events.append("once", None)
        writing = workers.start(write_until_told, 0, store_path)
        with running(stuck.pid):
            first = generation(store_path)
            wait_until(lambda: workers.check() or generation(store_path) > first, "the generation changes")
            image = image_of(store_path)
            assert raw.talk(resume=True) == answers, "the same answers after the switch"
            unknown.value.resend(timeout_s=20.0)
            assert kill_writer(store_path) == pid
            db.kv.put(RUN, "k", "newest")
            # The next writer knows the outcomes from the copy, and from nowhere else.
            assert "adopted=True" in log_of(store_path) and image_of(store_path).parent == image.parent
            assert raw.talk(resume=True) == answers, "the same answers from the next writer"
        workers.words.stop()
        written = writing.result()
        for n in range(max(1, written - 49), written + 1):
            assert db.kv.get("mine-0", f"k{n % 50}") == n
        seen = resume(stuck, workers, STUCK)
        assert seen["first"] == seen["again"] == {"k": "old", "raw": None, "once": None}
        assert seen["newest"] == {"k": "newest", "raw": RawSession.COUNT, "once": 1}
        assert seen["generation_after"] > seen["generation"] and db.events.len(RUN) == 1
        wait_until(lambda: expiring(db) == 1, "what has expired is swept")
        assert db.kv.get(RUN, "brief") is None and db.kv.get(RUN, "long") == 1
        assert db.check().problems == []
        assert images_left(store_path) == [image_of(store_path)]


@needs_root
def test_a_switch_without_enough_memory(
    scratch: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused and said; writes go on while there is memory, reads always, all when the reader goes."""
    path = scratch / "store"
    with tmpfs(scratch / "memory", 16 * MIB) as memory:
        monkeypatch.setenv("INMEM_IMAGE_DIR", str(memory))
        monkeypatch.setenv("INMEM_QUOTA_BYTES", str(4 * MIB))
        try:
            with inmem.open(path) as db:
                rows = {f"row-{n}": bytes([n]) * 50_000 for n in range(40)}
                for key, value in rows.items():
                    db.kv.put(RUN, key, value)
                db.kv.put(RUN, "k", 0)
                before, pid = generation(path), writer_pid(path)
                stuck = workers.start(get_stuck, STUCK, path, ["k"])
                stop(stuck, workers, STUCK)
                with running(stuck.pid):
                    ballast(memory, leave=2 * MIB)
                    last = 0
                    with pytest.raises(inmem.StoreFullError):
                        while last < 20_000:
                            db.kv.put(RUN, "k", last + 1)
                            last += 1
                    assert last > 64, "the writes before it went into what memory there was"
                    for _ in range(3):
                        with pytest.raises(inmem.StoreFullError):
                            db.kv.put(RUN, "k", -1)
                        assert db.kv.get(RUN, "k") == last
                    assert {key: db.kv.get(RUN, key) for key in rows} == rows
                    assert (generation(path), writer_pid(path)) == (before, pid)
                    refusals = log_of(path).count("no switch of generation")
                    assert 1 <= refusals <= 5, "it is not tried again at each look"
                    assert list(memory.glob("*.image")) == [image_of(path)]
                    seen = resume(stuck, workers, STUCK)
                    assert seen["first"] == seen["again"] == {"k": 0} and seen["newest"] == {"k": last}
                wait_until(lambda: writes(db), "writes are taken again", 5.0)
                for n in range(300):
                    db.kv.put(RUN, "k", n)
                assert {key: db.kv.get(RUN, key) for key in rows} == rows and db.kv.get(RUN, "k") == 299
                assert writer_pid(path) == pid
                assert db.check().problems == []
        finally:
            stop_writer(path)
    print(f"{last} writes until memory was full, {refusals} switches refused")


def writes(db: inmem.Database) -> bool:
    try:
        db.kv.put(RUN, "k", "again")
    except inmem.StoreFullError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "durability"),
    [
        ("generation_copied", "buffered"), ("generation_marked", "sync"), ("generation_marked", "memory"),
    ],
)
def test_killed_at_a_step_of_a_switch(
    store_path: Path, scratch: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch, name: str,
    durability: str,
) -> None:
    """Before the mark the old image counts, after it the new one; the other one goes."""
    flag = scratch / "died"
    monkeypatch.setenv("INMEM_QUOTA_BYTES", str(4 * MIB))
    monkeypatch.setenv("INMEM_FAILPOINT", f"{name}:1:{flag}")
    with inmem.open(store_path, durability=durability) as db:
        db.kv.put(RUN, "k", 0)
        stuck = workers.start(get_stuck, STUCK, store_path, ["k"])
        some = [workers.start(keep_working, index, store_path, SEED) for index in range(3)]
        stop(stuck, workers, STUCK)
        with running(stuck.pid):
            wait_until(lambda: workers.check() or flag.exists(), "the writer dies")
            wait_until(lambda: (epoch(store_path), generation(store_path)) == (2, 2), "the next one switches")
            worked = workers.words.total(3)
            wait_until(lambda: workers.check() or workers.words.total(3) > worked + 50, "work goes on")
        seen = resume(stuck, workers, STUCK)
        workers.words.stop()
        acked = [worker.result() for worker in some]
        assert seen["first"] == seen["again"] == {"k": 0}
        assert (seen["generation"], epoch(store_path)) == (1, 2)
        assert images_left(store_path) == [image_of(store_path)], "no other image is left"
        assert "adopted=True" in log_of(store_path)
        verify(db, acked)
    print(f"seed {SEED}: killed at {name} in {durability}, {workers.words.total(3)} operations")


def test_a_checkpoint_that_reads_the_old_generation(
    store_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its helper stops with a snapshot, as the stuck reader; what it writes is whole all the same."""
    monkeypatch.setenv("INMEM_QUOTA_BYTES", str(64 * MIB))
    monkeypatch.setenv("INMEM_SEGMENT_BYTES", str(MIB))
    flag = store_path.parent / "stopped"
    monkeypatch.setenv("INMEM_FAILPOINT", f"copying:1:{flag}:stop")
    reports: list[Any] = []
    with inmem.open(store_path) as db:
        rows = {f"row-{n:03}": os.urandom(100_000) for n in range(200)}
        for key, value in rows.items():
            db.kv.put(RUN, key, value)
        before = generation(store_path)
        asking = threading.Thread(target=lambda: reports.append(db.checkpoint(timeout_s=60.0)))
        asking.start()
        wait_until(flag.exists, "the helper has a snapshot")
        (helper,) = [pid for pid, line in processes_of(store_path) if "inmem.maintenance" in line]
        wait_until(lambda: process_state(helper) == "T", "the helper is stopped")
        try:
            assert db.status().oldest_snapshot_age_s is not None
            churn(db, store_path, key="after")
            top = db.kv.get_versioned(RUN, "after-1").version
            assert not reports
        finally:
            os.kill(helper, signal.SIGCONT)
        asking.join(60)
        (report,) = reports
        assert report.version < top and generation(store_path) == before + 1
        assert report.released_segments >= 15, report
        after = {f"after-{n}": db.kv.get(RUN, f"after-{n}") for n in range(20)}
        db.kv.put(RUN, "last", 1)
        image = image_of(store_path)
        kill_writer(store_path)
        shutil.rmtree(image)
        db.kv.put(RUN, "first", 1)
        assert f"checkpoint={report.version}" in log_of(store_path)
        assert {key: db.kv.get(RUN, key) for key in rows} == rows
        assert {key: db.kv.get(RUN, key) for key in after} == after
        assert db.check().problems == []
        assert images_left(store_path) == [image_of(store_path)]


# --- files that vanish ------------------------------------------------------------------------------


def door(path: Path, ending: str) -> Path:
    (found,) = [entry for entry in runtime_entries(path) if entry.suffix == ending]
    return found


def vanish(path: Path, what: str) -> None:
    """Remove a file under the writer, or put another in its place."""
    if what == "image":
        shutil.rmtree(image_of(path))
    elif what in ("data.mdb", "lock.mdb"):
        (image_of(path) / what).unlink()
    elif what in (".sock", ".answers"):
        door(path, what).unlink()
    elif what.startswith("another "):
        other = path / f"{what[8:]}.other"
        other.touch(mode=0o600)
        os.rename(other, path / what[8:])
    else:
        (path / what).unlink()


VANISHING = [("image", ".sock"), ("data.mdb", "writer.lock"), ("lock.mdb", ".answers"), ("clients.lock",)]


def is_locked(file: Path) -> bool:
    """Whether somebody holds a lock file alone."""
    try:
        fd = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def test_files_removed_under_work(store_path: Path, workers: Workers) -> None:
    """Four work, one reads, one comes and goes; every file that they share is removed, by ones and twos."""
    noticed: dict[str, float] = {}
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
        some = [workers.start(keep_working, index, store_path, SEED) for index in range(4)]
        visitor = workers.start(come_and_go, 4, store_path)
        reading = workers.start(keep_reading, store_path)
        wait_until(lambda: workers.check() or all(workers.words[i] for i in range(5)), "all have begun")
        pid = writer_pid(store_path)
        for some_files in VANISHING:
            told = log_of(store_path).count("was removed or replaced") + len(some_files)
            before = control_state(store_path)
            for what in some_files:
                vanish(store_path, what)
            began = time.monotonic()
            wait_until(
                lambda t=told: workers.check() or log_of(store_path).count("was removed or replaced") >= t,
                f"{some_files} are missed", NOTICED_S,
            )
            noticed[" and ".join(some_files)] = time.monotonic() - began
            wait_until(lambda: is_locked(store_path / "writer.lock"), "the lock is held", 5.0)
            so_far = [workers.words[i] for i in range(5)]
            wait_until(
                lambda b=so_far: workers.check() or all(workers.words[i] > n for i, n in enumerate(b)),
                "all go on, and new clients come in",
            )
            after = control_state(store_path)
            assert writer_pid(store_path) == pid
            image_gone = bool({"image", "data.mdb", "lock.mdb"} & set(some_files))
            assert after.generation - before.generation == image_gone
            assert after.epoch - before.epoch == bool({".sock", ".answers"} & set(some_files))
        serving = [p for p, line in processes_of(store_path) if "inmem.writer" in line and p != pid]
        wait_until(lambda: not any(alive(p) for p in serving), "all others were refused and have left", 5.0)
        workers.words.stop()
        acked = [worker.result() for worker in some]
        coming = visitor.result()
        views = reading.result()
        assert db.kv.get("visits", "of-4") == coming["visits"]
        verify(db, acked)
        assert writer_pid(store_path) == pid and db.status().writer_pid == pid
        assert images_left(store_path) == [image_of(store_path)]
    print(
        f"seed {SEED}: noticed after s {({what: round(s, 2) for what, s in noticed.items()})}; "
        f"{sum(workers.words[i] for i in range(4))} operations, {coming['visits']} visits, the slowest "
        f"{coming['slowest_s']:.2f} s, {views['reads']} reads; lost 0, doubled 0"
    )
    assert coming["slowest_s"] < NOTICED_S + 5.0


def second_writer(path: Path) -> str:
    """Start a writer by hand; why it was refused."""
    done = subprocess.run(
        [sys.executable, "-m", "inmem.writer", str(path)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
    )
    assert done.returncode == 1, done
    return done.stderr


def test_never_two_writers(store_path: Path, workers: Workers) -> None:
    """The lock file is removed, and others are started at once: by hand, and by clients that find no lock."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", "v")
        db.kv.add(RUN, "n")
        pid, first = writer_pid(store_path), epoch(store_path)
        (store_path / "writer.lock").unlink()
        # Which of its two reasons depends on who is sooner: it, or the writer that locks again.
        assert " has a writer" in second_writer(store_path)
        wait_until(lambda: is_locked(store_path / "writer.lock"), "the lock is held again", NOTICED_S)

        vanish(store_path, "another writer.lock")
        found = workers.start(visit, store_path, 20.0).result()
        assert found["writer"] == pid and found["value"] == "v"

        # The same while it cannot lock again: others wait in vain, and are told so in time.
        wait_until(lambda: is_locked(store_path / "writer.lock"), "the lock is held again", NOTICED_S)
        os.kill(pid, signal.SIGSTOP)
        with running(pid):
            (store_path / "writer.lock").unlink()
            coming = [workers.start(visit, store_path, 1.0) for _ in range(2)]
            assert "whose lock file was removed" in second_writer(store_path)
            with pytest.raises(inmem.CommitUnknownError) as unknown:  # noqa: SIM117
                with db.transaction(RUN, timeout_s=0.3) as txn:
                    txn.kv.add("n")
            assert db.kv.get(RUN, "k") == "v", "reads need no writer"
            for one in (worker.result() for worker in coming):
                assert one["code"] == "writer_unavailable" and one["seconds"] < 6.0, one
            assert alive(pid) and (writer_pid(store_path), epoch(store_path)) == (pid, first)
        unknown.value.resend(timeout_s=20.0)
        assert db.kv.get(RUN, "n") == 2
        wait_until(lambda: is_locked(store_path / "writer.lock"), "the lock is held again", NOTICED_S)
        assert workers.start(visit, store_path, 20.0).result()["writer"] == pid
        wait_until(
            lambda: [p for p, line in processes_of(store_path) if "inmem.writer" in line] == [pid],
            "the others have left", 5.0,
        )
        assert (writer_pid(store_path), epoch(store_path)) == (pid, first)
        assert db.check().problems == []


def test_the_data_directory_is_removed(store_path: Path, workers: Workers) -> None:
    with inmem.open(store_path), inmem.open(store_path, timeout_s=1.0) as db:
        db.kv.put(RUN, "k", "v")
        holding = workers.start(hold_open, 0, store_path)
        wait_until(lambda: workers.check() or workers.words[0], "another client is there")
        pid, image = writer_pid(store_path), image_of(store_path)
        stem = image.name.rpartition("-")[0]
        shutil.rmtree(store_path)
        began = time.monotonic()
        assert db.kv.get(RUN, "k") == "v", "what is in memory can still be read"
        wait_until(lambda: not alive(pid), "the writer leaves", NOTICED_S)
        left_s = time.monotonic() - began
        assert list(image.parent.glob(f"{stem}-*")) == [], "nothing is left in memory"
        with pytest.raises(inmem.CommitUnknownError, match="was removed"):
            db.kv.add("elsewhere", "n")
        workers.words.stop()
        holding.result()
        assert not store_path.exists()
    print(f"the writer of a removed directory left after {left_s:.2f} s")


def test_the_data_directory_is_removed_and_made_anew(store_path: Path, workers: Workers) -> None:
    """While the writer of the old one lives, another database begins at its path; neither sees the other."""
    with inmem.open(store_path), inmem.open(store_path, timeout_s=0.7) as db:
        db.kv.put(RUN, "k", "old")
        db.kv.put(RUN, "only-old", 1)
        assert db.kv.get(RUN, "k") == "old", "this process has the image open, and keeps it"
        old = control_state(store_path)
        os.kill(old.pid, signal.SIGSTOP)  # so that it does not notice before there is another
        with running(old.pid):
            shutil.rmtree(store_path)
            new = workers.start(hold_open, 0, store_path)
            wait_until(lambda: workers.check() or workers.words[0], "a new database is at the path")
            state = control_state(store_path)
            assert alive(old.pid) and state.pid != old.pid, "two databases, two writers"
            assert state.image != old.image and state.endpoint != old.endpoint
        try:
            db.kv.put(RUN, "k", "older")  # the old writer may still take it, the new one never
        except inmem.CommitUnknownError:
            pass
        assert db.kv.get(RUN, "k") in ("old", "older")
        wait_until(lambda: not alive(old.pid), "the old writer leaves", NOTICED_S)
        assert alive(state.pid) and Path(state.image).is_dir() and not Path(old.image).exists()
        with pytest.raises((inmem.WriterUnavailableError, inmem.CommitUnknownError)):
            db.kv.put(RUN, "k", "lost")
        visitor = workers.start(visit, store_path, 20.0).result()
        assert visitor["writer"] == state.pid and visitor["value"] is None
        workers.words.stop()
        new.result()
    with inmem.open(store_path) as db:
        assert db.kv.get(RUN, "k") is None and db.kv.get(RUN, "only-old") is None
        assert db.kv.get(RUN, "here-0") is True and db.kv.get(RUN, "visited") == state.pid
        assert db.check().problems == []


NO_RUNTIME_DIRECTORY = """
import os, shutil, subprocess, sys, threading, time
import inmem

path = sys.argv[1]
visitor = "import sys, inmem\\nwith inmem.open(sys.argv[1]) as db: print(db.kv.add('r', 'visits'))"
with inmem.open(path) as db:
    stopping, wrong, done = threading.Event(), [], [0] * 4

    def work(index):
        try:
            while not stopping.is_set():
                assert db.kv.add("r", f"n-{index}") == done[index] + 1
                done[index] += 1
                assert db.kv.get("r", f"n-{index}") == done[index]
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads: thread.start()
    before = db.status()
    runtime = os.path.dirname(db.engine.attachment.control.read().image)
    assert runtime.startswith("/dev/shm/"), runtime
    for _ in range(1):
        generation, epoch = db.status().generation, db.status().epoch
        shutil.rmtree(runtime)
        began = time.monotonic()
        while db.status().epoch == epoch or db.status().generation == generation:
            assert time.monotonic() - began < 5, "not noticed"
            time.sleep(0.01)
        print("noticed after %.2f s" % (time.monotonic() - began))
        then = list(done)
        while not wrong and not all(a > b for a, b in zip(done, then)):
            assert time.monotonic() - began < 20, "no progress"
            time.sleep(0.01)
    stopping.set()
    for thread in threads: thread.join()
    assert not wrong, wrong
    assert [db.kv.get("r", f"n-{index}") for index in range(4)] == done
    found = subprocess.run([sys.executable, "-c", visitor, path], capture_output=True, text=True)
    assert found.stdout.strip() == "1", found
    after = db.status()
    assert after.writer_pid == before.writer_pid
    assert (after.generation, after.epoch) == (before.generation + 1, before.epoch + 1)
    assert db.check().problems == []
    os.kill(after.writer_pid, 15)
print("served")
"""


@needs_root
def test_the_whole_runtime_directory_is_removed(store_path: Path) -> None:
    """Image, socket and answers at once, under four threads at work; in a shared memory of its own."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not installed")
    done = subprocess.run(
        [unshare, "--mount", "sh", "-c", 'mount -t tmpfs -o mode=1777 tmpfs /dev/shm && exec "$@"', "sh",
         sys.executable, "-c", NO_RUNTIME_DIRECTORY, str(store_path)],
        capture_output=True, text=True, cwd="/", timeout=60, check=False,
    )
    if "unshare failed" in done.stderr:
        pytest.skip(f"no mount namespace can be made here: {done.stderr.strip()}")
    assert done.stdout.strip().endswith("served"), done.stdout + done.stderr
    print(done.stdout)
