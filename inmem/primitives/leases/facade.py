"""Leases: one holder at a time, and a token that tells late holders from present ones.

Invariant: whatever is committed under a lease is committed while its token
holds: the writer decides. Here is nothing that is decided by a client's clock.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Generic, NoReturn, TypeVar

from inmem.engines.base import Sink, View
from inmem.keys import TypeTag, encode_name, encode_prefix, range_of
from inmem.pending import Pending
from inmem.primitives._common import check_limit
from inmem.primitives._paging import past
from inmem.primitives.byrun import ByRun, by_run
from inmem.primitives.leases import rules
from inmem.primitives.leases.calls import (
    LeaseCalls,
    LeaseHolder,
    LeaseRecords,
    arguments_of,
    as_lease,
    as_wish,
    check_ttl,
    checking,
    renewed,
)
from inmem.primitives.leases.held import HeldLease
from inmem.primitives.leases.shown import Lease, lease_of
from inmem.record import payload_of
from inmem.stepping import FacadeWaits
from inmem.values import text_of

B = TypeVar("B")  # whether a lease was held, or what will say so
Seconds = float | timedelta

HOLD_S: Final = 30.0  # for which `hold` asks, and asks again at a third


class LeaseReads:
    """Reads of one run's leases."""

    __slots__ = ("_records",)

    def __init__(self, view: View, prefix: bytes, run_id: str) -> None:
        self._records = LeaseRecords(view, prefix, run_id)

    def get(self, name: str) -> Lease | None:
        """A lease, also if it ran out and nobody has taken it; None if nobody has it. Cost: about 3 µs."""
        records = self._records
        found = records.find(name)
        return None if found is None else lease_of(records.prefix, records.run_id, name, found)

    def list(
        self, prefix: str | None = None, *, limit: int | None = None, start_after: str | None = None,
        reverse: bool = False,
    ) -> builtins.list[Lease]:
        """Leases whose names start with `prefix`, in byte order. Cost: about 3 µs a lease.

        `start_after` continues after a name (before it, if `reverse`).
        """
        records = self._records
        head = rules.lease_key(records.prefix, b"")
        place = None if start_after is None else head + encode_name(start_after, "start_after")
        start, end = past(
            *range_of(records.prefix, TypeTag.LEASE, encode_prefix(prefix)), place, bool(reverse)
        )
        left = limit = check_limit(limit)
        found: builtins.list[Lease] = []
        while page := records.view.scan(start, end, limit=left, reverse=bool(reverse)):
            for key, stored in page:
                record = rules.unpack(payload_of(stored))
                if not record.is_free:
                    name = text_of(key[len(head) :])
                    found.append(lease_of(records.prefix, records.run_id, name, record))
            if left is None or len(found) == limit:
                break
            left = (limit or 0) - len(found)  # some were free
            start, end = past(start, end, page[-1][0], bool(reverse))
        return found

    def check(self, lease: Lease | LeaseHolder) -> None:
        """Refuse a lease that is not held any more; in a transaction at its commit. Cost: about 3 µs.

        One that ran out is still held, until somebody acquires it.

        Raises:
            LeaseLostError: another one has it, or nobody.
            RunDeletedError: the run was deleted.
            InvalidInputError: it is no lease of this run.
        """
        self._records.check(self._records.checked(lease))


class Leases(LeaseReads, Generic[B]):
    """One run's leases."""

    __slots__ = ("_sink",)

    def __init__(self, view: View, sink: Sink, prefix: bytes, run_id: str) -> None:
        super().__init__(view, prefix, run_id)
        self._sink = sink

    def renew(self, lease: Lease | LeaseHolder, ttl_s: Seconds | None = None) -> Lease:
        """Hold a lease for longer, from now on: as it is then. Cost: one round trip.

        Without `ttl_s` for as long as it was acquired for. Works after it ran
        out too, if nobody has taken it.

        Raises:
            LeaseLostError: another one has it, or nobody.
            RunDeletedError: the run was deleted.
        """
        ttl_us = 0 if ttl_s is None else check_ttl(ttl_s)
        held = self._records.checked(lease)
        arguments = [*arguments_of(held), ttl_us]

        def later(expires_at: int) -> Lease:
            return renewed(held, expires_at)

        again: Lease = self._sink.ask("lease.renew", arguments, later)
        return again

    def release(self, lease: Lease | LeaseHolder) -> B:
        """Give a lease back, to the first who waits for it; False if it was lost before.

        Raises:
            RunDeletedError: the run was deleted.
        """
        was_held: B = self._sink.call("lease.release", arguments_of(self._records.checked(lease)), Pending)
        return was_held


class RunLeases(Leases[bool]):
    """One run's leases outside a transaction: each change is a commit of its own."""

    __slots__ = ("_calls",)

    def __init__(
        self, view: View, sink: Sink, prefix: bytes, run_id: str, transact: Callable[..., Any],
        waits: FacadeWaits,
    ) -> None:
        super().__init__(view, sink, prefix, run_id)
        self._calls = LeaseCalls(self._records, sink, waits, transact, _records_of)

    def acquire(
        self, name: str, *, ttl_s: Seconds, holder: str | None = None, wait_s: Seconds | None = 0.0
    ) -> Lease:
        """Take a lease for `ttl_s` seconds; the lease, with its token. Cost: one round trip.

        A lease that another process holds can be taken when it has run out or
        was released. `wait_s` is how long to wait for that, None for ever; the
        first in the line gets it. `holder` says who has it: by default host,
        process and program, different for each call. It is not re-entrant.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     lease = db.leases.acquire("run-1", "deploy", ttl_s=30)
        ...     db.transact("run-1", lambda txn: txn.kv.put("step", 1), lease=lease)
        ...     db.leases.release(lease)
        True

        Raises:
            LeaseHeldError: another one has it; see `holder` and `expires_at`.
            RunDeletedError: the run was deleted.
            InvalidInputError: an argument is wrong.
        """
        wish = as_wish(name, ttl_s, holder, wait_s)
        lease: Lease = self._calls.drive(self._calls.acquiring(wish))
        return lease

    def hold(
        self, name: str, *, ttl_s: Seconds = HOLD_S, holder: str | None = None,
        wait_s: Seconds | None = 0.0,
    ) -> HeldLease:
        """Hold a lease while a block runs: it is acquired, renewed at each third of `ttl_s`, and released.

        `ttl_s` is 0.1 at least.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     with db.leases.hold("run-1", "deploy") as held:
        ...         held.transact(lambda txn: txn.kv.put("step", 1))
        ...         held.lost.is_set()
        False

        Raises:
            LeaseHeldError: where the block begins, see `acquire`.
        """
        return HeldLease(self._calls, name, ttl_s=ttl_s, holder=holder, wait_s=wait_s)


def _records_of(view: Any) -> LeaseRecords:
    """The leases that a snapshot shows."""
    leases: LeaseReads = view.leases
    return leases._records


class TransactionLeases(Leases[Pending[bool]]):
    """One run's leases inside a transaction."""

    __slots__ = ()

    def acquire(self, *_: object, **__: object) -> NoReturn:
        """Not in a transaction: the token is the version of the commit that acquires it.

        Raises:
            InvariantError: always.
        """
        self._sink.ask("lease.acquire", [], bool, alone="acquire")
        raise AssertionError("the sink of a transaction refuses it")

    def check(self, lease: Lease | LeaseHolder) -> None:
        """Refuse the commit unless the lease is held then; until then nothing is looked at.

        It makes no conflict with renewals.

        Raises:
            LeaseLostError: at the commit: another one has it, or nobody; nothing is stored.
            InvalidInputError: it is no lease of this run.
        """
        checked: None = self._sink.write([checking(self._records.checked(lease))])
        return checked


class LeaseStore(ByRun[RunLeases]):
    """Named leases per run: at most one holder at a time, with a token that only grows.

    A late holder does no harm: once another process has acquired the lease,
    commits under the old one are refused.

    >>> import inmem
    >>> with inmem.open() as db:
    ...     first = db.leases.acquire("run-1", "deploy", ttl_s=30)
    ...     released = db.leases.release(first)
    ...     second = db.leases.acquire("run-1", "deploy", ttl_s=30)
    ...     second.token > first.token
    True
    """

    __slots__ = ()

    KIND = "leases"

    acquire = by_run(RunLeases.acquire)
    hold = by_run(RunLeases.hold)
    get = by_run(RunLeases.get)
    list = by_run(RunLeases.list)

    def renew(self, lease: Lease | LeaseHolder, ttl_s: Seconds | None = None) -> Lease:
        """Hold a lease for longer, from now on: as it is then. Cost: one round trip.

        Without `ttl_s` for as long as it was acquired for. Works after it ran
        out too, if nobody has taken it.

        Raises:
            LeaseLostError: another one has it, or nobody.
            RunDeletedError: the run was deleted.
        """
        return self._of_lease(lease).renew(lease, ttl_s)

    def release(self, lease: Lease | LeaseHolder) -> bool:
        """Give a lease back, to the first who waits for it; False if it was lost before.

        Raises:
            RunDeletedError: the run was deleted.
        """
        return self._of_lease(lease).release(lease)

    def check(self, lease: Lease | LeaseHolder) -> None:
        """Refuse a lease that is not held any more. Cost: about 3 µs.

        One that ran out is still held, until somebody acquires it.

        Raises:
            LeaseLostError: another one has it, or nobody.
            RunDeletedError: the run was deleted.
            InvalidInputError: it is no lease of this namespace.
        """
        return self._of_lease(lease).check(lease)

    def _of_lease(self, lease: Lease | LeaseHolder) -> RunLeases:
        run_id = as_lease(lease).run_id
        database: Any = self._database
        scope = database.shared(run_id[1:]) if run_id.startswith("@") else database.run(run_id)
        leases: RunLeases = scope.leases
        return leases
