"""What is renewed while it is held: the thread, exceptions of signal handlers, losses."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from support import wait_until

from inmem.errors import InvalidInputError, JobLostError, WriterUnavailableError
from inmem.primitives import holding
from inmem.primitives.holding import Holding, Loss, Renewals
from inmem.steps import Steps


class Hit(BaseException):
    pass


class Counted(Holding):
    """It is renewed by counting."""

    def __init__(self, lasts_s: float, *errors: Exception) -> None:
        super().__init__(round(lasts_s * 1e6))
        self.count = 0
        self.errors = list(errors)
        self.hold(holding.boot_us())

    def renewing(self) -> Steps[None]:
        self.count += 1
        if self.errors:
            raise self.errors.pop(0)
        yield from ()


@pytest.fixture
def renewals(monkeypatch: pytest.MonkeyPatch) -> Iterator[Renewals]:
    """One of their own. Its thread ends: it may sleep for what was due last, so it is rung for."""
    monkeypatch.setattr(holding, "_IDLE_S", 0.05)
    made = Renewals()
    before = threading.active_count()
    yield made

    def has_ended() -> bool:
        holding.ring(made._bell)
        return threading.active_count() <= before

    wait_until(has_ended, "the thread ends", 10)


def test_one_thread_renews_all_and_ends(renewals: Renewals) -> None:
    held = [Counted(0.3) for _ in range(50)]
    before = threading.active_count()
    for each in held:
        renewals.keep(each)
    assert threading.active_count() == before + 1
    wait_until(lambda: all(each.count >= 2 for each in held), "each is renewed twice", 10)
    for each in held:
        renewals.drop(each)
    last = weakref.ref(held.pop(0))
    gc.collect()
    assert last() is None, "nothing of what was dropped is kept"


def test_what_is_due_sooner_comes_sooner(renewals: Renewals) -> None:
    late, soon = Counted(300.0), Counted(0.03)
    renewals.keep(late)
    wait_until(lambda: renewals._wakes_at_us, "the thread sleeps", 10)
    renewals.keep(soon)
    wait_until(lambda: soon.count >= 3, "it is not slept over", 10)
    assert late.count == 0
    renewals.drop(late)
    renewals.drop(soon)


def test_errors(renewals: Renewals) -> None:
    lost, back = Counted(0.1, JobLostError("gone")), Counted(0.1, WriterUnavailableError("away"))
    told: list[bool] = []
    waits = threading.Thread(target=lambda: told.append(lost.lost.wait(30)))  # type: ignore[attr-defined]
    waits.start()
    renewals.keep(lost)
    renewals.keep(back)
    waits.join(10)
    assert told == [True] and lost.count == 1
    wait_until(lambda: back.count >= 3, "it is tried again", 10)
    renewals.drop(back)


def test_an_exception_of_a_handler_anywhere_stops_nobody_else(renewals: Renewals) -> None:
    """It is raised at each line of keeping and dropping something, as a signal handler could."""
    other = Counted(0.2)
    renewals.keep(other)
    lines = hits = 0
    while True:
        mine = Counted(100.0)
        lines += 1
        left = [lines]

        def trace(frame: Any, event: str, arg: Any, left: list[int] = left) -> Any:
            if frame.f_code.co_filename == holding.__file__ and event == "line":
                left[0] -= 1
                if not left[0]:
                    sys.settrace(None)
                    raise Hit
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            renewals.keep(mine)
            renewals.drop(mine)
        except Hit:
            hits += 1
            renewals.drop(mine)
        else:
            break
        finally:
            sys.settrace(before)
    assert hits >= 6
    count = other.count
    wait_until(lambda: other.count > count + 1, "the other one is still renewed", 10)
    assert not other.lost.is_set()  # type: ignore[attr-defined]
    renewals.drop(other)


def test_a_loss_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Counted(0.05)
    loss = Loss(held)
    assert not loss.is_set() and loss.wait(0.001) is False
    began = time.monotonic()
    assert loss.wait() is True and loss.is_set() and time.monotonic() - began < 10
    for bad in (-1, float("nan"), float("inf"), "1", True):
        with pytest.raises(InvalidInputError, match="timeout"):
            loss.wait(bad)  # type: ignore[arg-type]
