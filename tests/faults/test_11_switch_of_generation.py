"""The writer leaves an image to a stuck reader: nothing is lost on the way, and nobody notices."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq
from crash_workers import RUN, write_until_told
from generation_workers import get_stuck
from generations import STUCK, churn, generation, image_of, images_left, log_of, resume, running, stop
from small_disks import ballast, needs_root, tmpfs
from support import (
    Workers,
    control_state,
    kill_writer,
    process_state,
    processes_of,
    stop_writer,
    wait_until,
    writer_pid,
)

import inmem
from inmem import wire
from inmem.config import FORMAT_VERSION, PROTOCOL_VERSION
from inmem.host.board import RING
from inmem.storage.environment import Table
from inmem.writeset import OP_CALL, encode_single

MIB = 1 << 20


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
        assert seen["generation_after"] > seen["generation"] and db.events.count(RUN) == 1
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
