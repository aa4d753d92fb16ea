"""What is held for a while and renewed while a block runs: one thread renews all of a process.

Invariant: whether something may be lost is judged by the clock, counted from
before it was asked for. So it shows also where the thread that renews was kept
from it, and whether or not anybody else has taken it.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from inmem.errors import (
    ClosedError,
    InmemError,
    JobLostError,
    LeaseLostError,
    LimitError,
    RunDeletedError,
)
from inmem.host.clock import boot_us
from inmem.host.interrupts import let_through
from inmem.primitives._common import microseconds
from inmem.steps import Steps, driven

_PARTS: Final = 3  # of the time for which it is held: after the first it is renewed
_AGAIN_PARTS: Final = 12  # likewise, when that has failed
_AGAIN_US: Final = 20_000  # at least
_IDLE_S: Final = 1.0  # with nothing to renew, before the thread ends
_LOOK_S: Final = 1.0  # who waits for a loss looks at the clock as often: it goes on during suspend


class Tells(Protocol):
    """Something like an event: who waits for a loss is told of it."""

    def tell(self) -> None: ...


class Holding:
    """One thing that this process holds, and until when it does for sure."""

    def __init__(self, lasts_us: int) -> None:
        self.lasts_us = lasts_us
        self.lost: Tells = Loss(self)
        self.renew_at_us = 0  # time since boot
        self.entry: list[Any] | None = None  # what stands for it where it is renewed
        self._until_us = 0
        self._pid = os.getpid()

    def renewing(self) -> Steps[None]:
        """Ask the store for more time."""
        raise NotImplementedError

    @property
    def is_mine(self) -> bool:
        """Whether this process holds it: a forked child owns nothing."""
        return self._pid == os.getpid()

    def begin(self) -> None:
        """This process is about to hold it."""
        self._pid = os.getpid()

    @property
    def is_held(self) -> bool:
        """Whether this process has it, as far as it knows: it may have run out."""
        return self._until_us > 0 and self.is_mine

    def hold(self, asked_us: int) -> None:
        """It was got, or renewed; that was asked for then."""
        self._until_us = asked_us + self.lasts_us
        self.renew_at_us = asked_us + self.lasts_us // _PARTS

    def end(self) -> None:
        """It is not held any more."""
        self._until_us = 0
        self.lost.tell()

    def lost_in_s(self) -> float:
        """How long it is held for sure; not above 0 if it may be lost."""
        return (self._until_us - boot_us()) / 1e6 if self._until_us and self.is_mine else 0.0

    def renew(self) -> Steps[bool]:
        """Ask for more time; whether to go on with that."""
        asked_us = boot_us()
        try:
            yield from self.renewing()
        except (LeaseLostError, JobLostError, RunDeletedError):
            self.end()
            return False
        except ClosedError:
            return False
        except InmemError:  # no writer just now, for example
            self.renew_at_us = boot_us() + max(_AGAIN_US, self.lasts_us // _AGAIN_PARTS)
        else:
            self.hold(asked_us)
        return True


def insisted(make: Callable[[], Steps[Any]]) -> Steps[Any]:
    """Take some steps; if they are cancelled or interrupted, once more: what is given back must be."""
    try:
        return (yield from make())
    except (InmemError, GeneratorExit):
        raise
    except BaseException:
        try:
            yield from make()
        except InmemError as error:  # it was done before, or runs out
            let_through(error)
        raise


class Loss:
    """Whether something that is held may be lost, in the form of a `threading.Event`.

    It is lost for sure if the store has said so. It may be lost once its time
    has passed, by the clock and counted from before it was asked for. If it is
    renewed after that, as nobody has taken it, it is not lost any more.
    """

    __slots__ = ("_bells", "_holding")

    def __init__(self, holding: Holding) -> None:
        self._holding = holding
        self._bells: deque[Any] = deque()  # a lock for each who waits, which telling him releases

    def is_set(self) -> bool:
        """Whether it may be lost. Cost: about 1 µs."""
        return self._holding.lost_in_s() <= 0

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it may be lost, for `timeout` seconds at most; whether it may be.

        Raises:
            InvalidInputError: `timeout` is no number of seconds.
        """
        end_us = None if timeout is None else boot_us() + microseconds(timeout, "timeout")
        bell = allocate_lock()
        bell.acquire()
        self._bells.append(bell)
        try:
            while (left_s := self._holding.lost_in_s()) > 0:
                if end_us is not None:
                    left_s = min(left_s, (end_us - boot_us()) / 1e6)
                    if left_s <= 0:
                        return False
                bell.acquire(timeout=min(left_s, _LOOK_S))
        finally:
            self._bells.remove(bell)
        return True

    def tell(self) -> None:
        """Wake who waits."""
        for bell in [*self._bells]:
            ring(bell)


def ring(bell: Any) -> None:
    """Release a lock that somebody sleeps on. It is one step: a handler that raises leaves nothing behind."""
    try:
        bell.release()
    except RuntimeError:  # it was rung before
        return


class Renewals:
    """The one thread that renews what this process holds.

    It ends when nothing was held for a while, after what was due next when it fell asleep.

    No lock is taken by who keeps or drops something: a signal handler may
    raise between any two steps of his. He appends to a queue, or takes his
    thing out of the list that stands for it; only the thread has the heap.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._new: deque[list[Any]] = deque()
        self._bell = allocate_lock()
        self._bell.acquire()
        self._threads: dict[int, threading.Thread] = {}  # under 0, the last one that was started
        self._wakes_at_us = 0

    def keep(self, holding: Holding) -> None:
        """Renew something from now on.

        Raises:
            LimitError: no thread can be started.
        """
        entry = holding.entry = [holding.renew_at_us, next(self._numbers), holding]
        self._new.append(entry)
        thread = self._threads.get(0)
        if thread is None or not thread.is_alive():
            thread = self._threads[0] = threading.Thread(target=self._run, name="inmem-renewals", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                self.drop(holding)
                raise LimitError(f"no thread can be started to renew: {error}", what="threads") from None
        elif holding.renew_at_us < self._wakes_at_us:
            ring(self._bell)

    def drop(self, holding: Holding) -> None:
        """Renew it no more. Nothing of it is kept. May be called again."""
        if holding.entry is not None:
            holding.entry[2] = None

    def _run(self) -> None:
        heap: list[list[Any]] = []
        try:
            while self._renew_next(heap):
                pass
        except BaseException:
            self._new.extend(heap)  # for the next thread
            raise

    def _renew_next(self, heap: list[list[Any]]) -> bool:
        """Sleep until something is due, and renew it; False if nothing was held for a while."""
        was_idle = False
        while True:
            while self._new:
                heapq.heappush(heap, self._new.popleft())
            while heap and heap[0][2] is None:
                heapq.heappop(heap)
            if not heap and was_idle:
                self._threads.pop(0, None)  # who comes from here on starts another thread
                if not self._new:
                    return False
            was_idle = not heap
            sleep_s = (heap[0][0] - boot_us()) / 1e6 if heap else _IDLE_S
            if sleep_s <= 0:
                break
            self._wakes_at_us = boot_us() + round(sleep_s * 1e6)
            self._bell.acquire(timeout=sleep_s)
        entry = heapq.heappop(heap)
        holding = entry[2]
        if holding is not None and driven(holding.renew()):
            entry[:2] = holding.renew_at_us, next(self._numbers)
            heapq.heappush(heap, entry)  # if it was dropped meanwhile, the list is empty
        return True


_renewals = Renewals()


def keep(holding: Holding) -> None:
    """Renew something from now on, by this process's thread for that."""
    _renewals.keep(holding)


def drop(holding: Holding) -> None:
    """Renew it no more."""
    _renewals.drop(holding)


def _after_fork_in_child() -> None:
    """What the parent holds is the parent's."""
    global _renewals
    _renewals = Renewals()


os.register_at_fork(after_in_child=_after_fork_in_child)
