"""Fault 54: the wall clock was far ahead. A moment of it is not believed; more is told, and can be healed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpointing import remove_image
from support import kill_writer, stop_writer, wait_until, writer_pid
from test_22_clock_steps import HOUR_US, WallClock, wall
from typer.testing import CliRunner

import inmem
from inmem.cli.app import app
from inmem.host.clock import StoreClock
from inmem.host.control import Control

__all__ = ["wall"]
YEAR_US = 365 * 24 * HOUR_US
RUN = "run"


def now_us() -> int:
    return time.time_ns() // 1000


def is_now(stamp: int) -> bool:
    return abs(stamp - now_us()) < 3600 * 10**6


@pytest.fixture
def ahead(store_path: Path, wall: WallClock) -> Iterator[inmem.Database]:
    """A store that was made while the clock was a year ahead, which it is not any more."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "before", 1, ttl=7200)
    stop_writer(store_path)
    wall.off_us = YEAR_US
    new_boot(store_path)
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "meanwhile", 1, ttl=7200)
        db.kv.put(RUN, "short", 1, ttl=4.0)
        db.events.append("dated", "e", 1)
        assert db.events.head("dated").timestamp - now_us() > YEAR_US - HOUR_US
        wall.off_us = 0
        yield db


def new_boot(path: Path) -> None:
    """What a boot with a wrong clock is to the store: nobody knows how long it was away."""
    control = Control(path / "control", writable=True)
    control.update(boot=bytes(16))
    control.close()


def test_a_moment_ahead_is_not_believed(store_path: Path, wall: WallClock) -> None:
    """By a writer that lives, and by one that starts in that moment. What has a ttl keeps it."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1, ttl=30)
        wall.off_us = YEAR_US
        wait_until(lambda: "clock_leap" in (store_path / "writer.log").read_text(), "it is told")
        db.runs.create_run(run_id="one")
        kill_writer(store_path)
        db.events.append(RUN, "e", 1)
        stop_writer(store_path)
        db.events.append(RUN, "e", 2)
        wall.off_us = 0
        assert db.kv.get(RUN, "k") == 1 and 20 < (db.kv.ttl(RUN, "k") or 0) <= 30
        run = db.runs.get_run("one")
        assert run is not None and is_now(run.created_at) and is_now(db.events.head(RUN).timestamp)
        assert db.status().clock_ahead_s < 60


def test_noticed_and_healed(store_path: Path, ahead: inmem.Database) -> None:
    db = ahead
    runner = CliRunner()
    wait_until(lambda: "clock_ahead" in (store_path / "writer.log").read_text(), "it is told")
    assert db.status().clock_ahead_s > 364 * 86_400
    assert any("ahead of the wall clock" in note for note in db.check().notes)
    assert "inmem clock" in runner.invoke(app, ["status", "-d", str(store_path)]).output
    assert "ahead of the wall clock by 31," in runner.invoke(app, ["clock", "-d", str(store_path)]).output
    db.runs.create_run(run_id="ahead")
    healed = runner.invoke(app, ["clock", "-d", str(store_path), "--set-back"])
    assert healed.exit_code == 0 and "set back by 31," in healed.output, healed.output
    for step in (lambda: None, lambda: kill_writer(store_path), lambda: lose_image(store_path)):
        step()
        run = db.runs.create_run()
        assert is_now(run.created_at), "new runs have the time of now"
        db.events.append(run.run_id, "e", 1)
        assert is_now(db.events.head(run.run_id).timestamp)
        assert abs(db.status().clock_ahead_s) < 60
        left = db.kv.ttl(RUN, "meanwhile")
        assert left is not None and 7000 < left <= 7200, "it lasts for as long as was said"
        assert db.check().ok
    wait_until(lambda: db.kv.get(RUN, "short") is None, "what was stored meanwhile expires in its time", 10.0)
    assert db.kv.get(RUN, "before") is None, "what has expired by the wrong clock stays away"
    found = db.runs.query_runs(created_after=now_us() - HOUR_US)
    assert {"ahead", *(r.run_id for r in found)} == {r.run_id for r in found}
    db.events.append("dated", "e", 2)
    stamps = [event.timestamp for event in db.events.iter("dated")]
    assert stamps == sorted(stamps) and db.events.verify_chain("dated").is_valid


def lose_image(path: Path) -> None:
    kill_writer(path)
    remove_image(path)


def test_nothing_to_heal(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1, ttl=60)
        result = CliRunner().invoke(app, ["clock", "-d", str(store_path), "--set-back", "--json"])
        assert result.exit_code == 0 and '"expiries": 0' in result.output
        assert 50 < (db.kv.ttl(RUN, "k") or 0) <= 60 and writer_pid(store_path)


def test_a_leap_that_lasts_counts() -> None:
    """A clock that was wrong at first, and is right now, is followed, by more than a day after a minute."""
    times = {"wall": 1000 * 10**6, "boot": 10**6}
    clock = StoreClock(0, wall=lambda: times["wall"], boot=lambda: times["boot"])
    times["wall"] += YEAR_US
    clock.follow_wall()
    assert clock.now_us() == 1000 * 10**6 and clock.ahead_us() == -YEAR_US
    for _ in range(59):
        times["boot"] += 10**6
        times["wall"] += 10**6
        clock.follow_wall()
    assert clock.now_us() == 1059 * 10**6
    times["boot"] += 10**6
    times["wall"] += 10**6
    clock.follow_wall()
    assert clock.now_us() == times["wall"]
    times["wall"] -= YEAR_US
    assert clock.follow_wall() and clock.ahead_us() == YEAR_US
    clock.set_back()
    assert clock.now_us() == times["wall"]
