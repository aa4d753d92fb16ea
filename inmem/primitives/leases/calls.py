"""What the facades of leases ask: of what is stored, and of the writer, one step after the other."""

from __future__ import annotations

import math
import os
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, Final, NamedTuple

from inmem.client.retry import check_timeout, resolved_as
from inmem.engines.base import Sink, View
from inmem.errors import (
    CommitUnknownError,
    InmemError,
    InvalidInputError,
    LeaseHeldError,
    LeaseLostError,
    RunDeletedError,
    WaitTimeoutError,
    type_name,
)
from inmem.host.clock import boot_us
from inmem.host.interrupts import is_foreign, let_through
from inmem.keys import encode_name, shorten
from inmem.primitives._common import check_number, check_prefix_of
from inmem.primitives.leases import rules
from inmem.primitives.leases.rules import LeaseRecord
from inmem.primitives.leases.shown import Lease
from inmem.record import payload_of
from inmem.stepping import FacadeWaits, Steps, Until
from inmem.writeset import OP_CALL

_FOR_EVER_US: Final = 1 << 60
_LATER_US: Final = 100_000  # after a lease ran out, for those who are not the first to wait for it
_LOOK_US: Final = 1_000_000  # between the looks of these, at least: those before them may have died


class Taken(NamedTuple):
    """A lease, and the time since boot before it was asked for: it is held for so long from then at least."""

    lease: Lease
    asked_us: int


class Wish(NamedTuple):
    """What was given to `acquire`, checked."""

    name: str
    holder: str
    ttl_us: int
    wait_s: float


class LeaseAnswer(NamedTuple):
    """What the writer says to one who wants a lease: with a token he has it, with a ticket he waits."""

    token: int
    ticket: int
    acquired_at: int
    expires_at: int
    holder: str

    @property
    def is_free(self) -> bool:
        """Whether nobody has it: there may be others, who wait. To ask again goes on to find them."""
        return not self.holder


_NOBODY: Final = LeaseAnswer(0, 0, 0, 0, "")


class Claim:
    """How the writer knows a call again, whether or not that has heard of an answer."""

    __slots__ = ("_pid", "_place", "number", "ticket")

    def __init__(self, prefix: bytes, name: str) -> None:
        self.number = int.from_bytes(os.urandom(8), "big") >> 1 | 1
        self.ticket = 0  # while it waits, if it knows
        self._place = (prefix, name.encode())
        self._pid = os.getpid()

    @property
    def is_mine(self) -> bool:
        """See `Leaves`."""
        return self._pid == os.getpid()

    def leave_op(self) -> list[Any]:
        """See `Leaves`."""
        return [OP_CALL, "lease.leave", [*self._place, self.number, self.ticket]]


class LeaseHolder:
    """Holds a lease, and can be given wherever one is wanted."""

    __slots__ = ()

    def _to_use(self) -> Lease:
        raise NotImplementedError


def _check_lease(lease: Lease) -> None:
    """Refuse a lease that was made by hand, and that no store can have given.

    Raises:
        InvalidInputError: says what is wrong.
    """
    encode_name(lease.name, "lease")
    if type(lease.run_id) is not str or type(lease.prefix) is not bytes or not lease.prefix.isascii():
        raise InvalidInputError(f"lease {lease.name!r} names no run: acquire it", argument="lease")
    check_number(lease.token, "lease", "its token")
    check_number(lease.acquired_at, "lease", "its acquired_at")


def as_lease(lease: object) -> Lease:
    """The lease that was given, by itself or by what holds it.

    Raises:
        InvalidInputError: it is none.
        InvariantError: it is not held yet.
        LeaseLostError: this is a forked child of the holder.
    """
    found = lease._to_use() if isinstance(lease, LeaseHolder) else lease
    if not isinstance(found, Lease):
        raise InvalidInputError(f"lease must be a Lease, not {type_name(lease)}", argument="lease")
    _check_lease(found)
    return found


class LeaseRecords:
    """The leases of one run, as stored."""

    __slots__ = ("prefix", "run_id", "view")

    def __init__(self, view: View, prefix: bytes, run_id: str) -> None:
        self.view = view
        self.prefix = prefix
        self.run_id = run_id

    def find(self, name: str) -> LeaseRecord | None:
        """A lease, None if nobody has it."""
        record = self.view.read(rules.lease_key(self.prefix, encode_name(name, "name")))
        found = None if record is None else rules.unpack(payload_of(record))
        return None if found is None or found.is_free else found

    def checked(self, lease: object) -> Lease:
        """The lease that was given, if it is one of this run.

        Raises:
            InvalidInputError: it is none, or is of another run or namespace.
        """
        lease = as_lease(lease)
        check_prefix_of(f"lease {lease.name!r}", "lease", lease.prefix, self.prefix)
        return lease

    def check(self, lease: Lease) -> None:
        """Refuse a lease that is not held any more. See `LeaseReads.check`."""
        found = self.find(lease.name)
        if found is None or found[:2] != (lease.token, lease.acquired_at):
            if found is None and self.view.is_deleted(self.prefix):
                raise RunDeletedError(f"run {self.run_id} was deleted", run_id=self.run_id)
            raise lost(lease)


def lost(lease: Lease, why: str = "it ran out and was taken, or was released") -> LeaseLostError:
    """What is said to who holds a lease no more."""
    return LeaseLostError(
        f"lease {lease.name!r} is not held with token {lease.token}: {why}", name=lease.name,
        token=lease.token,
    )


def arguments_of(lease: Lease) -> list[Any]:
    """How a lease is named to the writer."""
    return [lease.prefix, lease.name.encode(), lease.token, lease.acquired_at]


def checking(lease: Lease) -> list[Any]:
    """The operation that refuses a commit unless a lease is held then."""
    return [OP_CALL, "lease.check", arguments_of(lease)]


def checks_of(lease: object) -> list[list[Any]]:
    """What a transaction that is made under a lease does first.

    Raises:
        InvalidInputError: it is none.
    """
    if lease is None:
        return []
    return [checking(as_lease(lease))]


def as_wish(name: object, ttl_s: object, holder: object, wait_s: object) -> Wish:
    """What was given to `acquire`, checked.

    Raises:
        InvalidInputError: names what is wrong.
    """
    text = encode_name(name, "name").decode()
    return Wish(text, check_holder(holder), check_ttl(ttl_s), check_wait(wait_s))


def check_ttl(ttl_s: object) -> int:
    """The microseconds of a time for which a lease is held."""
    return max(1, round(check_timeout(ttl_s, "ttl_s") * 1e6))


def check_wait(wait_s: object) -> float:
    """The seconds of a time to wait; infinite for None."""
    if wait_s is None:
        return math.inf
    if (type(wait_s) in (int, float) or isinstance(wait_s, timedelta)) and not wait_s:
        return 0.0
    return check_timeout(wait_s, "wait_s")


def check_holder(holder: object) -> str:
    """The name of a holder; one that nobody else has for None."""
    if holder is None:
        return f"{_this_process(os.getpid())}, {os.urandom(6).hex()}"
    if not isinstance(holder, str):
        raise InvalidInputError(f"holder must be a str, not {type_name(holder)}", argument="holder")
    try:
        size = len(holder.encode())
    except UnicodeEncodeError:
        raise InvalidInputError("holder has a lone surrogate", argument="holder") from None
    if not 0 < size <= rules.MAX_HOLDER_BYTES:
        raise InvalidInputError(
            f"holder must be 1 to {rules.MAX_HOLDER_BYTES} bytes of UTF-8, not {shorten(holder)}",
            argument="holder",
        )
    return holder if type(holder) is str else str.__str__(holder)


@cache
def _this_process(pid: int) -> str:
    program = os.path.basename(sys.argv[0] if sys.argv else "") or "python"
    name = f"{socket.gethostname()}, process {pid}, {program}"
    return name.encode("utf-8", "replace")[: rules.MAX_HOLDER_BYTES - 20].decode("utf-8", "ignore")


class LeaseCalls:
    """What the writer is asked about the leases of one run."""

    __slots__ = ("_prefix", "_records_of", "_run_id", "_sink", "_waits", "records", "transact")

    def __init__(
        self, records: LeaseRecords, sink: Sink, waits: FacadeWaits, transact: Callable[..., Any],
        records_of: Callable[[Any], LeaseRecords],
    ) -> None:
        self.records = records
        self.transact = transact  # of the run
        self._sink = sink
        self._waits = waits
        self._prefix = records.prefix
        self._run_id = records.run_id
        self._records_of = records_of  # of what somebody who waits looks at

    def drive(self, steps: Steps[Any]) -> Any:
        """Take steps of this; what they return."""
        return self._waits.drive(steps)

    def acquiring(self, wish: Wish) -> Steps[Lease]:
        """Acquire a lease. See `RunLeases.acquire`."""
        taken = yield from self.taking(wish)
        return taken.lease

    def taking(self, wish: Wish) -> Steps[Taken]:
        """Acquire a lease; whatever ends this, nothing of it stays behind.

        By the number that it draws the writer finds what it has got, also if nobody has heard of that.
        """
        claim = Claim(self._prefix, wish.name)
        leaving = self._waits.leaving
        try:
            leaving.add(claim)
            return (yield from self._taking(wish, claim))
        except GeneratorExit:
            raise
        except BaseException as error:
            # What the store refuses has had no effect, or is for the caller to find out.
            if not isinstance(error, InmemError) or is_foreign(error):
                yield from self._leaving(wish, claim)
            raise
        finally:
            leaving.discard(claim)

    def _at_the_end(self, wish: Wish, claim: Claim) -> Steps[LeaseAnswer]:
        """His time is over: he has the lease if it can be taken, or waits no more."""
        try:
            answer: LeaseAnswer = yield from self._asking("confirm", wish, claim.number, claim.ticket)
        except InmemError as error:
            let_through(error)
        else:
            if answer.token:
                return answer
        return (yield from self._leaving(wish, claim))

    def _leaving(self, wish: Wish, claim: Claim) -> Steps[LeaseAnswer]:
        try:
            return (yield from self._asking("leave", wish, claim.number, claim.ticket))
        except InmemError as error:  # he ceases to be alive, or it costs the others a second
            let_through(error)
            return _NOBODY

    def _taking(self, wish: Wish, claim: Claim) -> Steps[Taken]:
        deadline = time.monotonic() + wish.wait_s
        is_over = False
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            wait_us = _FOR_EVER_US if left_s == math.inf else round(left_s * 1e6)
            asked_us = boot_us()
            wanted = wish.holder, wish.ttl_us, wait_us, claim.number
            answer = yield from self._asking("acquire", wish, *wanted)
            claim.ticket = answer.ticket
            while claim.ticket:
                try:
                    yield Until(self._looking(wish.name, claim.ticket, deadline), _left(deadline))
                except WaitTimeoutError:
                    asked_us = boot_us()
                    answer = yield from self._at_the_end(wish, claim)
                    is_over = True
                    break
                except RunDeletedError:
                    raise
                except InmemError:  # there is no thread to wait in, for example
                    yield from self._leaving(wish, claim)
                    raise
                asked_us = boot_us()
                answer = yield from self._asking("confirm", wish, claim.number, claim.ticket)
                claim.ticket = answer.ticket
            if answer.token or is_over or (time.monotonic() >= deadline and not answer.is_free):
                return Taken(self._lease(wish, answer), asked_us)

    def _asking(self, what: str, wish: Wish, *arguments: Any) -> Steps[LeaseAnswer]:
        given = [self._prefix, wish.name.encode(), *arguments]
        try:
            answer: LeaseAnswer = yield self._sink.ask(f"lease.{what}", given, _answered, alone="acquire")
            return answer
        except CommitUnknownError as error:
            raise resolved_as(error, lambda answer: self._lease(wish, answer)) from None

    def _looking(self, name: str, ticket: int, deadline: float) -> Callable[[Any], bool]:
        """True as soon as the lease is given to who waits with a ticket, or can be taken.

        He watches his own entry, which goes when he is given the lease, and the one before it: so a release
        wakes two, however many wait. The first of all watches the lease too. The others look at it without
        watching it, for the time when it runs out: if the first does not notice that they do, a moment later.
        They look every few seconds at least. Those before them may have died, and what they heard is no
        longer so. It is true as well when it is time to say that he is alive, unless he leaves before that
        matters.
        """
        encoded = name.encode()
        mine = rules.waiter_key(self._prefix, encoded, ticket)
        first, _ = rules.waiters_of(self._prefix, encoded)
        lease = rules.lease_key(self._prefix, encoded)
        latest = self.records

        def look(view: Any) -> bool:
            watched = self._records_of(view).view
            entry = watched.read(mine)
            if entry is None:
                return True
            before = latest.view.scan(first, mine, limit=1, reverse=True)
            watched.read(before[0][0] if before else lease)
            found = latest.find(name)
            if found is None:
                return True
            now_us = latest.view.now_us()
            runs_out_us = found.expires_at + (_LATER_US if before else 0)
            alive_us = rules.unpack_waiter(payload_of(entry)).until - now_us
            look_us = max(_LOOK_US, min(alive_us // 4, 4 * _LOOK_US)) if before else _FOR_EVER_US
            if alive_us < (deadline - time.monotonic()) * 1e6:
                look_us = min(look_us, alive_us - rules.AGAIN_US)
            look_us = min(look_us, runs_out_us - now_us)
            if look_us <= 0:
                return True
            watched.until(now_us + look_us)
            return False

        return look

    def _lease(self, wish: Wish, answer: LeaseAnswer) -> Lease:
        if not answer.token:
            raise _held(wish, answer)
        token, _, acquired_at, expires_at, holder = answer
        return Lease(wish.name, holder, token, acquired_at, expires_at, self._run_id, self._prefix)

    def renewing(self, lease: Lease, ttl_us: int) -> Steps[Taken]:
        """Hold a lease for longer."""
        asked_us = boot_us()
        expires_at = yield self._sink.ask("lease.renew", [*arguments_of(lease), ttl_us], int)
        return Taken(renewed(lease, expires_at), asked_us)

    def releasing(self, lease: Lease) -> Steps[bool]:
        """Give a lease back."""
        was_held: bool = yield self._sink.ask("lease.release", arguments_of(lease), bool)
        return was_held


def _answered(result: list[Any]) -> LeaseAnswer:
    return LeaseAnswer(*result)


def renewed(lease: Lease, expires_at: int) -> Lease:
    """A lease that is held until later."""
    return Lease(
        lease.name, lease.holder, lease.token, lease.acquired_at, expires_at, lease.run_id, lease.prefix
    )


def _left(deadline: float) -> float | None:
    return None if deadline == math.inf else max(1e-6, deadline - time.monotonic())


def _held(wish: Wish, answer: LeaseAnswer) -> LeaseHeldError:
    by = f"held by {answer.holder}" if answer.holder else "not free in time"
    return LeaseHeldError(
        f"lease {wish.name!r} is {by}", name=wish.name, holder=answer.holder, expires_at=answer.expires_at
    )
