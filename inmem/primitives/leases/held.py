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
from types import TracebackType
from typing import Any, Final, Generic, Protocol, TypeVar

from inmem.errors import ClosedError, InmemError, InvariantError, LeaseLostError, RunDeletedError
from inmem.host.clock import boot_us
from inmem.host.interrupts import let_through
from inmem.primitives.leases.calls import LeaseCalls, LeaseRecords, Taken, as_wish, lost
from inmem.primitives.leases.rules import Lease

T = TypeVar("T", bound="Holding")

_PARTS: Final = 3  # of the time for which a lease is asked: after the first it is renewed
_AGAIN_PARTS: Final = 12  # likewise, when that has failed
_AGAIN_US: Final = 20_000  # at least
_LOOK_S: Final = 1.0  # who waits for a loss looks at the clock as often: it goes on during suspend


class OfLeases(Protocol):
    """The facade by which a lease is held: see `RunLeases`."""

    calls: LeaseCalls
    records: LeaseRecords
    transact: Callable[..., Any]


class Holding:
    """A lease that is held, and until when it is so for sure."""

    def __init__(
        self, leases: OfLeases, name: str, *, ttl_s: object, holder: object, wait_s: object
    ) -> None:
        self._leases = leases
        self._wish = as_wish(name, ttl_s, holder, wait_s)
        self._taken: Taken | None = None
        self._is_gone = False  # the store has said so
        self._pid = os.getpid()
        self.renew_at_us = 0  # time since boot
        self.calls = leases.calls

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._wish.name!r}, {self._taken and self._taken.lease!r})"

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
        if self._is_gone or self._pid != os.getpid() or self._taken is None:
            return 0.0
        return (self._taken.asked_us + self._wish.ttl_us - boot_us()) / 1e6

    def begin(self, taken: Taken) -> None:
        """It was acquired."""
        self._pid = os.getpid()
        self.taken(taken)

    def taken(self, taken: Taken) -> None:
        """It was acquired or renewed."""
        self._taken = taken
        self.renew_at_us = taken.asked_us + self._wish.ttl_us // _PARTS

    def not_renewed(self, error: InmemError) -> bool:
        """It could not be renewed; whether there is use in trying again."""
        if isinstance(error, LeaseLostError | RunDeletedError):
            self._is_gone = True
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

    def check_stored(self) -> None:
        """Refuse to go on if the store has it no more. See `LeaseReads.check`."""
        self.check_process()
        self._leases.records.check(self.lease)

    def under(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options of a transaction that is committed under this lease."""
        self.check_process()
        return {**options, "lease": self.lease}


class Due(Generic[T]):
    """The leases that are held, in the order in which they are to be renewed."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._heap: list[tuple[int, int, T]] = []
        self._held: set[T] = set()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, holding: T) -> bool:
        return holding in self._held

    def add(self, holding: T) -> None:
        """One is held, or was renewed."""
        self._held.add(holding)
        heapq.heappush(self._heap, (holding.renew_at_us, next(self._numbers), holding))

    def discard(self, holding: T) -> None:
        """One is held no more."""
        self._held.discard(holding)
        if len(self._heap) > 2 * len(self._held) + 64:
            self._heap = [each for each in self._heap if each[2] in self._held]
            heapq.heapify(self._heap)

    def next_in_s(self) -> float | None:
        """How long there is nothing to renew; None if nothing is held."""
        while self._heap and self._heap[0][2] not in self._held:
            heapq.heappop(self._heap)
        return max(0.0, (self._heap[0][0] - boot_us()) / 1e6) if self._heap else None

    def pop(self) -> T:
        """The first one."""
        return heapq.heappop(self._heap)[2]


class HeldLease(Holding):
    """A lease that is held while a `with` block runs. Made by `leases.hold`.

    `lease` and `token` are the lease's. `lost` says whether it may be lost.
    """

    def __init__(
        self, leases: OfLeases, name: str, *, ttl_s: object, holder: object, wait_s: object
    ) -> None:
        super().__init__(leases, name, ttl_s=ttl_s, holder=holder, wait_s=wait_s)
        self.lost = Loss(self)

    def check(self) -> None:
        """Refuse to go on if it is lost. Cost: about 3 µs.

        Raises:
            LeaseLostError: another one has it, or nobody; or this is a forked child of the holder.
            RunDeletedError: the run was deleted.
        """
        self.check_stored()

    def transact(self, fn: Callable[[Any], Any], **options: Any) -> Any:
        """`transact` of the run of the lease, with the lease checked at the commit. See `Database.transact`.

        Raises:
            LeaseLostError: another one has it, or nobody; nothing is stored.
        """
        return self._leases.transact(fn, **self.under(options))

    def __enter__(self) -> HeldLease:
        if self._taken is not None:
            raise InvariantError("this lease has had its block", hint="Call hold() again.")
        self.begin(self.calls.drive(self.calls.taking(self._wish)))
        _renewals.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pid != os.getpid():
            return
        _renewals.discard(self)
        if self._is_gone:
            return
        try:
            self.calls.drive(self.calls.releasing(self.lease))
        except InmemError as failed:  # then it runs out by itself
            let_through(failed)
        self._is_gone = True


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
    """The one thread that renews what this process holds. It ends when nothing is held."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: Due[HeldLease] = Due()
        self._thread: threading.Thread | None = None

    def add(self, held: HeldLease) -> None:
        """Renew one from now on."""
        with self._changed:
            self._due.add(held)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="inmem-leases", daemon=True)
                thread.start()
                self._thread = thread
            self._changed.notify()

    def discard(self, held: HeldLease) -> None:
        """Renew it no more."""
        with self._changed:
            self._due.discard(held)
            self._changed.notify()

    def _run(self) -> None:
        while (held := self._next()) is not None:
            try:
                held.taken(held.calls.drive(held.calls.renewing(held.lease, 0)))
                goes_on = True
            except InmemError as error:
                goes_on = held.not_renewed(error)
            with self._changed:
                if goes_on and held in self._due:
                    self._due.add(held)
                else:
                    self._due.discard(held)
            if not goes_on:
                held.lost.tell()

    def _next(self) -> HeldLease | None:
        """The one to renew now; None if nothing is held."""
        with self._changed:
            while (wait_s := self._due.next_in_s()) is not None:
                if wait_s <= 0:
                    return self._due.pop()
                self._changed.wait(wait_s)
            self._thread = None
            return None


_renewals = Renewals()


def _after_fork_in_child() -> None:
    """What the parent holds is the parent's."""
    global _renewals
    _renewals = Renewals()


os.register_at_fork(after_in_child=_after_fork_in_child)
