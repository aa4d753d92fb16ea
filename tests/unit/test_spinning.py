"""Looking before sleeping: given up where it takes long, tried again later and later, and taken up again."""

from __future__ import annotations

import itertools

import pytest

from inmem.host import spinning as spinning_module
from inmem.host.spinning import Spinning

MOST = 50


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(spinning_module, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def wait(spinning: Spinning, clock: Clock, look_s: float, looks: int = MOST) -> bool:
    """One wait, whose looks take so long each; whether it looked at all."""
    most = spinning.begin()
    assert most in (0, MOST)
    if most:
        clock.now += looks * look_s
        spinning.end(looks)
    return most > 0


def test_it_looks_as_long_as_that_costs_little(clock: Clock) -> None:
    spinning = Spinning(MOST)
    assert all(wait(spinning, clock, 1e-6) for _ in range(100))


def test_it_stops_where_a_look_takes_long_and_tries_again_ever_more_rarely(clock: Clock) -> None:
    spinning = Spinning(MOST)
    looked = [number for number in range(40_000) if wait(spinning, clock, 3e-3)]
    pauses = [later - earlier - 1 for earlier, later in itertools.pairwise(looked)]
    assert pauses == [128, 256, 512, 1024, 2048, 4096, 8192, 8192, 8192][: len(pauses)] and len(pauses) >= 8


def test_it_comes_back_when_the_others_have_gone(clock: Clock) -> None:
    spinning = Spinning(MOST)
    for _ in range(30_000):
        wait(spinning, clock, 3e-3)
    assert any(wait(spinning, clock, 1e-6) for _ in range(8193))
    assert all(wait(spinning, clock, 1e-6) for _ in range(20))
    wait(spinning, clock, 3e-3)
    paused = 0
    while not wait(spinning, clock, 1e-6):
        paused += 1
    assert paused == 128, "old troubles are forgotten"


def test_one_slow_look_at_something_that_came_at_once_is_no_reason(clock: Clock) -> None:
    spinning = Spinning(MOST)
    assert spinning.begin() == MOST
    spinning.end(0)
    assert wait(spinning, clock, 1e-6)
