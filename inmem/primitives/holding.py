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
from typing import Final, Protocol

from inmem.errors import (
    ClosedError,
    InmemError,
    JobLostError,
    LeaseLostError,
    LimitError,
    RunDeletedError,
)
from inmem.host.clock import boot_us
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


class Loss:
    """Whether something that is held may be lost, in the form of a `threading.Event`.

    It is lost for sure if the store has said so. It may be lost once its time
    has passed, by the clock and counted from before it was asked for. If it is
    renewed after that, as nobody has taken it, it is not lost any more.
    """

    __slots__ = ("_changed", "_holding")

    def __init__(self, holding: Holding) -> None:
        self._holding = holding
        self._changed = threading.Condition()

    def is_set(self) -> bool:
        """Whether it may be lost. Cost: about 1 µs."""
        return self._holding.lost_in_s() <= 0

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it may be lost, for `timeout` seconds at most; whether it may be."""
        end_us = None if timeout is None else boot_us() + round(timeout * 1e6)
        with self._changed:
            while (left_s := self._holding.lost_in_s()) > 0:
                if end_us is not None:
                    left_s = min(left_s, (end_us - boot_us()) / 1e6)
                    if left_s <= 0:
                        return False
                self._changed.wait(min(left_s, _LOOK_S))
        return True

    def tell(self) -> None:
        """Wake who waits."""
        with self._changed:
            self._changed.notify_all()


class Renewals:
    """The one thread that renews what this process holds. It ends when nothing was held for a while."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._heap: list[tuple[int, int, Holding]] = []
        self._held: set[Holding] = set()
        self._thread: threading.Thread | None = None
        self._wakes_at_us = 0

    def keep(self, holding: Holding) -> None:
        """Renew something from now on.

        Raises:
            LimitError: no thread can be started.
        """
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="inmem-renewals", daemon=True)
                try:
                    thread.start()  # it looks for this once the lock is free
                except RuntimeError as error:
                    raise LimitError(f"no thread can be started to renew: {error}", what="threads") from None
                self._thread = thread
            self._held.add(holding)
            self._push(holding)
            if holding.renew_at_us < self._wakes_at_us:
                self._changed.notify()

    def drop(self, holding: Holding) -> None:
        """Renew it no more. It is not kept: its store may be closed next."""
        with self._changed:
            self._held.discard(holding)
            self._heap = [each for each in self._heap if each[2] is not holding]
            heapq.heapify(self._heap)

    def _push(self, holding: Holding) -> None:
        heapq.heappush(self._heap, (holding.renew_at_us, next(self._numbers), holding))

    def _run(self) -> None:
        try:
            self._renew_all()
        except BaseException:
            with self._changed:
                self._thread = None  # the next one starts another
            raise

    def _renew_all(self) -> None:
        while self._renew_next():
            pass

    def _renew_next(self) -> bool:
        """Renew what is due next; False if nothing was held for a while."""
        holding = self._next()
        if holding is None:
            return False
        goes_on = driven(holding.renew())
        with self._changed:
            if holding in self._held:
                if goes_on:
                    self._push(holding)
                else:
                    self._held.discard(holding)
        return True

    def _next(self) -> Holding | None:
        """The one to renew now; None if nothing was held for a while."""
        with self._changed:
            was_idle = False
            while True:
                if not self._heap and was_idle:
                    self._thread = None
                    return None
                was_idle = not self._heap
                sleep_s = (self._heap[0][0] - boot_us()) / 1e6 if self._heap else _IDLE_S
                if sleep_s <= 0:
                    return heapq.heappop(self._heap)[2]
                self._wakes_at_us = boot_us() + round(sleep_s * 1e6)
                self._changed.wait(sleep_s)


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
