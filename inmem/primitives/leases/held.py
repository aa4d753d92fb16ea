"""Leases that are held while a block runs. See `inmem.primitives.holding`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, overload

from inmem.errors import InmemError, InvalidInputError, InvariantError
from inmem.host.interrupts import let_through
from inmem.pending import Pending
from inmem.primitives.holding import Holding, Loss, drop, insisted, keep
from inmem.primitives.leases.calls import LeaseCalls, LeaseHolder, Taken, as_wish, lost
from inmem.primitives.leases.shown import Lease
from inmem.steps import Steps

R = TypeVar("R")

LEAST_US: Final = 100_000  # for which a lease is held that is renewed all the time


class HeldUnder(Holding):
    """A lease that is held, by the calls of a facade."""

    def __init__(
        self, calls: LeaseCalls, name: str, *, ttl_s: object, holder: object, wait_s: object
    ) -> None:
        self.calls = calls
        self._wish = as_wish(name, ttl_s, holder, wait_s)
        if self._wish.ttl_us < LEAST_US:
            raise InvalidInputError(
                f"ttl_s of a lease that is held must be at least {LEAST_US / 1e6} s,"
                f" not {self._wish.ttl_us / 1e6} s",
                argument="ttl_s", hint="Leave `ttl_s` out, or acquire the lease without holding it.",
            )
        self._taken: Taken | None = None
        super().__init__(self._wish.ttl_us)

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

    def taking(self) -> Steps[None]:
        """Acquire it.

        Raises:
            InvariantError: it had its block.
        """
        if self._taken is not None:
            raise InvariantError("this lease has had its block", hint="Call hold() again.")
        self.begin()
        self._taken = yield from self.calls.taking(self._wish)
        self.hold(self._taken.asked_us)

    def renewing(self) -> Steps[None]:
        """Renew it, for as long as it was acquired for, whatever somebody else has renewed it for."""
        self._taken = yield from self.calls.renewing(self.lease, self._wish.ttl_us)

    def releasing(self) -> Steps[bool]:
        """Give it back."""
        self.end()
        lease = self.lease
        return insisted(lambda: self.calls.releasing(lease))

    def check_process(self) -> None:
        """Refuse what a forked child does with a lease of its parent.

        Raises:
            LeaseLostError: it owns nothing.
        """
        if not self.is_mine:
            raise lost(self.lease, "the process that acquired it has forked, and this is the child")

    def to_use(self) -> Lease:
        """The lease, for this process to use."""
        self.check_process()
        return self.lease

    def check(self) -> None:
        """See `HeldLease.check`."""
        self.calls.records.check(self.to_use())

    def transact(self, fn: Callable[[Any], Any], options: dict[str, Any]) -> Any:
        """What `transact` of the run gives, with this lease."""
        return self.calls.transact(fn, lease=self.to_use(), **options)


class HeldLease(LeaseHolder):
    """A lease that is held while a `with` block runs. Made by `leases.hold`.

    `lost` says whether it may be lost, in the form of a `threading.Event`.
    """

    __slots__ = ("__weakref__", "_holding", "lost")

    def __init__(
        self, calls: LeaseCalls, name: str, *, ttl_s: object, holder: object, wait_s: object
    ) -> None:
        self._holding = HeldUnder(calls, name, ttl_s=ttl_s, holder=holder, wait_s=wait_s)
        self.lost = Loss(self._holding)
        self._holding.lost = self.lost

    def __repr__(self) -> str:
        return f"HeldLease({self._holding.described()})"

    def _to_use(self) -> Lease:
        return self._holding.to_use()

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
        holding.calls.drive(holding.taking())
        try:
            keep(holding)
        except BaseException:
            holding.calls.drive(holding.releasing())
            raise
        return self

    def __exit__(self, *_: object) -> None:
        holding = self._holding
        drop(holding)
        if holding.is_held:
            try:
                holding.calls.drive(holding.releasing())
            except InmemError as error:  # then it runs out by itself
                let_through(error)


def holding_of(held: HeldLease) -> HeldUnder:
    """What is held: for who holds it in another way."""
    return held._holding
