"""Leases that are held while a block runs: one thread renews all of a process.

Invariant: whether a lease may be lost is judged by the clock, counted from
before it was asked for. So it shows also where the thread that renews was kept
from it, and whether or not anybody has taken the lease.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar, overload

from inmem.errors import ClosedError, InmemError, InvariantError, LeaseLostError, LimitError, RunDeletedError
from inmem.host.clock import boot_us
from inmem.host.interrupts import let_through
from inmem.pending import Pending
from inmem.primitives.leases.calls import LeaseCalls, Taken, as_wish, lost
from inmem.primitives.leases.rules import Lease
from inmem.steps import Steps

T = TypeVar("T")
R = TypeVar("R")

_PARTS: Final = 3  # of the time for which a lease is asked: after the first it is renewed
_AGAIN_PARTS: Final = 12  # likewise, when that has failed
_AGAIN_US: Final = 20_000  # at least
_IDLE_S: Final = 1.0  # without leases, before the thread ends
_LOOK_S: Final = 1.0  # who waits for a loss looks at the clock as often: it goes on during suspend


class Holding:
    """A lease that is held, and until when it is so for sure."""

    def __init__(
        self, calls: LeaseCalls, name: str, *, ttl_s: object, holder: object, wait_s: object
    ) -> None:
        self.calls = calls
        self._wish = as_wish(name, ttl_s, holder, wait_s)
        self._taken: Taken | None = None
        self._is_gone = False  # the store has said so
        self._pid = os.getpid()
        self.renew_at_us = 0  # time since boot

    def described(self) -> str:
        """What it is of, and the lease once it was acquired."""
        return f"{self._wish.name!r}, {self._taken and self._taken.lease!r}"

    @property
    def lease(self) -> Lease:
        """The lease as it was renewed last.

        Raises:
            InvariantError: the block has not begun.
        """
        if self._taken is None:
            raise InvariantError(
                f"lease {self._wish.name!r} is acquired where its block begins",
                hint="Use it in a `with` block.",
            )
        return self._taken.lease

    @property
    def token(self) -> int:
        """The token of the lease."""
        return self.lease.token

    def lost_in_s(self) -> float:
        """How long it is held for sure; not above 0 if it may be lost."""
        if self._taken is None or not self.is_here:
            return 0.0
        return (self._taken.asked_us + self._wish.ttl_us - boot_us()) / 1e6

    def taking(self) -> Steps[Taken]:
        """Acquire it.

        Raises:
            InvariantError: it had its block.
        """
        if self._taken is not None:
            raise InvariantError("this lease has had its block", hint="Call hold() again.")
        self._pid = os.getpid()
        return self.calls.taking(self._wish)

    def renewing(self) -> Steps[Taken]:
        """Renew it."""
        return self.calls.renewing(self.lease, 0)

    def releasing(self) -> Steps[bool]:
        """Give it back."""
        self.ended()
        return self.calls.releasing(self.lease)

    @property
    def is_here(self) -> bool:
        """Whether this process has it, as far as it knows."""
        return not self._is_gone and self._pid == os.getpid()

    def ended(self) -> None:
        """It is held no more."""
        self._is_gone = True

    def taken(self, taken: Taken) -> None:
        """It was acquired or renewed."""
        self._taken = taken
        self.renew_at_us = taken.asked_us + self._wish.ttl_us // _PARTS

    def not_renewed(self, error: InmemError) -> bool:
        """It could not be renewed; whether there is use in trying again."""
        if isinstance(error, LeaseLostError | RunDeletedError):
            self.ended()
        if self._is_gone or isinstance(error, ClosedError):
            return False
        self.renew_at_us = boot_us() + max(_AGAIN_US, self._wish.ttl_us // _AGAIN_PARTS)
        return True

    def check_process(self) -> None:
        """Refuse what a forked child does with a lease of its parent.

        Raises:
            LeaseLostError: it owns nothing.
        """
        if self._pid != os.getpid():
            raise lost(self.lease, "the process that acquired it has forked, and this is the child")

    def check(self) -> None:
        """See `HeldLease.check`."""
        self.check_process()
        self.calls.records.check(self.lease)

    def transact(self, fn: Callable[[Any], Any], options: dict[str, Any]) -> Any:
        """What `transact` of the run gives, with this lease."""
        self.check_process()
        return self.calls.transact(fn, lease=self.lease, **options)


class Due(Generic[T]):
    """The leases that are held, in the order in which they are to be renewed."""

    def __init__(self, holding_of: Callable[[T], Holding]) -> None:
        self._holding_of = holding_of
        self._numbers = itertools.count()
        self._heap: list[list[Any]] = []  # when, a number, and the lease, or None if it is held no more
        self._entries: dict[T, list[Any]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, held: T) -> bool:
        return held in self._entries

    def add(self, held: T) -> None:
        """One is held, or was renewed."""
        entry = self._entries[held] = [self._holding_of(held).renew_at_us, next(self._numbers), held]
        heapq.heappush(self._heap, entry)

    def discard(self, held: T) -> None:
        """One is held no more; nothing of it is kept."""
        entry = self._entries.pop(held, None)
        if entry is not None:
            entry[2] = None
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = [each for each in self._heap if each[2] is not None]
            heapq.heapify(self._heap)

    def next_in_s(self) -> float | None:
        """How long there is nothing to renew; None if nothing is to be renewed at any time."""
        while self._heap and self._heap[0][2] is None:
            heapq.heappop(self._heap)
        return max(0.0, (self._heap[0][0] - boot_us()) / 1e6) if self._heap else None

    def pop(self) -> T:
        """The first one, which is still held."""
        first: T = heapq.heappop(self._heap)[2]
        return first


class HeldLease:
    """A lease that is held while a `with` block runs. Made by `leases.hold`.

    `lost` says whether it may be lost, in the form of a `threading.Event`.
    """

    __slots__ = ("__weakref__", "_holding", "lost")

    def __init__(
        self, calls: LeaseCalls, name: str, *, ttl_s: object, holder: object, wait_s: object
    ) -> None:
        self._holding = Holding(calls, name, ttl_s=ttl_s, holder=holder, wait_s=wait_s)
        self.lost = Loss(self._holding)

    def __repr__(self) -> str:
        return f"HeldLease({self._holding.described()})"

    @property
    def lease(self) -> Lease:
        """The lease as it was renewed last.

        Raises:
            InvariantError: the block has not begun.
        """
        return self._holding.lease

    @property
    def token(self) -> int:
        """The token of the lease. What is not stored here can refuse who is late by it."""
        return self._holding.lease.token

    def check(self) -> None:
        """Refuse to go on if it is lost. Cost: about 3 µs.

        Raises:
            LeaseLostError: another one has it, or nobody; or this is a forked child of the holder.
            RunDeletedError: the run was deleted.
        """
        self._holding.check()

    @overload
    def transact(self, fn: Callable[[Any], Pending[R]], **options: Any) -> R: ...
    @overload
    def transact(self, fn: Callable[[Any], R], **options: Any) -> R: ...
    def transact(self, fn: Callable[[Any], Any], **options: Any) -> Any:
        """`transact` of the lease's run, refused at the commit unless the lease is held then.

        `options` are those of `Database.transact`, and so are the errors.

        Raises:
            LeaseLostError: another one has it, or nobody; nothing is stored.
        """
        return self._holding.transact(fn, options)

    def __enter__(self) -> HeldLease:
        holding = self._holding
        holding.taken(holding.calls.drive(holding.taking()))
        try:
            _renewals.add(self)
        except BaseException:
            holding.calls.drive(holding.releasing())
            raise
        return self

    def __exit__(self, *_: object) -> None:
        holding = self._holding
        _renewals.discard(self)
        if holding.is_here:
            try:
                holding.calls.drive(holding.releasing())
            except InmemError as error:  # then it runs out by itself
                let_through(error)


def holding_of(held: HeldLease) -> Holding:
    """What is held: for who holds it in another way."""
    return held._holding


class Loss:
    """Whether a lease may be lost, in the form of a `threading.Event`.

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
        left_us = None if timeout is None else round(timeout * 1e6)
        end_us = None if left_us is None else boot_us() + left_us
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
        self._due: Due[HeldLease] = Due(holding_of)
        self._thread: threading.Thread | None = None
        self._wakes_at_us = 0

    def add(self, held: HeldLease) -> None:
        """Renew one from now on.

        Raises:
            LimitError: no thread can be started.
        """
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="inmem-leases", daemon=True)
                try:
                    thread.start()  # it looks for this lease once the lock is free
                except RuntimeError as error:
                    raise LimitError(f"no thread can be started to renew: {error}", what="threads") from None
                self._thread = thread
            self._due.add(held)
            if held._holding.renew_at_us < self._wakes_at_us:
                self._changed.notify()

    def discard(self, held: HeldLease) -> None:
        """Renew it no more. The thread sees that when it wakes."""
        with self._changed:
            self._due.discard(held)

    def _run(self) -> None:
        try:
            self._renew_all()
        except BaseException:
            with self._changed:
                self._thread = None  # the next one starts another
            raise

    def _renew_all(self) -> None:
        while True:
            held = self._next()
            if held is None:
                return
            self._renew(held)
            del held  # or it would be kept until the next one is due

    def _renew(self, held: HeldLease) -> None:
        holding = held._holding
        try:
            holding.taken(holding.calls.drive(holding.renewing()))
            goes_on = True
        except InmemError as error:
            goes_on = holding.not_renewed(error)
        with self._changed:
            if goes_on and held in self._due:
                self._due.add(held)
            else:
                self._due.discard(held)
        if not goes_on:
            held.lost.tell()

    def _next(self) -> HeldLease | None:
        """The one to renew now; None if nothing was held for a while."""
        with self._changed:
            was_idle = False
            while True:
                wait_s = self._due.next_in_s()
                if wait_s is not None and wait_s <= 0:
                    return self._due.pop()
                if wait_s is None and was_idle:
                    self._thread = None
                    return None
                was_idle = wait_s is None
                sleep_s = _IDLE_S if wait_s is None else wait_s
                self._wakes_at_us = boot_us() + round(sleep_s * 1e6)
                self._changed.wait(sleep_s)


_renewals = Renewals()


def _after_fork_in_child() -> None:
    """What the parent holds is the parent's."""
    global _renewals
    _renewals = Renewals()


os.register_at_fork(after_in_child=_after_fork_in_child)
