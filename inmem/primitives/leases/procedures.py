"""Procedures of leases: who gets one, by the store's clock, in the order of arrival."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

from inmem.commit.arguments import check_name, check_prefix, check_time, check_type
from inmem.commit.footprint import Footprint, exactly
from inmem.commit.workspace import Workspace
from inmem.errors import InvalidInputError, InvariantError, LeaseLostError
from inmem.keys import MAX_NAME_BYTES
from inmem.primitives.importing import importing_records, parts
from inmem.primitives.leases import rules
from inmem.primitives.leases.rules import (
    ALIVE_US,
    FAR_ALIVE_US,
    FRONT,
    GIVEN_US,
    LATE_US,
    MAX_HOLDER_BYTES,
    LeaseRecord,
    Waiter,
)
from inmem.values import text_of

# What `acquire` and `confirm` come to: `[token, ticket, acquired at, expires at, holder]`. With a token the
# caller has the lease. With a ticket he waits. With neither he does not: another one has it.
LeaseAnswer = list[Any]
_LAST: Final = (1 << 63) - 1
_FORGOTTEN: Final = 64  # of those who waited, at once
_LOOKED_AT: Final = 256  # at each end, for one whose ticket is not known


class _Held:
    """A lease as it is now, and those who wait for it."""

    def __init__(self, workspace: Workspace, prefix: object, name: object) -> None:
        self._prefix = check_prefix(prefix)
        self.name = check_name(name, MAX_NAME_BYTES)
        self._name = self.name.encode()
        self.key = rules.lease_key(self._prefix, self._name)
        self._workspace = workspace
        workspace.check_open(self.key)
        payload = workspace.get(self.key)
        self.record = None if payload is None else rules.unpack(payload)
        # In a transaction a call has the time at which it ran there; what it shows is of that time.
        self.now_us = max(workspace.now_us, workspace.stamp_us)

    def is_of(self, token: object, acquired_at: object) -> bool:
        """Whether a token still holds it."""
        record = self.record
        return record is not None and not record.is_free and record[:2] == (token, acquired_at)

    def is_given(self, claim: int) -> bool:
        """Whether a call that drew this number has it."""
        return self.record is not None and self.record.claim == claim

    def check(self, token: int, acquired_at: int) -> LeaseRecord:
        """The lease, if a token still holds it.

        Raises:
            LeaseLostError: it does not.
        """
        check_type("token", token, int)
        check_type("acquired_at", acquired_at, int)
        if not self.is_of(token, acquired_at) or self.record is None:
            raise lost(self.name, token)
        return self.record

    def is_takeable(self) -> bool:
        """Whether nobody holds it, or he has had his time."""
        return self.record is None or self.record.is_free or self.record.expires_at <= self.now_us

    def put(self, record: LeaseRecord) -> None:
        self._workspace.put(self.key, rules.pack(record))
        self.record = record

    def give(self, holder: bytes, ttl_us: int, claim: int, for_us: int) -> None:
        """Give it to somebody for some time; its token is above all earlier ones."""
        token = self._workspace.version
        if self.record is not None:
            token = max(token, self.record.token + 1)
        expires_at = min(self.now_us + for_us, _LAST)
        self.put(LeaseRecord(token, self.now_us, expires_at, ttl_us, claim, holder))

    def free(self) -> None:
        """Nobody holds it."""
        if self.record is not None and self.record.token > self._workspace.version:
            self.put(self.record._replace(expires_at=0, claim=0, holder=b""))
        elif self.record is not None:
            self._workspace.delete(self.key)
            self.record = None

    def hand_on(self) -> bool:
        """Give it to the first who waits; forget those whose time is over. False if nobody waits.

        It looks at some: one commit has to forget them, with whatever else is in it. If all of these are
        gone it is not given yet, and whoever comes next goes on.
        """
        gone = []
        found = None
        for key, payload in self._workspace.scan(*rules.waiters_of(self._prefix, self._name)):
            gone.append(key)
            waiter = rules.unpack_waiter(payload)
            if waiter.until > self.now_us:
                found = waiter
                break
            if len(gone) == _FORGOTTEN:
                break
        for key in gone:
            self._workspace.delete(key)
        if found is not None:
            self.give(found.holder, found.ttl_us, found.claim, GIVEN_US)
        elif len(gone) == _FORGOTTEN:
            self.free()
            return True
        return found is not None

    def wait(self, waiter: Waiter) -> int:
        """Somebody waits from now on; his ticket."""
        ticket = self._workspace.version
        key = rules.waiter_key(self._prefix, self._name, ticket)
        self._workspace.put(key, rules.pack_waiter(waiter))
        return ticket

    def alive_us(self, before: bytes | None = None) -> int:
        """For how long one is taken to be alive who waits in a place, by default in the last."""
        start, end = rules.waiters_of(self._prefix, self._name)
        found = self._workspace.first_keys(start, before or end, FRONT)
        return ALIVE_US if len(found) < FRONT else FAR_ALIVE_US

    def go_on_waiting(self, ticket: int) -> bool:
        """Who waits with a ticket is alive; False if he has been passed over."""
        key = rules.waiter_key(self._prefix, self._name, ticket)
        payload = self._workspace.get(key)
        if payload is None:
            return False
        waiter = rules.unpack_waiter(payload)
        until = self.now_us + self.alive_us(key)
        if waiter.until < until - LATE_US:
            self._workspace.put(key, rules.pack_waiter(waiter._replace(until=until)))
        return True

    def waiting(self, claim: int, ticket: int) -> bytes | None:
        """The key of one who waits, by his ticket; if that is 0, by the number that he has drawn.

        Then he is looked for among the first and the last. Whoever is elsewhere ceases to be alive soon.
        """
        if ticket:
            key = rules.waiter_key(self._prefix, self._name, ticket)
            return key if self._workspace.record(key) is not None else None
        span = rules.waiters_of(self._prefix, self._name)
        for is_last in (True, False):
            for key, payload in islice(self._workspace.scan(*span, reverse=is_last), _LOOKED_AT):
                if rules.unpack_waiter(payload).claim == claim:
                    return key
        return None

    def answer(self, *, is_mine: bool = False, ticket: int = 0) -> LeaseAnswer:
        record = self.record
        if record is None or record.is_free:
            return [0, ticket, 0, 0, ""]
        holder = text_of(record.holder)
        return [record.token if is_mine else 0, ticket, record.acquired_at, record.expires_at, holder]


def lost(name: str, token: int) -> LeaseLostError:
    """What is said to a token that does not hold any more."""
    return LeaseLostError(
        f"lease {name!r} is not held with token {token}: it ran out and was taken, or was released",
        name=name, token=token,
    )


def acquire(
    workspace: Workspace, prefix: bytes, name: bytes, holder: str, ttl_us: int, wait_us: int, claim: int
) -> LeaseAnswer:
    """Take a lease that is free, or wait for it."""
    found = _Held(workspace, prefix, name)
    who = _check_holder(holder)
    _check_lasting(ttl_us)
    check_time(wait_us, "wait_us")
    _check_claim(claim)
    if found.is_takeable() and not found.hand_on():
        found.give(who, ttl_us, claim, ttl_us)
        return found.answer(is_mine=True)
    ticket = 0
    if wait_us:
        until = found.now_us + min(wait_us, found.alive_us())
        ticket = found.wait(Waiter(until, ttl_us, claim, who))
    return found.answer(ticket=ticket)


def confirm(workspace: Workspace, prefix: bytes, name: bytes, claim: int, ticket: int) -> LeaseAnswer:
    """One who waits looks: hand on what ran out, and have what was given for all of its time."""
    found = _Held(workspace, prefix, name)
    _check_claim(claim)
    check_time(ticket, "ticket")
    is_waiting = not found.is_given(claim) and found.go_on_waiting(ticket)
    if is_waiting and found.is_takeable():
        found.hand_on()
    if found.is_given(claim):
        assert found.record is not None
        expires_at = min(found.now_us + found.record.ttl_us, _LAST)
        found.put(found.record._replace(expires_at=expires_at))
        return found.answer(is_mine=True)
    return found.answer(ticket=ticket if is_waiting else 0)


def leave(workspace: Workspace, prefix: bytes, name: bytes, claim: int, ticket: int) -> LeaseAnswer:
    """Do not wait any more, and pass on what was given. The ticket is 0 if it is not known."""
    found = _Held(workspace, prefix, name)
    _check_claim(claim)
    check_time(ticket, "ticket")
    waiting = found.waiting(claim, ticket)
    if waiting is not None:
        workspace.delete(waiting)
    elif found.is_given(claim) and not found.hand_on():
        found.free()
    return found.answer()


def renew(
    workspace: Workspace, prefix: bytes, name: bytes, token: int, acquired_at: int, ttl_us: int
) -> int:
    """Hold a lease for longer, with 0 for as long as it was asked for; until when."""
    found = _Held(workspace, prefix, name)
    record = found.check(token, acquired_at)
    ttl_us = _check_lasting(ttl_us) if ttl_us else record.ttl_us
    expires_at = min(workspace.stamp_us + ttl_us, _LAST)
    found.put(record._replace(expires_at=expires_at, ttl_us=ttl_us))
    return expires_at


def release(workspace: Workspace, prefix: bytes, name: bytes, token: int, acquired_at: int) -> bool:
    """Give a lease back, to the first who waits for it; False if it was lost before."""
    found = _Held(workspace, prefix, name)
    if not found.is_of(token, acquired_at):
        return False
    if not found.hand_on():
        found.free()
    return True


def check(workspace: Workspace, prefix: bytes, name: bytes, token: int, acquired_at: int) -> None:
    """Refuse the commit unless a token still holds."""
    _Held(workspace, prefix, name).check(token, acquired_at)


def import_leases(workspace: Workspace, prefix: bytes, token: bytes, items: list[Any]) -> None:
    """Leases: `[name, holder, token, acquired at, expires at, ttl]`. Nobody waits for them."""
    with importing_records(workspace, prefix, token, "leases", items):
        for item in items:
            name, holder, number, acquired_at, expires_at, ttl_us = parts(item, 6)
            text = check_name(name, MAX_NAME_BYTES)
            who = _check_holder(holder, may_be_free=True)
            key = rules.lease_key(prefix, name)
            if workspace.record(key) is not None:
                raise InvariantError(f"lease {text!r} comes twice")
            if check_time(number, "token") > rules.MAX_TOKEN:
                raise InvalidInputError(f"token is above {rules.MAX_TOKEN}", argument="token")
            record = LeaseRecord(
                number, check_time(acquired_at, "acquired_at"),
                check_time(expires_at, "expires_at"), check_time(ttl_us, "ttl_us"), 0, who,
            )
            workspace.put(key, rules.pack(record))


def _check_holder(holder: object, *, may_be_free: bool = False) -> bytes:
    check_type("holder", holder, str)
    assert isinstance(holder, str)
    data = holder.encode()
    if not (data or may_be_free) or len(data) > MAX_HOLDER_BYTES:
        raise InvalidInputError(f"holder must have 1 to {MAX_HOLDER_BYTES} bytes", argument="holder")
    return data


def _check_lasting(ttl_us: object) -> int:
    if check_time(ttl_us, "ttl_us") == 0:
        raise InvalidInputError("ttl_us must be above 0", argument="ttl_us")
    assert isinstance(ttl_us, int)
    return ttl_us


def _check_claim(claim: object) -> None:
    if check_time(claim, "claim") == 0:
        raise InvalidInputError("claim must be above 0", argument="claim")


def footprint(prefix: bytes, name: bytes, *_: Any) -> Footprint:
    """Of `check` and `renew`: the lease."""
    return Footprint.of(exactly(rules.lease_key(prefix, name)))


def release_footprint(prefix: bytes, name: bytes, *_: Any) -> Footprint:
    """Of `release`: the lease and those who wait for it."""
    return Footprint.of(exactly(rules.lease_key(prefix, name)), rules.waiters_of(prefix, name))


PROCEDURES: Final[Mapping[str, Callable[..., Any]]] = {
    "import.leases": import_leases,
    "lease.acquire": acquire,
    "lease.check": check,
    "lease.confirm": confirm,
    "lease.leave": leave,
    "lease.release": release,
    "lease.renew": renew,
}

FOOTPRINTS: Final[Mapping[str, Callable[..., Footprint]]] = {
    "lease.check": footprint,
    "lease.release": release_footprint,
    "lease.renew": footprint,
}
