"""Expiry: with a clock that tests move, and once against real time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from committing import SECOND, START_US, Bench, kv_key, put
from hypothesis import given
from hypothesis import strategies as st

import inmem
from inmem.config import MAX_TTL_S
from inmem.primitives._common import lasting
from inmem.record import end_of, is_live, pack
from inmem.storage.snapshot import Image

NOW = 1_700_000_000_000_000


@pytest.mark.parametrize(
    ("ttl", "microseconds"),
    [
        (None, None),
        (1, 1_000_000),
        (1.5, 1_500_000),
        (0.000001, 1),
        (1e-9, 1),
        (timedelta(seconds=2), 2_000_000),
        (timedelta(microseconds=1), 1),
        (MAX_TTL_S, MAX_TTL_S * 1_000_000),
        (float(MAX_TTL_S), MAX_TTL_S * 1_000_000),
    ],
)
def test_when_a_ttl_ends(ttl: Any, microseconds: int | None) -> None:
    assert end_of(lasting(ttl), NOW) == (0 if microseconds is None else NOW + microseconds)


@given(st.floats(1e-9, MAX_TTL_S) | st.integers(1, MAX_TTL_S))
def test_a_ttl_never_ends_before_it_began(ttl: float) -> None:
    assert NOW < end_of(lasting(ttl), NOW) <= NOW + MAX_TTL_S * 1_000_000
    assert abs(end_of(lasting(ttl), NOW) - NOW - ttl * 1e6) <= 1


def test_live_until_the_microsecond_of_expiry() -> None:
    record = pack(1, NOW, NOW + 10, b"")
    assert [is_live(record, NOW + i) for i in (0, 9, 10, 11)] == [True, True, False, False]
    assert is_live(pack(1, NOW, 0, b""), 1 << 62)


def test_a_clock_set_back_does_not_bring_keys_back(tmp_path: Path) -> None:
    """What was swept is gone, and the time that was recorded is where the next writer goes on."""
    bench = Bench(tmp_path / "image")
    bench.client().send(put(kv_key("r", "k"), 1, START_US + SECOND))
    bench.now += 2 * SECOND
    bench.committer.sweep(bench.now, 10)
    assert bench.store.position is not None
    assert bench.store.position.clock_us == bench.now
    bench.now -= 2 * SECOND
    bench.restart()
    assert bench.records() == {}
    bench.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Moves the time of this process's reads: a list of one number, the seconds ahead."""
    ahead = [0.0]
    real = Image.now_us
    monkeypatch.setattr(Image, "now_us", lambda self: real(self) + round(ahead[0] * 1e6))
    yield ahead


@pytest.fixture(scope="module")
def db() -> Iterator[inmem.Database]:
    with inmem.open() as database:
        yield database


def test_an_expired_key_is_invisible_to_every_read(db: inmem.Database, clock: list[float]) -> None:
    with inmem.open() as db:  # its readers take the moved clock when they are made
        db.kv.put_many("r", {"gone": 1, "gone2": 1}, ttl=100)
        db.kv.put("r", "stays", 1)

        def views() -> list[Any]:
            found = []
            with db.snapshot("r") as view, db.transaction("r") as txn:
                for kv in (db.run("r").kv, view.kv, txn.kv):
                    found.append(
                        (
                            kv.get("gone", "no"),
                            kv.exists("gone"),
                            kv.get_versioned("gone") is None,
                            kv.ttl("gone"),
                            kv.list(),
                            kv.list("gone"),
                            [k for k, _ in kv.list_with_values()],
                            kv.count(),
                            list(kv.get_many(["gone", "stays"])),
                            kv.list(limit=1),
                            kv.list(limit=1, reverse=True),
                        )
                    )
            return found

        everything = ["gone", "gone2", "stays"]
        for seen in views():
            assert seen[:3] == (1, True, False)
            assert 40 < seen[3] <= 100
            assert seen[4:] == (
                everything,
                everything[:2],
                everything,
                3,
                ["gone", "stays"],
                ["gone"],
                ["stays"],
            )
        clock[0] = 100.0
        for seen in views():
            assert seen == (
                "no", False, True, None, ["stays"], [], ["stays"], 1, ["stays"], ["stays"], ["stays"]
            )


def test_own_writes_in_a_transaction_last_from_its_commit(db: inmem.Database, clock: list[float]) -> None:
    with inmem.open() as db:
        txn = db.transaction("r")
        txn.kv.put("k", 1, ttl=100)
        txn.kv.add("k")
        assert (txn.kv.get("k"), txn.kv.list()) == (2, ["k"])
        clock[0] = 100.0
        assert (txn.kv.get("k"), txn.kv.list(), txn.kv.count()) == (2, ["k"], 1)
        txn.abort()


def test_a_snapshot_keeps_its_moment(db: inmem.Database, clock: list[float]) -> None:
    with inmem.open() as db:
        db.kv.put("r", "k", 1, ttl=100)
        with db.snapshot("r") as view:
            clock[0] = 100.0
            assert view.kv.get("k") == 1
            assert db.kv.get("r", "k") is None


def test_in_real_time_keys_go_and_are_removed(db: inmem.Database) -> None:
    db.kv.put("r", "k", 1, ttl=1.0)
    db.kv.put("r", "stays", 1, ttl=1000)
    expired = db.status().expired
    assert db.kv.get("r", "k") == 1
    deadline = time.monotonic() + 10
    while db.kv.get("r", "k") is not None or db.status().expired == expired:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert db.kv.list("r") == ["stays"]
    db.kv.put("r", "k", 2)
    assert db.kv.ttl("r", "k") is None


def test_a_transaction_whose_read_expires_is_refused(db: inmem.Database) -> None:
    """The commit comes after the expiry, of which the record itself shows no trace."""
    begun = {}
    for run, look in {
        "got": lambda kv: kv.get("k"), "listed": lambda kv: kv.list(), "counted": lambda kv: kv.count("k")
    }.items():  # fmt: skip
        db.kv.put(run, "k", 1, ttl=1.0)
        txn = begun[run] = db.transaction(run)
        assert look(txn.kv)
        txn.kv.put("other", 1)
    for run, txn in begun.items():
        deadline = time.monotonic() + 10
        while db.kv.get(run, "k") is not None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        with pytest.raises(inmem.ConflictError):
            txn.commit()
        assert db.kv.get(run, "other") is None
