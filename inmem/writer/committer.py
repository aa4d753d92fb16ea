"""The committer: decides requests in order and publishes them as one group.

Invariant: a request is decided once, against the state that all earlier ones
left; what it changes is logged, made durable as far as asked, published, and
only then is anything of the group answered. It has no socket, clock or
randomness: time is passed in.

When publishing fails after logging (the memory behind the image is full), the
group is cut from the log, the cut is made durable, and the requests are tried
one by one, so that a giant does not fail its neighbours. So they are after any
other exception. A request that fails alone for want of memory is refused. One
that fails otherwise ends this writer, whose state is not to be trusted; the
next one refuses it (see `suspects`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import msgpack
import xxhash

from inmem.commit.decide import NO_RESULTS, Procedures, decide
from inmem.commit.validation import RecentWrites
from inmem.commit.workspace import DATA
from inmem.errors import CommitRefusedError, ConflictError, InmemError, InvalidInputError, StoreFullError
from inmem.host.clock import FAR_US
from inmem.primitives.import_mark import is_mark
from inmem.primitives.server import is_index, is_upkeep
from inmem.record import expires_at, pack, payload_of, timestamp_of, version_of
from inmem.storage.environment import Table
from inmem.storage.position import Position
from inmem.storage.store import (
    ENTRY_OVERHEAD,
    SMALL_ENTRY,
    PublishError,
    Store,
    StoreTransaction,
    entry_bytes,
)
from inmem.storage.wal.format import DELETE, PUT, Op
from inmem.storage.wal.log import WalBrokenError
from inmem.wire import APPLIED, FAILED, REFUSED, RESEND, to_wire
from inmem.writer.outcomes import GAP, HELD, Outcome, Sessions, describe_refusal
from inmem.writer.suspects import CAREFUL_US, NAME, NAME_AT, NAMED, PUBLISHING, Suspects
from inmem.writer.turns import Turns
from inmem.writeset import MalformedError, decode

_SESSIONS = int(Table.SESSIONS)
_digest = xxhash.xxh3_64_intdigest
_tuple: Final = tuple.__new__  # that of a NamedTuple is a function of Python, twice as slow
_name = NAME.pack_into


class Log(Protocol):
    """The write-ahead log, as the committer uses it."""

    @property
    def bytes(self) -> int: ...

    @property
    def version(self) -> int: ...

    @property
    def durable_version(self) -> int: ...

    def position(self) -> Any: ...

    def append(self, ops: Sequence[Op], *, version: int, epoch: int, clock_us: int) -> int: ...

    def cut(self, position: Any) -> None: ...

    def sync(self) -> int: ...

    def close(self) -> None: ...


class Wakes(Protocol):
    """Who wakes those that wait for a change."""

    any: Sequence[int]  # its only item says whether anybody waits

    def note(self, ops: Sequence[Op], version: int) -> None: ...


class NoLog:
    """The log of a `memory` database: nothing is kept."""

    @property
    def bytes(self) -> int:
        """Nothing."""
        return 0

    @property
    def version(self) -> int:
        """Nothing was appended."""
        return 0

    @property
    def durable_version(self) -> int:
        """Nothing survives a power cut."""
        return 0

    def position(self) -> None:
        """Nothing to come back to."""

    def append(self, ops: Sequence[Op], *, version: int, epoch: int, clock_us: int) -> int:
        """Keep nothing."""
        return 0

    def cut(self, position: Any) -> None:
        """Nothing to cut."""

    def sync(self) -> int:
        """Nothing to make durable."""
        return 0

    def close(self) -> None:
        """Nothing to close."""


class Request(NamedTuple):
    """One commit as it arrived; `body` is a `writeset` body."""

    session: bytes
    sequence: int
    answered_below: int
    body: bytes
    sync: bool = False


class Answer(NamedTuple):
    """What to tell the client: see `wire` for the statuses."""

    status: int
    sequence: int
    version: int
    result: bytes


@dataclass(slots=True)
class Counters:
    """What happened since this writer began."""

    commits: int = 0
    conflicts: int = 0
    failures: int = 0
    batches: int = 0
    repeated: int = 0
    expired: int = 0

    def numbers(self) -> tuple[int, ...]:
        """All of them, to make the same counters again. Taken for each group, where a copy shows."""
        return self.commits, self.conflicts, self.failures, self.batches, self.repeated, self.expired


class Committer:
    """Owns validation, procedures, outcomes and the order of a group."""

    def __init__(
        self, store: Store, log: Log, sessions: Sessions, *, version: int, epoch: int,
        owner: Sequence[Any], chain: int, always_sync: bool, procedures: Procedures,
        reached: Callable[[str], None] | None = None, suspects: Suspects | None = None,
        waking: Wakes | None = None,
    ) -> None:
        self.version = version
        self._published = version
        self.counters = Counters()
        self.sessions = sessions
        self._store = store
        self._log = log
        self._epoch = epoch
        self._owner = tuple(owner)
        self._chain = chain
        self._procedures = procedures
        self._always_sync = always_sync
        self._reached = reached  # told of each step, so that tests can stop the world there
        self._waking = waking  # told of all that readers can see from then on
        self._suspects = suspects = suspects or Suspects()
        self._accused = suspects.found
        self._page, self._words = suspects.page, suspects.words
        self._careful_until_us = 0
        self._recent = RecentWrites(version)
        self._turns = Turns()
        self._fences: set[bytes] = set()  # digests of deleted runs
        self._marks: dict[bytes, bytes] = {}  # by digest, of runs that are being imported
        for digest, value in store.items(Table.FENCES):
            if is_mark(value):
                self._marks[bytes(digest)] = bytes(value)
            else:
                self._fences.add(bytes(digest))

    def move_to(self, store: Store) -> None:
        """Go on with a copy of the store."""
        assert store.position == self._store.position, "the copy is not of this moment"
        self._store = store

    def begin_epoch(self, epoch: int, now_us: int) -> None:
        """Everything from now on is of this epoch; an empty group says so to log and image."""
        self._epoch = epoch
        self.sessions.must_write = True
        if self._suspects.is_careful:
            self._careful_until_us = now_us + CAREFUL_US
        self.commit([], now_us)

    def leap(self, by_s: int, now_us: int) -> None:
        """Store time has leapt ahead. A far leap is stored at once: the next writer must not end sessions."""
        self.sessions.leap(by_s)
        if by_s * 1_000_000 >= FAR_US:
            self.begin_epoch(self._epoch, now_us)

    def commit(self, requests: Sequence[Request], now_us: int) -> list[Answer]:
        """Decide and publish a group; one answer for each request, in order.

        Raises:
            WalBrokenError: the log could not be made durable: the writer must
                stop and answer nothing.
        """
        if len(requests) > 1 and now_us < self._careful_until_us:
            return self._one_by_one(requests, now_us)
        position = self._store.position
        try:
            answers = self._group(requests, now_us)
            if self._accused:
                for request in requests:
                    self._suspects.settle(request.session, request.sequence, _digest(request.body))
            return answers
        except WalBrokenError:
            raise
        except OSError as error:  # the log is as it was before the call
            problem = StoreFullError(
                f"the log cannot be written: {error}",
                used_bytes=self._log.bytes, hint="Free space on the disk that holds the data directory.",
            )
            return self._fail_all(requests, problem, now_us)
        except PublishError as error:
            if self._store.grow(error):
                return self.commit(requests, now_us)
            if len(requests) > 1:
                return self._one_by_one(requests, now_us)
            if not error.is_full:
                raise
            self._store.measure()
            problem = StoreFullError(
                f"the memory behind the image is full: {error}",
                used_bytes=self._store.file_bytes, quota_bytes=self._store.quota_bytes,
            )
            return self._fail_all(requests, problem, now_us)
        except Exception as error:
            if self._store.position != position or not requests:
                raise  # it is published: the next writer answers
            if len(requests) > 1:
                return self._one_by_one(requests, now_us)
            if isinstance(error, MemoryError | RecursionError):
                refusal = CommitRefusedError(
                    f"this commit would have ended the writer: {type(error).__name__} {error!s:.100}",
                    writers=0,
                )
                return self._fail_all(requests, refusal, now_us)
            request = requests[0]
            self._suspects.convict(request.session, request.sequence, _digest(request.body))
            raise

    def _one_by_one(self, requests: Sequence[Request], now_us: int) -> list[Answer]:
        return [answer for request in requests for answer in self.commit([request], now_us)]

    def _fail_all(self, requests: Sequence[Request], problem: InmemError, now_us: int) -> list[Answer]:
        result = msgpack.packb(to_wire(problem))
        answers = []
        for request in requests:
            digest = _digest(request.body)
            known = self.sessions.find(request.session, request.sequence, request.answered_below, digest)
            if known is None:
                outcome = digest, FAILED, 0, result
                self.sessions.record(
                    request.session, request.sequence, request.answered_below, now_us, outcome
                )
                self.counters.failures += 1
                answers.append(Answer(FAILED, request.sequence, 0, result))
            else:
                answers.append(self._known(request, known))
        self.sessions.settle()
        return answers

    def _group(self, requests: Sequence[Request], now_us: int) -> list[Answer]:
        txn = self._store.begin()
        before = self.version
        counters = self.counters.numbers()
        fences: list[bytes] = []
        marks = self._marks.copy()
        ops: list[Op] = []
        answers: list[Answer] = []
        sync = self._always_sync
        try:
            for request in requests:
                answers.append(self._decide(request, txn, now_us, ops, fences))
                sync |= request.sync
            if ops or self.sessions.must_write:
                if len(requests) > 1:
                    self._words[PUBLISHING] = len(requests)
                self._publish(txn, ops, now_us, sync)
                return answers
        except BaseException:
            # Nothing of the group is visible: be as before it.
            txn.abort()
            self.version = before
            self.counters = Counters(*counters)
            self._fences.difference_update(fences)
            self._marks = marks
            self.sessions.undo()
            self._words[NAMED] = self._words[PUBLISHING] = 0
            raise
        txn.abort()
        self.sessions.settle()
        self._words[NAMED] = 0
        if sync and requests:
            self._log.sync()  # a repeated answer of a sync commit: its record is logged already
        return answers

    def _decide(
        self, request: Request, txn: StoreTransaction, now_us: int, ops: list[Op], fences: list[bytes]
    ) -> Answer:
        session, sequence, answered_below, body, _ = request
        status, version = FAILED, 0
        digest = _digest(body)
        known = self.sessions.find(session, sequence, answered_below, digest)
        if known is not None:
            return self._known(request, known)
        try:
            if self._accused and (refusal := self._suspects.refusal(session, sequence, digest)):
                self.sessions.must_write = True  # so that the next writer knows it too
                raise refusal
            _name(self._page, NAME_AT, session, sequence, digest)
            wanted = decode(body)
            if wanted.reads:
                self._turns.check(session, wanted.reads, now_us)
            changes, results, buckets, new_fences, new_marks = decide(
                wanted, txn, self._recent, self._procedures, version=self.version + 1, now_us=now_us,
                fences=self._fences, marks=self._marks, chain=self._chain,
            )
            if self._turns.holds(session, changes, buckets, now_us):
                return Answer(REFUSED, sequence, 0, msgpack.packb(describe_refusal(HELD)))
            self._admit(txn, changes)
        except (InmemError, MalformedError) as error:
            problem = error if isinstance(error, InmemError) else InvalidInputError(str(error))
            if isinstance(problem, ConflictError):
                self._turns.lost(session, problem, wanted.reads, now_us)
            result = msgpack.packb(to_wire(problem))
            self.counters.failures += 1
            self.counters.conflicts += problem.code == "conflict"
        else:
            self.counters.commits += 1
            self._turns.won(session, now_us)
            if changes:  # else nothing changes: no version of its own, and nothing to log
                self.version += 1
                txn.apply(changes, self.version)
                ops += changes
                for bucket in buckets:
                    self._recent.wrote(bucket, self.version)
            if new_fences:
                fences += new_fences
                self._fences.update(new_fences)
            for owner, mark in new_marks.items():
                if mark is None:
                    self._marks.pop(owner, None)
                else:
                    self._marks[owner] = mark
            status, version, result = APPLIED, self.version, results
        self.sessions.record(
            session, sequence, answered_below, now_us, (digest, status, version, result)
        )
        return _tuple(Answer, (status, sequence, version, result))

    def _known(self, request: Request, known: Outcome | str) -> Answer:
        if isinstance(known, Outcome):
            self.counters.repeated += 1
            return Answer(known.status, request.sequence, known.version, known.result)
        if known == GAP:
            next_wanted = self.sessions.last_sequence(request.session) + 1
            return Answer(RESEND, request.sequence, next_wanted, NO_RESULTS)
        return Answer(REFUSED, request.sequence, 0, msgpack.packb(describe_refusal(known)))

    def _admit(self, txn: StoreTransaction, changes: Sequence[tuple[Any, ...]]) -> None:
        """Count what a commit adds against the quota. Upkeep goes on unless it has ever more records."""
        added, has_data = 0, False
        for op in changes:
            if op[0] == PUT:
                size = len(op[2]) + len(op[3])
                added += size + ENTRY_OVERHEAD if size < SMALL_ENTRY else entry_bytes(op[2], op[3])
                has_data = has_data or (op[1] == DATA and not is_upkeep(op[2]))
        if not added:
            return
        try:
            self._store.admit(added, is_upkeep=not has_data)
        except StoreFullError:
            if has_data or _more_records(txn, changes) > 0:
                raise

    def _publish(self, txn: StoreTransaction, ops: list[Op], now_us: int, sync: bool) -> None:
        session_ops: list[Op] = []
        for session_id, record in self.sessions.changes():
            session_ops.append(
                (DELETE, _SESSIONS, session_id) if record is None else (PUT, _SESSIONS, session_id, record)
            )
        txn.apply(session_ops)
        ops += session_ops
        reached = self._reached
        if self.version == self._published:
            self.version += 1  # a group without commits moves the position too
        position = self._log.position()
        checksum = self._log.append(ops, version=self.version, epoch=self._epoch, clock_us=now_us)
        self._words[NAMED] = self._words[PUBLISHING] = 0  # from here on it is recovery that repeats it
        try:
            if reached is not None:
                reached("logged")
            if sync:
                self._log.sync()
            if reached is not None:
                reached("synced")
            txn.publish(_tuple(Position, (self.version, checksum, now_us, self._epoch, self._owner)))
        except WalBrokenError:
            raise
        except Exception:
            self._log.cut(position)
            raise
        if reached is not None:
            reached("published")
        # The transaction has ended by releasing a mutex, which is a full barrier: see `inmem.host.waitfile`.
        if self._waking is not None and self._waking.any[0]:
            self._waking.note(ops, self.version)
        self._published = self.version
        self._recent.published(self.version, now_us)
        self.sessions.written()
        self.counters.batches += 1

    def sweep(self, now_us: int, limit: int) -> int:
        """Remove up to `limit` expired records; returns how many entries were looked at.

        A sweep is no write: what it removes nobody sees any more, so it
        neither marks buckets nor leaves versions.
        """
        if now_us < self._store.next_expiry_us:
            return 0
        return self._store.with_room(lambda: self._sweep(now_us, limit))

    def _sweep(self, now_us: int, limit: int) -> int:
        txn = self._store.begin()
        before = self.version
        try:
            looked, ops = txn.sweep(now_us, limit)
            if looked:
                expired = len(ops)
                self._publish(txn, ops, now_us, self._always_sync)  # adds what sessions have to write
                self.counters.expired += expired
                return looked
        except BaseException:
            self._store.next_expiry_us = 0  # not known any more
            txn.abort()
            self.version = before
            raise
        txn.abort()
        return 0

    def set_back(self, now_us: int, ahead_us: int) -> int:
        """Publish that it is earlier than was said; returns how many expiries come as much sooner.

        What was written while the clock was ahead was to expire some time after that: it still does. What
        has expired by the wrong clock is to be removed before, or it would be seen again.
        """
        expiries = self._store.with_room(lambda: self._set_back(now_us, ahead_us))
        self._turns = Turns()  # these, and the next line, end at a time
        self._careful_until_us = 0
        return expiries

    def _set_back(self, now_us: int, ahead_us: int) -> int:
        txn = self._store.begin()
        before = self.version
        try:
            ops: list[Op] = []
            for key, record in txn.future_expiries(now_us):
                sooner = expires_at(record) - ahead_us
                sooner_record = pack(version_of(record), timestamp_of(record), sooner, payload_of(record))
                ops.append((PUT, DATA, key, sooner_record))
            txn.apply(ops)
            self.sessions.set_back(now_us)
            expiries = len(ops)
            self._publish(txn, ops, now_us, True)
        except BaseException:
            txn.abort()
            self.version = before
            raise
        return expiries


def _more_records(txn: StoreTransaction, changes: Sequence[tuple[Any, ...]]) -> int:
    """How many records more there are after a commit, without indices; below 0 if it removes some."""
    stays = {op[2]: op[0] == PUT for op in changes if op[0] in (PUT, DELETE) and op[1] == DATA}
    return sum(stay - (txn.get(key) is not None) for key, stay in stays.items() if not is_index(key))
