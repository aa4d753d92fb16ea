"""The wall clock is set back and forth under a living store: time in it only goes on."""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_workers import RUN
from support import kill_writer, stop_writer, wait_until

import inmem

SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
STEPS = int(os.environ.get("INMEM_TEST_CLOCK_STEPS", "16"))
HOUR_US = 3600 * 10**6

SITE = """
import mmap, os, time
_file = open({path!r}, "rb")
_words = memoryview(mmap.mmap(_file.fileno(), 4096, access=mmap.ACCESS_READ)).cast("q")
_file.close()
_real = time.time_ns
time.time_ns = lambda: _real() + _words[0] * 1000
"""


class WallClock:
    """The wall clock of all writers that are started from now on: real, and so many microseconds off."""

    def __init__(self, scratch: Path) -> None:
        file = scratch / "wall"
        file.write_bytes(bytes(4096))
        site = scratch / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE.format(path=str(file)))
        self.site = site
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 4096)
        self._view = memoryview(self._map)
        self._words = self._view.cast("q")

    def close(self) -> None:
        """Unmap."""
        self._words.release()
        self._view.release()
        self._map.close()

    @property
    def off_us(self) -> int:
        return self._words[0]

    @off_us.setter
    def off_us(self, value: int) -> None:
        self._words[0] = value

    def now_us(self) -> int:
        return time.time_ns() // 1000 + self.off_us


@pytest.fixture
def wall(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WallClock]:
    clock = WallClock(scratch)
    before = [path for path in [os.environ.get("PYTHONPATH")] if path]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(clock.site), *before]))
    yield clock
    clock.close()


def test_the_clock_steps_under_a_living_store(store_path: Path, wall: WallClock) -> None:
    """Steps of seconds to weeks, back and forth, with kills and restarts between them."""
    rng = random.Random(f"{SEED} clock")
    print(f"seed {SEED}")
    back = kills = expired = 0
    with inmem.open(store_path) as db:
        first = db.events.append(RUN, "start", 0)
        assert first.sequence == 0
        stamp = db.events.head(RUN).timestamp
        assert abs(stamp - wall.now_us()) < 60 * 10**6
        gone: list[str] = []
        for number in range(STEPS):
            db.kv.put(RUN, f"short-{number}", number, ttl=0.05)
            long_ttl = db.kv.ttl(RUN, "long")
            if number == 0:
                db.kv.put(RUN, "long", 1, ttl=10**9)
                long_ttl = 1e9
            step = rng.choice([-1, -1, 1]) * rng.choice([2, 3600, 86_400, 14 * 86_400]) * 10**6
            wall.off_us += step
            back += step < 0
            if number % 4 == 3:
                (kill_writer if number % 8 == 3 else stop_writer)(store_path)
                kills += 1
            began = time.monotonic()
            for part in range(3):
                db.events.append(RUN, "step", [number, part])
            assert db.kv.put(RUN, "k", number)
            with pytest.raises(inmem.ConflictError), db.transaction(RUN) as txn:
                assert txn.kv.get("k") == number
                db.kv.put(RUN, "k", number)
                txn.kv.put("other", 1)
            assert time.monotonic() - began < 8.0, "no timeout was stretched or cut by the step"
            wait_until(lambda n=number: db.kv.get(RUN, f"short-{n}") is None, "the key expires", 5.0)
            gone.append(f"short-{number}")
            expired += 1
            assert not set(gone) & set(db.kv.list(RUN)), "an expired key is back"
            assert not any(db.kv.exists(RUN, name) for name in gone)
            left = db.kv.ttl(RUN, "long")
            assert left is not None and left <= long_ttl
        stamps = [event.timestamp for event in db.events.iter(RUN)]
        assert stamps == sorted(stamps) and len(stamps) == 1 + 3 * STEPS
        assert db.events.verify_chain(RUN).is_valid
        # Where the wall clock is ahead the store follows it, within a tick.
        wall.off_us = max(wall.off_us, stamps[-1] - time.time_ns() // 1000) + 3 * HOUR_US
        wait_until(lambda: db.events.append(RUN, "late", None).sequence and
                   db.events.head(RUN).timestamp >= wall.now_us() - 60 * 10**6, "the store follows", 5.0)
        stop_writer(store_path)
        wall.off_us -= 1000 * HOUR_US
        assert not set(gone) & set(db.kv.list(RUN)), "not after a clean stop with the clock set back either"
        newest = db.events.head(RUN).timestamp
        db.events.append(RUN, "after", None)
        assert db.events.head(RUN).timestamp >= newest
        assert db.check().problems == []
    print(
        f"{STEPS} steps ({back} back), {kills} writers ended: {len(stamps)} timestamps never decreased, "
        f"{expired} expired keys never returned"
    )


def test_the_clock_of_the_writer_is_really_moved(store_path: Path, wall: WallClock) -> None:
    """Or else the test above would prove nothing."""
    wall.off_us = 30 * HOUR_US
    with inmem.open(store_path) as db:
        db.events.append(RUN, "e", None)
        ahead = db.events.head(RUN).timestamp - time.time_ns() // 1000
        assert 29 * HOUR_US < ahead < 31 * HOUR_US
