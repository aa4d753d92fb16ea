"""Fault 71: what leases are after a clock was set, and in a store that is full, restored or imported."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from lease_workers import NAME, RUN, waits
from small_disks import MIB
from support import stop_writer
from test_22_clock_steps import HOUR_US, WallClock

import inmem
from inmem.errors import LeaseHeldError, LeaseLostError, StoreFullError
from inmem.exchange import export_runs, import_runs
from inmem.maintenance.check import check
from inmem.maintenance.restore import restore
from inmem.maintenance.salvage import salvage


@pytest.fixture
def wall(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WallClock]:
    clock = WallClock(scratch)
    before = [path for path in [os.environ.get("PYTHONPATH")] if path]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(clock.site), *before]))
    yield clock
    clock.close()


def test_a_clock_that_is_set_forward(store_path: Path, wall: WallClock) -> None:
    """Leases run out by it, and nobody loses one without need."""
    with inmem.open(store_path) as db:
        unmissed = db.leases.acquire(RUN, "unmissed", ttl_s=60)
        missed = db.leases.acquire(RUN, NAME, ttl_s=60)
        with db.leases.hold(RUN, "held", ttl_s=60) as held:
            wall.off_us = HOUR_US
            lease = db.leases.acquire(RUN, NAME, ttl_s=60, wait_s=20)
            assert lease.token > missed.token
            with pytest.raises(LeaseLostError):
                db.leases.check(missed)
            assert db.leases.renew(unmissed).token == unmissed.token
            assert not held.lost.is_set()
            held.check()
            held.transact(lambda txn: txn.kv.put("k", 1))


def test_tokens_go_on_above_those_of_a_backup(store_path: Path, scratch: Path) -> None:
    """And above those that were given after it."""
    with inmem.open(store_path) as db:
        held = db.leases.acquire(RUN, "held", ttl_s=0.01)
        db.backup(scratch / "backup")
        tokens = []
        for _ in range(5):
            tokens.append(db.leases.acquire(RUN, NAME, ttl_s=60).token)
            db.leases.release(db.leases.list(RUN, NAME)[0])
    restore(scratch / "backup", scratch / "new")
    with inmem.open(scratch / "new") as db:
        assert db.leases.get(RUN, "held") == held
        assert db.leases.acquire(RUN, NAME, ttl_s=60).token > max(tokens)
        assert db.leases.acquire(RUN, "held", ttl_s=60).token > max(tokens)
        with pytest.raises(LeaseLostError):
            db.leases.check(held)


def test_tokens_go_on_above_those_of_a_salvaged_store(store_path: Path, scratch: Path) -> None:
    with inmem.open(store_path) as db:
        held = db.leases.acquire(RUN, "held", ttl_s=60)
        last = db.leases.acquire(RUN, NAME, ttl_s=60)
    stop_writer(store_path)
    (log,) = (store_path / "wal").glob("*")
    data = log.read_bytes()
    log.write_bytes(data[: len(data) - 7])  # the last record is torn
    report = salvage(store_path, scratch / "new")
    assert report.problems == [] and check(scratch / "new").problems == []
    with inmem.open(scratch / "new") as db:
        assert db.leases.get(RUN, "held") == held
        new = db.leases.acquire(RUN, "another", ttl_s=60)
        assert new.token > last.token


def test_tokens_go_on_above_those_of_an_import(store_path: Path, scratch: Path) -> None:
    with inmem.open(scratch / "old") as old:
        for number in range(300):
            old.kv.put("elsewhere", "k", number)
        held = old.leases.acquire(RUN, "held", ttl_s=0.01)
        old.leases.acquire(RUN, "other", ttl_s=60, holder="me")
        export_runs(old, scratch / "file")
    with inmem.open(store_path) as db:
        report = import_runs(db, scratch / "file")
        assert report.counts["leases"] == 2
        assert db.leases.get(RUN, "held") == held
        again = io.BytesIO()
        export_runs(db, again, [RUN])
        with inmem.open(scratch / "third") as third:
            (scratch / "again").write_bytes(again.getvalue())
            import_runs(third, scratch / "again")
            assert third.leases.list(RUN) == db.leases.list(RUN)
        assert import_runs(db, scratch / "file").unchanged == ["elsewhere", RUN]
        tokens = [held.token]
        for _ in range(3):
            lease = db.leases.acquire(RUN, "held", ttl_s=60)
            tokens.append(lease.token)
            db.leases.release(lease)
            assert db.leases.get(RUN, "held") is None
            assert [one.name for one in db.leases.list(RUN, limit=1)] == ["other"]
        assert tokens == sorted(set(tokens))
        assert db.check().problems == []


def test_a_full_store(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on to acquire, renew, wait and release."""
    monkeypatch.setenv("INMEM_QUOTA_BYTES", str(4 * MIB))
    with inmem.open(store_path) as db:
        lease = db.leases.acquire(RUN, NAME, ttl_s=60)
        number = 0
        for size in (100_000, 1000, 10):
            with pytest.raises(StoreFullError):
                while True:
                    db.kv.put(RUN, f"k{number:06}", os.urandom(size))
                    number += 1
        lease = db.leases.renew(lease)
        with pytest.raises(LeaseHeldError):
            db.leases.acquire(RUN, NAME, ttl_s=1, wait_s=0.05)
        other = db.leases.acquire(RUN, "another", ttl_s=60)
        waiter = threading.Thread(target=lambda: db.leases.acquire(RUN, NAME, ttl_s=60, wait_s=20))
        waiter.start()
        waits(db, 1)
        assert db.leases.release(lease) is True
        waiter.join()
        with pytest.raises(StoreFullError):
            db.transact(RUN, lambda txn: txn.kv.put("more", 1), lease=other)
        db.transact(RUN, lambda txn: txn.kv.delete("k000000"), lease=other)
        assert db.leases.release(other) is True
        assert [one.token > lease.token for one in db.leases.list(RUN)] == [True]


def test_new_leases_do_not_grow_over_the_quota(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are there are renewed, handed on and released."""
    monkeypatch.setenv("INMEM_QUOTA_BYTES", str(4 * MIB))
    with inmem.open(store_path) as db:
        with pytest.raises(StoreFullError):
            for number in range(1000):
                db.kv.put(RUN, f"k{number:06}", os.urandom(100_000))
        held = [db.leases.acquire(RUN, NAME, ttl_s=60)]

        def wait() -> None:
            held.append(db.leases.acquire(RUN, NAME, ttl_s=60, wait_s=60))

        waiter = threading.Thread(target=wait)
        waiter.start()
        waits(db, 1)
        with pytest.raises(StoreFullError):
            for number in range(10_000):
                held.append(db.leases.acquire(RUN, f"{number:0200}", ttl_s=0.001, holder="h" * 256))
        assert len(held) > 20
        db.leases.acquire(RUN, held.pop(1).name, ttl_s=60)  # that has run out
        with pytest.raises(StoreFullError):
            db.leases.acquire(RUN, NAME, ttl_s=60, wait_s=1)
        for lease in (held[0], held[1]):
            assert db.leases.renew(lease, 60).token == lease.token
        assert db.leases.release(held[0]) is True
        waiter.join()
        assert held[-1].name == NAME and db.leases.renew(held[-1], 60).token > held[0].token
        for lease in held[1:]:
            assert db.leases.release(lease) is True
        db.leases.acquire(RUN, "another", ttl_s=60)
        assert db.check().problems == []
