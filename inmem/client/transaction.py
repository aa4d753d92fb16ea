"""Transactions: read from one snapshot, write into a buffer, commit as one.

Invariant: whatever a transaction reads, its own writes included, is either
still true when it commits or the commit is refused; and nothing leaves this
process before the commit. It knows keys and records, no primitives.

`Reader` is what primitives read through. There are three: `AutoReader` (each
call sees the newest version), `SnapshotReader` (one version) and
`Transaction` (one version, tracked, under its own writes).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, Protocol, TypeVar

from sortedcontainers import SortedKeyList

from inmem.client.attachment import Attachment
from inmem.client.session import Applied
from inmem.config import MAX_TIMEOUT_S
from inmem.errors import (
    ClosedError,
    CommitUnknownError,
    ConflictError,
    ForkError,
    InvalidInputError,
    InvariantError,
    RetryableError,
)
from inmem.keys import shorten
from inmem.record import ABSENT, expires_at, is_live, pack, version_of
from inmem.storage.snapshot import Snapshot
from inmem.writeset import OP_CALL, OP_DELETE, OP_PUT, WriteSet, encode_single

T = TypeVar("T")
Item = tuple[bytes, bytes]

_BACKOFF_S: Final = 0.0005  # first pause after a conflict; doubles, with full jitter
_BACKOFF_MAX_S: Final = 0.01  # longer ones starve who has lost often


class Reader(Protocol):
    """Live records, in key order."""

    def read(self, key: bytes) -> bytes | None: ...

    def scan(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> list[Item]: ...

    def count(self, start: bytes, end: bytes) -> int: ...

    def view(self) -> Any: ...

    def now_us(self) -> int: ...


def _scan(
    snapshot: Snapshot, start: bytes, end: bytes, limit: int | None, reverse: bool, now_us: int
) -> list[Item]:
    if limit == 0:
        return []
    found = []
    for key, record in snapshot.scan(start, end, reverse=reverse):
        if is_live(record, now_us):
            found.append((key, record))
            if len(found) == limit:
                break
    return found


class SnapshotReader:
    """One committed version, without tracking."""

    def __init__(self, snapshot: Snapshot, now_us: Callable[[], int]) -> None:
        self._snapshot = snapshot
        self.now_us = now_us

    def read(self, key: bytes) -> bytes | None:
        """The live record under a key."""
        record = self._snapshot.get(key)
        return record if record is not None and is_live(record, self._snapshot.now_us) else None

    def scan(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> list[Item]:
        """The live records of a range."""
        return _scan(self._snapshot, start, end, limit, reverse, self._snapshot.now_us)

    def count(self, start: bytes, end: bytes) -> int:
        """How many live records a range has."""
        now_us = self._snapshot.now_us
        return sum(is_live(record, now_us) for _, record in self._snapshot.scan(start, end))

    @contextmanager
    def view(self) -> Iterator[Reader]:
        """Itself: all reads here are of one version."""
        yield self

    @property
    def version(self) -> int:
        """The commit version that is seen."""
        return self._snapshot.version

    def close(self) -> None:
        """End it."""
        self._snapshot.close()


class AutoReader:
    """The newest version at each call; for facades outside transactions."""

    def __init__(self, attachment: Attachment, max_age_s: float) -> None:
        self._image = attachment.image
        self._max_age_s = max_age_s
        self._get = attachment.image.get
        self.now_us = attachment.image.now_us

    def read(self, key: bytes) -> bytes | None:
        """The live record under a key. Cost: about 1 µs."""
        record = self._get(key)
        if record is not None and record[0] & 0x80 and not is_live(record, self.now_us()):
            return None
        return record

    def scan(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> list[Item]:
        """The live records of a range, all of one version."""
        with self.view() as view:
            return view.scan(start, end, limit=limit, reverse=reverse)

    def count(self, start: bytes, end: bytes) -> int:
        """How many live records a range has."""
        with self.view() as view:
            return view.count(start, end)

    @contextmanager
    def view(self) -> Iterator[Reader]:
        """A reader for several reads of one version."""
        snapshot = self._image.snapshot(self._max_age_s)
        try:
            yield SnapshotReader(snapshot, self.now_us)
        finally:
            snapshot.close()


class Pending:
    """A result that only the commit knows; filled in when it has."""

    __slots__ = ("_result",)

    def __init__(self) -> None:
        self._result: Any = None

    def resolve(self, result: Any) -> None:
        """Called with the procedure's result once the commit took effect."""
        self._result = result

    def result(self) -> Any:
        """The result.

        Raises:
            InvariantError: the transaction has not committed.
        """
        if self._result is None:
            raise InvariantError(
                "this is known only after the commit", hint="Read it when the transaction is over."
            )
        return self._result


class Deferred:
    """An own write whose record depends on what is stored: worked out when it is read."""

    __slots__ = ("apply",)

    def __init__(self, apply: Callable[[bytes | None], bytes]) -> None:
        self.apply = apply


class Transaction:
    """An optimistic transaction. Not to be shared between threads."""

    def __init__(self, attachment: Attachment, *, max_age_s: float, timeout_s: float, sync: bool) -> None:
        self._attachment = attachment
        self._max_age_s = max_age_s
        self._timeout_s = timeout_s
        self._sync = sync
        self._snapshot: Snapshot | None = None
        self._writes = WriteSet()
        self._own: dict[bytes, bytes | Deferred | None] = {}
        self._own_keys: SortedKeyList | None = None  # of _own, from the first scan on
        self._waiting: list[Callable[[Any], None]] = []  # who gets the result of each call
        self._done = False
        self._incarnation = attachment.incarnation
        self.version: int | None = None
        self.logs: dict[bytes, Any] = {}  # state of the event log facade, per log

    # --- reads ------------------------------------------------------------------------

    def check_open(self) -> None:
        """Refuse to go on after the end, or in a child.

        Raises:
            ClosedError: the transaction was committed or aborted.
            ForkError: it belongs to the parent process, which may commit it.
        """
        if self._done:
            raise ClosedError("the transaction is over")
        if self._incarnation != self._attachment.incarnation:
            raise ForkError("this transaction belongs to the parent process")

    def _base(self) -> Snapshot:
        self.check_open()
        if self._snapshot is None:
            self._snapshot = self._attachment.image.snapshot(self._max_age_s)
        return self._snapshot

    def now_us(self) -> int:
        """Store time."""
        return self._attachment.image.now_us()

    def read(self, key: bytes) -> bytes | None:
        """The live record under a key, own writes first; what was stored becomes a read."""
        if key in self._own:
            self.check_open()
            own = self._own[key]
            if isinstance(own, Deferred):
                own = self._own[key] = own.apply(self.read_stored(key))
            if own is None or not is_live(own, self.now_us()):
                return None
            self._met_expiry(own)  # an own entry may expire before the commit, like any other
            return own
        return self.read_stored(key)

    def read_stored(self, key: bytes) -> bytes | None:
        """The live record under a key, without own writes; it becomes a read."""
        snapshot = self._base()
        record = snapshot.get(key)
        if record is not None and not is_live(record, snapshot.now_us):
            record = None
        self._writes.reads[key] = ABSENT if record is None else version_of(record)
        if record is not None:
            self._met_expiry(record)
        return record

    def _met_expiry(self, record: bytes) -> None:
        expiry = expires_at(record)
        if expiry:
            earliest = self._writes.expiry_us
            self._writes.expiry_us = min(expiry, earliest) if earliest else expiry

    def scan(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> list[Item]:
        """The live records of a range, own writes included; the range becomes a read.

        With a limit only the part up to the last returned key is read.
        """
        snapshot = self._base()
        if limit == 0:
            return []
        own = self._own_in(start, end, reverse)
        stored = snapshot.scan(start, end, reverse=reverse)
        found: list[Item] = []
        met = 0
        at = 0

        def precedes(a: bytes, b: bytes) -> bool:
            return a > b if reverse else a < b

        for key, record in stored:
            while at < len(own) and precedes(own[at], key) and len(found) != limit:
                self._add_own(own[at], found)
                at += 1
            if len(found) == limit:
                break
            if is_live(record, snapshot.now_us):
                met += 1
                self._met_expiry(record)
                if key not in self._own:
                    found.append((key, record))
            if at < len(own) and own[at] == key:
                self._add_own(key, found)
                at += 1
            if len(found) == limit:
                break
        while at < len(own) and len(found) != limit:
            self._add_own(own[at], found)
            at += 1
        if len(found) == limit:
            last = found[-1][0]
            start, end = (last, end) if reverse else (start, last + b"\0")
        self._writes.ranges.append((start, end, met))
        return found

    def count(self, start: bytes, end: bytes) -> int:
        """How many live records a range has, own writes included."""
        return len(self.scan(start, end))

    @contextmanager
    def view(self) -> Iterator[Reader]:
        """Itself: all reads here are of one version."""
        yield self

    def _own_in(self, start: bytes, end: bytes, reverse: bool) -> list[bytes]:
        if not self._own:
            return []
        if self._own_keys is None:
            self._own_keys = SortedKeyList(self._own, key=_same)
        keys = list(self._own_keys.irange(start, end, inclusive=(True, False), reverse=reverse))
        for key in keys:
            if isinstance(self._own[key], Deferred):
                self.read(key)
        return keys

    def _add_own(self, key: bytes, found: list[Item]) -> None:
        record = self._own[key]
        assert not isinstance(record, Deferred)
        if record is not None and is_live(record, self.now_us()):
            self._met_expiry(record)
            found.append((key, record))

    def own(self, key: bytes) -> bytes | Deferred | None:
        """The transaction's own write under a key, None without one or if it is a removal."""
        return self._own.get(key)

    def was_read(self, key: bytes) -> bool:
        """Whether the transaction depends on what is stored under a key, or has overwritten it."""
        return key in self._writes.reads or (key in self._own and not isinstance(self._own[key], Deferred))

    # --- writes -----------------------------------------------------------------------

    def put(self, key: bytes, payload: bytes, expires: int = 0) -> None:
        """Write a record at commit."""
        self._change([OP_PUT, key, payload, expires])
        self.show(key, pack(0, self.now_us() if expires else 0, expires, payload))

    def delete(self, key: bytes) -> None:
        """Remove a record at commit."""
        self._change([OP_DELETE, key])
        self.show(key, None)

    def call(self, procedure: str, arguments: list[Any], resolve: Callable[[Any], None]) -> None:
        """Run a procedure at commit; `resolve` gets its result."""
        self._change([OP_CALL, procedure, arguments])
        self._waiting.append(resolve)

    def show(self, key: bytes, record: bytes | Deferred | None) -> None:
        """Let own reads see a record that the commit will write."""
        if self._own_keys is not None and key not in self._own:
            self._own_keys.add(key)
        self._own[key] = record

    def _change(self, op: list[Any]) -> None:
        self.check_open()
        self._writes.ops.append(op)

    # --- the end ----------------------------------------------------------------------

    def commit(self) -> None:
        """Send what was read and written, as one; a transaction that wrote nothing sends nothing.

        Raises:
            ConflictError: something that was read has changed.
            CommitUnknownError: no answer before the deadline.
            InmemError: whatever a procedure refused.
        """
        self.check_open()
        body = self.encode()
        if body is not None:
            session = self._attachment.session()
            self.applied(session.commit(body, sync=self._sync, timeout_s=self._timeout_s))

    def encode(self) -> bytes | None:
        """End the transaction; what is to be sent, None if nothing was written."""
        writes = self._writes
        try:
            if not writes.ops:
                return None
            if writes.ranges:
                writes.snapshot_version = self._base().version
            return writes.encode()
        finally:
            self.abort()  # what was read is written down: the snapshot is not needed any more

    def applied(self, applied: Applied) -> None:
        """The commit took effect: give everybody what they wait for."""
        self.version = applied.version
        for resolve, result in zip(self._waiting, applied.results, strict=True):
            resolve(result)

    @property
    def is_over(self) -> bool:
        """Whether it was committed or aborted."""
        return self._done

    def abort(self) -> None:
        """End it; nothing is sent after this."""
        self._done = True
        if self._snapshot is not None:
            self._snapshot.close()


def _same(key: bytes) -> bytes:
    return key


def commit_put(attachment: Attachment, key: bytes, payload: bytes, expires: int, timeout_s: float) -> int:
    """One blind write as a commit of its own; its version."""
    body = encode_single([OP_PUT, key, payload, expires])
    try:
        return attachment.session().commit(body, sync=False, timeout_s=timeout_s).version
    except CommitUnknownError as error:
        raise resolved_as(error, lambda applied: applied.version) from None


def commit_call(
    attachment: Attachment, procedure: str, arguments: list[Any], timeout_s: float
) -> tuple[Any, int]:
    """One procedure call as a commit of its own: (result, version)."""
    body = encode_single([OP_CALL, procedure, arguments])
    try:
        applied = attachment.session().commit(body, sync=False, timeout_s=timeout_s)
    except CommitUnknownError as error:
        raise resolved_as(error, lambda applied: (applied.results[0], applied.version)) from None
    return applied.results[0], applied.version


def resolved_as(error: CommitUnknownError, convert: Callable[[Any], Any]) -> CommitUnknownError:
    """The error, whose `resend` now returns what `convert` makes of its result.

    Each layer passes it on so, and in the end it returns what the call that
    raised it would have returned.
    """
    again = error._resend
    if again is not None:

        def resend(timeout_s: float | None) -> Any:
            try:
                result = again(timeout_s)
            except CommitUnknownError as later:
                raise resolved_as(later, convert) from None
            return convert(result)

        error._resend = resend
    return error


def check_timeout(timeout_s: object) -> float:
    """The seconds if they can be a deadline; a `timedelta` is taken too.

    Raises:
        InvalidInputError: not a number above 0 and at most MAX_TIMEOUT_S.
    """
    seconds = timeout_s.total_seconds() if isinstance(timeout_s, timedelta) else timeout_s
    if type(seconds) in (int, float) and 0 < seconds <= MAX_TIMEOUT_S:  # type: ignore[operator]
        return float(seconds)  # type: ignore[arg-type]
    raise InvalidInputError(
        f"timeout_s must be above 0 and at most {MAX_TIMEOUT_S:.0f} seconds, not {shorten(timeout_s)}",
        argument="timeout_s",
    )


def retrying(
    attempt: Callable[[float], T], *, max_attempts: int, timeout_s: float, pause_max_s: float = _BACKOFF_MAX_S
) -> T:
    """Run an attempt until it is not refused, within bounds; pauses are jittered.

    `attempt` gets the seconds that are left.

    Raises:
        RetryableError: the last refusal, when attempts or time are used up.
    """
    if type(max_attempts) is not int or max_attempts < 1:
        raise InvalidInputError(
            f"max_attempts must be an int of at least 1, not {shorten(max_attempts)}", argument="max_attempts"
        )
    timeout_s = check_timeout(timeout_s)
    deadline = time.monotonic() + timeout_s
    ceiling = min(_BACKOFF_S, pause_max_s)
    for left in range(max_attempts - 1, -1, -1):
        try:
            return attempt(max(deadline - time.monotonic(), 0.001))
        except RetryableError as error:
            is_next = isinstance(error, ConflictError) and error.is_next
            pause = 0.0 if is_next else random.uniform(0, ceiling)
            if not left or time.monotonic() + pause >= deadline:
                raise
            time.sleep(pause)
            ceiling = min(ceiling * 2, pause_max_s)
    raise AssertionError("unreachable")


