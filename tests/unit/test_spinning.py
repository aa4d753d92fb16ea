"""Looking before sleeping: given up where it takes long, tried again later and later, and taken up again."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from inmem.host import board as board_module
from inmem.host.board import Board
from inmem.host.spinning import SLOW_S, Spinning


def wait(spinning: Spinning, *, slow: bool) -> bool:
    """One wait; whether it looked."""
    if not spinning.may_look():
        return False
    spinning.ended(slow=slow)
    return True


def test_it_looks_as_long_as_that_costs_little() -> None:
    spinning = Spinning()
    assert all(wait(spinning, slow=False) for _ in range(100))


def test_it_stops_where_a_look_takes_long_and_tries_again_ever_more_rarely() -> None:
    spinning = Spinning()
    looked = [number for number in range(2_500) if wait(spinning, slow=True)]
    pauses = [later - earlier - 1 for earlier, later in itertools.pairwise(looked)]
    assert pauses == [32, 64, 128, 256, 512, 512, 512]


def test_it_comes_back_when_the_others_have_gone() -> None:
    spinning = Spinning()
    for _ in range(3_000):
        wait(spinning, slow=True)
    assert any(wait(spinning, slow=False) for _ in range(513))
    assert all(wait(spinning, slow=False) for _ in range(20))
    wait(spinning, slow=True)
    paused = 0
    while not wait(spinning, slow=False):
        paused += 1
    assert paused == 32, "old troubles are forgotten"


def test_a_client_sleeps_after_a_look_that_took_long(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(scratch / "some.answers", create=True)
    assert board.clear(0)
    now, yields = 0.0, 0

    def others_run() -> None:
        nonlocal now, yields
        yields += 1
        now += 2 * SLOW_S if yields > 5 else 1e-6

    monkeypatch.setattr(board_module, "perf_counter", lambda: now)
    monkeypatch.setattr(os, "sched_yield", others_run)
    spinning = Spinning()
    assert board.look_for(0, 1, 0, 200, spinning) == 0
    assert yields == 6, "the sixth took long, and was the last"
    assert board.look_for(0, 1, 0, 200, spinning) == 0
    assert yields == 6, "the next wait does without"
    board.post(0, 1, 0, 7, b"")
    assert board.look_for(0, 1, 0, 200, spinning) == board_module.ANSWERED
    board.remove()
    board.close()
