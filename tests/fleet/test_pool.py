"""Worker processes: results, failures, signals, and nothing left of them."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pool_targets
import pytest

from workers import pool as pool_module
from workers.pool import Interrupt, Interrupted, Outcome, TimedOut, WorkerPool
from workers.stores import LeftBehind, process_is_gone, wait_until_gone

METHODS = pytest.mark.parametrize("start_method", ["spawn", "fork", "forkserver"])


def run(target: Any, arguments: list[tuple[Any, ...]], heard: list[Any] | None = None) -> Outcome:
    with Interrupt() as interrupt, WorkerPool(target, arguments) as pool:
        return pool.run(lambda worker, payload: (heard or []).append((worker, payload)), interrupt)


def assert_gone(pid: int) -> None:
    wait_until_gone({pid}, [], timeout_s=20.0)


@METHODS
def test_every_worker_gives_its_result(start_method: str) -> None:
    heard: list[Any] = []
    with (
        Interrupt() as interrupt,
        WorkerPool(pool_targets.double, [(1,), (2,), (3,)], start_method=start_method) as pool,
    ):
        outcome = pool.run(lambda worker, payload: heard.append((worker, payload)), interrupt)
    assert outcome.results == {0: 2, 1: 4, 2: 6}
    assert outcome.failures == {}
    assert sorted(heard) == [(0, (1, 0, 0)), (1, (2, 0, 0)), (2, (3, 0, 0))]


@pytest.mark.parametrize(
    ("target", "arguments", "reason"),
    [
        (pool_targets.fail, ("out of luck",), "ValueError: out of luck"),
        (pool_targets.vanish, (), "ended by SIGKILL"),
        (pool_targets.leave, (), "exit code 3"),
    ],
)
def test_a_failure_is_told(target: Any, arguments: tuple[Any, ...], reason: str) -> None:
    outcome = run(target, [arguments])
    assert outcome.results == {}
    assert reason in outcome.failures[0]


def test_a_failure_stops_the_others() -> None:
    outcome = run(pool_targets.one_of_two, [(0,), (1,)])
    assert outcome.results == {}
    assert list(outcome.failures) == [0]


def test_workers_ignore_interrupts_and_block_nothing() -> None:
    outcome = run(pool_targets.signals_of, [()])
    assert outcome.results[0] == {"sigint": True, "blocked": []}


@METHODS
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_leaves_no_process(start_method: str, signum: signal.Signals) -> None:
    pids: list[int] = []

    def heard(_worker: int, payload: Any) -> None:
        pids.append(payload[1])
        if len(pids) == 2:
            os.kill(os.getpid(), signum)

    with Interrupt() as interrupt, pytest.raises(Interrupted) as caught:
        arguments: list[tuple[Any, ...]] = [(), ()]
        with WorkerPool(pool_targets.until_stopped, arguments, start_method=start_method) as pool:
            pool.run(heard, interrupt)
    assert caught.value.signum == signum
    assert len(pids) == 2
    assert all(process_is_gone(pid) for pid in pids)


@pytest.mark.parametrize("target", [pool_targets.stubborn, pool_targets.talkative])
def test_a_worker_that_does_not_stop_is_ended(monkeypatch: pytest.MonkeyPatch, target: Any) -> None:
    monkeypatch.setattr(pool_module, "STOP_GRACE_S", 0.2)
    monkeypatch.setattr(pool_module, "TERM_GRACE_S", 0.2)
    pids: list[int] = []

    def heard(_worker: int, payload: Any) -> None:
        if payload[0] == "pid":
            pids.append(payload[1])
            os.kill(os.getpid(), signal.SIGINT)

    with Interrupt() as interrupt, pytest.raises(Interrupted), WorkerPool(target, [()]) as pool:
        pool.run(heard, interrupt)
    assert all(process_is_gone(pid) for pid in pids)
    assert len(pids) == 1


def test_a_deadline_stops_the_run() -> None:
    with (
        Interrupt(deadline_s=0.5) as interrupt,
        pytest.raises(TimedOut),
        WorkerPool(pool_targets.until_stopped, [()]) as pool,
    ):
        pool.run(lambda *_: None, interrupt)


@METHODS
def test_a_worker_whose_parent_dies_ends_itself(start_method: str) -> None:
    with pool_targets.start_dying_parent(start_method) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert parent.wait(20) == -signal.SIGKILL
    assert_gone(pid)


def test_an_interrupt_wakes_a_wait_at_once_and_restores_the_handlers() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        killer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        killer.start()
        started = time.monotonic()
        assert interrupt.wait([], 60.0) == []
        assert time.monotonic() - started < 30
        with pytest.raises(Interrupted):
            interrupt.check()
        killer.join()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_what_is_left_behind_is_named(tmp_path: Path) -> None:
    with pytest.raises(LeftBehind) as caught:
        wait_until_gone({os.getpid()}, [tmp_path], timeout_s=0.05)
    assert str(os.getpid()) in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    wait_until_gone(set(), [tmp_path / "nothing"], timeout_s=0.05)
