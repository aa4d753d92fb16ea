"""Commits: decided here, under locks that the server keeps.

Invariant: a commit locks its session's row, then all its buckets in their
order, and reads in statements of their own after that. So it decides on what
nobody can change before it has committed, and of two that meet one waits.

A commit whose connection is lost is sent again, under its number: the row of
the session says whether it was made. A refused one leaves no trace.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgpack
import psycopg
import xxhash

from inmem.changes import DELETE_RANGE as DELETE_RANGE_OP
from inmem.changes import Table
from inmem.client.applied import Applied
from inmem.commit.decide import Effects, decide
from inmem.commit.footprint import Range
from inmem.config import ENTRY_BYTES, MAX_COMMIT_BYTES
from inmem.engines.postgres.asking import BEGIN, COMMIT, ROLLBACK, Ask
from inmem.engines.postgres.buckets import (
    buckets_of,
    buckets_of_range,
    is_of_one_prefix,
    owner_of_row,
    owners_of,
    registry_of,
    row_of,
    rows_of_bucket,
)
from inmem.engines.postgres.connections import Connections, ServerConnection, is_lost
from inmem.engines.postgres.moment import SeenBuckets
from inmem.engines.postgres.statements import (
    ADD_BUCKETS,
    ADD_SESSION,
    CHANGE_REGISTRIES,
    CLOSE,
    DELETE_RANGE,
    FENCES,
    LAST,
    LOCKED,
    LOCKED_BETWEEN,
    OPEN,
    PUT,
    RECORDS,
    REGISTRIES,
    SESSION,
    STATE,
    SYNC_ON,
    WRITE,
    WRITE_BLIND,
)
from inmem.engines.postgres.stored import Changes, Fences, LockedState
from inmem.errors import (
    CommitUnknownError,
    ConflictError,
    InmemError,
    InvalidInputError,
    InvariantError,
    WriterUnavailableError,
)
from inmem.keys import TypeTag, fence_of
from inmem.primitives.server import FOOTPRINTS, PROCEDURES
from inmem.record import expires_at
from inmem.wire import from_wire, to_wire
from inmem.writeset import OP_CALL, OP_PUT, MalformedError, WriteSet, decode

_KV: Final = int(TypeTag.KV)
_DATA: Final = int(Table.DATA)
_AGAIN: Final = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
_LOST: Final = (psycopg.OperationalError, psycopg.InterfaceError)
_PAUSE_S: Final = 0.01

Told = Callable[[], dict[bytes, int]]  # the versions of the buckets that a transaction has read in


class Commit:
    """One of some commits."""

    __slots__ = ("buckets", "request")

    def __init__(self, request: WriteSet) -> None:
        self.request = request
        self.buckets = buckets_of(request)


Outcome = Applied | InmemError


class Locked:
    """What commits find under their locks."""

    __slots__ = ("clock_us", "closed", "session", "state", "versions")

    def __init__(
        self, versions: dict[bytes, int], state: LockedState, closed: dict[bytes, bytes | None], clock_us: int,
        session: tuple[Any, ...] | None,
    ) -> None:
        self.versions = versions  # of the rows of buckets
        self.state = state
        self.closed = closed  # fences, by digest
        self.clock_us = clock_us
        self.session = session


class ServerSession:
    """Whose commits have numbers; it has a connection of its own. One call at a time."""

    def __init__(self, connections: Connections, chain: int) -> None:
        self._connections = connections
        self._chain = chain
        self._connection: ServerConnection | None = None
        self._begin()

    def _begin(self) -> None:
        self._id = os.urandom(16)
        self._sequence = 0
        self._is_stored = False
        self._is_in_doubt = False  # whether the commit of the next number may have been made

    def commit(self, body: bytes, told: dict[bytes, int], *, sync: bool, timeout_s: float) -> Applied:
        """Decide one commit and make it.

        Raises:
            CommitUnknownError: the connection was lost, and no server came back in time.
            WriterUnavailableError: there was no server; nothing was made.
            InmemError: it was refused.
        """
        [outcome] = self.commit_all([body], told, sync=sync, timeout_s=timeout_s)
        if isinstance(outcome, InmemError):
            raise outcome
        return outcome

    def commit_all(
        self, bodies: list[bytes], told: dict[bytes, int], *, sync: bool, timeout_s: float
    ) -> list[Outcome]:
        """Decide some commits in their order, and make them as one transaction; what became of each.

        Raises as `commit`; what one alone is refused for is raised too.
        """
        try:
            commits = [Commit(decode(body)) for body in bodies]
        except MalformedError as error:
            raise InvalidInputError(str(error)) from None
        sequence = self._sequence + 1
        digest = xxhash.xxh3_64_intdigest(b"".join(bodies)) - (1 << 63)
        deadline = time.monotonic() + timeout_s
        was_sent = False
        pause_s = _PAUSE_S / 2
        while True:
            try:
                connection = self._connected(deadline)
            except WriterUnavailableError:
                if was_sent:
                    raise self._unknown(bodies, told, sync) from None
                raise
            try:
                outcomes = self._attempt(connection, commits, told, sequence, digest, sync)
            except _AGAIN:
                self._ended(connection)
            except _LOST as error:
                if not is_lost(error, connection):
                    self._ended(connection)
                    raise InmemError(f"the server refused a statement: {error}") from error
                was_sent = self._is_in_doubt = True
                connection.close()
                if time.monotonic() >= deadline:
                    raise self._unknown(bodies, told, sync) from None
            except BaseException:
                self._ended(connection)
                if was_sent:
                    self._begin()  # what was sent before may still be on its way: it finds another session
                raise
            else:
                self._is_in_doubt = False
                return outcomes
            time.sleep(random.uniform(0, pause_s))
            pause_s = min(1.0, pause_s * 2)

    def _unknown(self, bodies: list[bytes], told: dict[bytes, int], sync: bool) -> CommitUnknownError:
        error = CommitUnknownError("the connection was lost, and it is not known whether the commit was made")
        if len(bodies) > 1:
            return error

        def resend(timeout_s: float | None) -> Applied:
            return self.commit(bodies[0], told, sync=sync, timeout_s=10.0 if timeout_s is None else timeout_s)

        error.resender = resend
        return error

    def _connected(self, deadline: float) -> ServerConnection:
        connection = self._connection
        if connection is None or connection.closed:
            connection = self._connection = self._connections.connect(deadline)
        return connection

    def _ended(self, connection: ServerConnection) -> None:
        """No transaction is open any more."""
        try:
            connection.ask((ROLLBACK, ()))
        except psycopg.Error:
            connection.close()

    def close(self) -> None:
        """Its connection goes."""
        if self._connection is not None:
            self._connection.close()

    def _attempt(
        self, connection: ServerConnection, commits: list[Commit], told: dict[bytes, int], sequence: int,
        digest: int, sync: bool,
    ) -> list[Outcome]:
        """Decide some commits in their order, and make those that are not refused, as one transaction."""
        if not self._is_stored:
            connection.ask((ADD_SESSION, (self._id,)))
            self._is_stored = True
        if len(commits) == 1 and not self._is_in_doubt and not sync:
            version = self._blindly(connection, commits[0].request, sequence, digest)
            if version is not None:
                self._sequence = sequence
                return [Applied(version, [])]
        locked = self._lock(connection, commits, told, sync)
        if locked.session is not None and locked.session[0] >= sequence:
            return self._known(connection, locked.session, sequence, digest, len(commits))
        outcomes: list[Outcome] = []
        made: list[Effects] = []
        for commit in commits:
            now_us = max(locked.versions.values(), default=0)
            now_us = max(now_us, locked.clock_us)
            try:
                effects = self._decided(commit.request, locked, told, now_us)
            except InmemError as error:
                if len(commits) == 1 or error.is_foreign:
                    raise
                outcomes.append(error)
                continue
            results = msgpack.unpackb(effects.results)
            if not effects.ops:
                outcomes.append(Applied(now_us, results))
                continue
            made.append(effects)
            outcomes.append(Applied(now_us + 1, results))
            if len(commits) > 1:
                locked.clock_us = now_us + 1
                locked.state.made(effects.ops)
        if not made:
            connection.ask((ROLLBACK, ()))
            return outcomes
        version = max(outcome.version for outcome in outcomes if isinstance(outcome, Applied))
        result = made[0].results if len(commits) == 1 else _packed(outcomes)
        self._write(connection, made, version, result, sequence, digest, locked)
        self._sequence = sequence
        return outcomes

    def _blindly(
        self, connection: ServerConnection, request: WriteSet, sequence: int, digest: int
    ) -> int | None:
        """Make a commit that looks at nothing in one statement; its version. None: it has to be decided."""
        blind = blind_writes(request)
        if blind is None:
            return None
        buckets, keys, payloads, ends, deleted = blind
        if len(keys) == 1 and not deleted and not ends[0]:
            what = PUT, (sequence, digest, self._id, buckets[0], keys[0], payloads[0])
        else:
            what = WRITE_BLIND, (sequence, digest, self._id, buckets, keys, payloads, ends, deleted)
        [found] = connection.ask(what)
        return found[0][0] if found else None

    def _decided(self, request: WriteSet, locked: Locked, told: dict[bytes, int], now_us: int) -> Effects:
        for start, end, _ in request.ranges:
            if not is_of_one_prefix(start, end) and (
                _between(locked.versions, start, end) != _between(told, start, end)
            ):
                raise ConflictError("runs were written since they were read", key=start)
        request.ranges = [each for each in request.ranges if is_of_one_prefix(*each[:2])]
        state, closed = locked.state, locked.closed
        return decide(
            request, state, SeenBuckets(locked.versions, told), PROCEDURES, version=now_us + 1, now_us=now_us,
            fences=Fences(state, closed, marks=False), marks=Fences(state, closed, marks=True),
            chain=self._chain,
        )

    def _lock(
        self, connection: ServerConnection, commits: list[Commit], told: dict[bytes, int], sync: bool
    ) -> Locked:
        """Lock all that some commits concern, and read what they surely look at, in one round trip."""
        buckets = sorted({bucket for commit in commits for bucket in commit.buckets})
        keys: set[bytes] = set()
        ends: set[Range] = set()
        owners: set[bytes] = set()
        wide = []
        for commit in commits:
            request = commit.request
            owners |= owners_of(request, commit.buckets)
            keys.update(request.reads)
            wide += [each[:2] for each in request.ranges if not is_of_one_prefix(*each[:2])]
            for op in request.ops:
                if op[0] == OP_CALL:
                    look_ahead(op[1], op[2], keys, ends)
        unlocked = [fence_of(owner) for owner in owners - {*map(owner_of_row, buckets)}]
        before: list[Ask] = [(BEGIN, ())]
        if sync:
            before.append((SYNC_ON, ()))
        lock: Ask = (LOCKED, (buckets,))
        if wide:
            # Rows between two ranges are locked too: that is one statement in the order of rows.
            lock = (LOCKED_BETWEEN, (buckets, min(start for start, _ in wide), max(end for _, end in wide)))
        looks: list[Ask] = [(RECORDS, ([*keys],))]
        looks += [(LAST, each) for each in ends]
        if unlocked:
            looks.append((FENCES, (unlocked,)))
        if self._is_in_doubt:
            looks.append((SESSION, (self._id,)))
        while True:
            answers = connection.ask(*before, lock, *looks)
            rows, records, *more = answers[len(before) :]
            versions: dict[bytes, int] = {row[0]: row[1] for row in rows}
            missing = [bucket for bucket in buckets if bucket not in versions]
            if not missing:
                break
            self._create(connection, missing, told)
        known: dict[bytes, bytes | None] = dict.fromkeys(keys)
        known.update(records)
        state = LockedState(connection, known, dict(zip(ends, more, strict=False)))
        closed: dict[bytes, bytes | None] = dict.fromkeys(map(fence_of, owners))
        if any(row[2] for row in rows):
            [fences] = connection.ask((FENCES, ([*closed],)))
            closed.update(fences)
        elif unlocked:
            closed.update(more[len(ends)])
        clock_us = max((row[3] for row in rows), default=0)
        self._connections.saw(clock_us)
        session = (more[-1] or [(-1,)])[0] if self._is_in_doubt else None
        return Locked(versions, state, closed, clock_us, session)

    def _create(
        self, connection: ServerConnection, missing: list[bytes], told: dict[bytes, int]
    ) -> None:
        """Make rows of buckets, in a transaction of its own; of a bucket all.

        The registries of their namespaces change before.
        If that was all that has changed since a transaction has read them, it is told so.
        """
        missing = sorted({row for bucket in missing for row in rows_of_bucket(bucket)})
        registries = sorted({registry_of(bucket) for bucket in missing})
        *_, found, changed, _, _ = connection.ask(
            (ROLLBACK, ()), (BEGIN, ()), (REGISTRIES, (registries,)), (CHANGE_REGISTRIES, (registries,)),
            (ADD_BUCKETS, (missing,)), (COMMIT, ()),
        )
        before, after = dict(found), dict(changed)
        for registry in registries:
            if told.get(registry, -1) == before.get(registry, 0):
                told[registry] = after[registry]
        told.update({bucket: 0 for bucket in missing if bucket not in told})

    def _known(
        self, connection: ServerConnection, row: tuple[Any, ...], sequence: int, digest: int, count: int
    ) -> list[Outcome]:
        """The outcome of what was made by an earlier attempt."""
        connection.ask((ROLLBACK, ()))
        if row[0] != sequence or row[1] != digest:
            self._begin()
            raise CommitUnknownError("the server does not know this session any more")
        self._sequence = sequence
        found = msgpack.unpackb(row[3])
        return [Applied(row[2], found)] if count == 1 else [*map(_unpacked, found)]

    def _write(
        self, connection: ServerConnection, made: list[Effects], version: int, result: bytes, sequence: int,
        digest: int, locked: Locked,
    ) -> None:
        buckets = {row for effects in made for row in rows_of_ops(effects.ops)}
        changes = Changes([op for effects in made for op in effects.ops])
        # A range may cover buckets of a run that were never made: nothing can be in them.
        if not buckets <= locked.versions.keys() and not changes.ranges:
            raise InvariantError(f"a commit writes in buckets that it has not locked: {sorted(buckets)!r}")
        written = sorted(buckets & locked.versions.keys())
        records = [*changes.put.values()]
        before: list[Ask] = [(DELETE_RANGE, each) for each in changes.ranges]
        for fenced, fence in changes.fences.items():
            before.append((OPEN, (fenced,)) if fence is None else (CLOSE, (fenced, fence)))
            rows = [row for row in locked.versions if fence_of(owner_of_row(row)) == fenced]
            before.append((STATE, (rows, 0 if fence is None else 1)))
        write: Ask = (WRITE, (
            sequence, digest, self._id, version, result, written, [*changes.put], records,
            [expires_at(record) or None for record in records], changes.deleted,
        ))
        if before:
            [found] = connection.ask(*before, write)[len(before) :]
            connection.ask((COMMIT if found else ROLLBACK, ()))
        else:
            found, _ = connection.ask(write, (COMMIT, ()))
        if not found:
            raise InvariantError("another commit has this number")


def _between(versions: Mapping[bytes, int], start: bytes, end: bytes) -> dict[bytes, int]:
    """The versions of the buckets in a range over runs, and of their registry."""
    registry = registry_of(start)
    return {
        bucket: version for bucket, version in versions.items() if bucket == registry or start <= bucket < end
    }


def rows_of_ops(ops: Iterable[Any]) -> set[bytes]:
    """The rows of the buckets that operations write in."""
    found: set[bytes] = set()
    for op in ops:
        if op[1] == _DATA:
            found.update(buckets_of_range(op[2], op[3]) if op[0] == DELETE_RANGE_OP else (row_of(op[2]),))
    return found


def blind_writes(
    request: WriteSet,
) -> tuple[list[bytes], list[bytes], list[bytes], list[int], list[bytes]] | None:
    """Buckets, keys, payloads and ends of what a commit puts, and keys that it deletes.

    None if it looks at anything, or is not of KV entries alone: those need no procedure.
    """
    if request.reads or request.ranges or request.expiry_us:
        return None
    put: dict[bytes, tuple[bytes, int]] = {}
    deleted: dict[bytes, None] = {}
    weight = ENTRY_BYTES * len(request.ops)
    buckets = set()
    for op in request.ops:
        kind, key = op[0], op[1]
        if kind == OP_CALL or key[key.index(0) + 1] != _KV:
            return None
        weight += len(key)
        if kind == OP_PUT:
            put[key] = op[2], op[3]
            deleted.pop(key, None)
            weight += len(op[2])
        else:
            deleted[key] = None
            put.pop(key, None)
        buckets.add(row_of(key))
    if weight > MAX_COMMIT_BYTES:
        return None  # which refuses it
    return (
        sorted(buckets), [*put], [payload for payload, _ in put.values()],
        [expires for _, expires in put.values()], [*deleted],
    )


def look_ahead(name: str, arguments: list[Any], keys: set[bytes], ends: set[Range]) -> None:
    """Add the keys that a procedure looks at, and the ranges of which it looks at the last record."""
    footprint = FOOTPRINTS.get(name)
    if footprint is not None:
        try:
            found = footprint(*arguments)
        except (TypeError, ValueError, LookupError, AttributeError):
            return  # it is refused later
        keys.update(start for start, end in found.looks_at if end == start + b"\0")
        ends.update(found.ends)


def _packed(outcomes: list[Outcome]) -> bytes:
    packed: bytes = msgpack.packb([
        [each.version, each.results] if isinstance(each, Applied) else [0, to_wire(each)] for each in outcomes
    ])
    return packed


def _unpacked(found: list[Any]) -> Outcome:
    version, result = found
    return Applied(version, result) if version else from_wire(result)


class ServerSessions:
    """The sessions of an engine: one for each commit that is under way, kept for the next one."""

    def __init__(self, connections: Connections, chain: int) -> None:
        self._connections = connections
        self._chain = chain
        self._free: list[ServerSession] = []
        self._lock = threading.Lock()

    def take(self) -> ServerSession:
        """One that nobody else uses."""
        with self._lock:
            if self._free:
                return self._free.pop()
        return ServerSession(self._connections, self._chain)

    def give_back(self, session: ServerSession) -> None:
        """It is free again."""
        with self._lock:
            self._free.append(session)

    def commit(
        self, body: bytes, *, sync: bool, timeout_s: float, told: dict[bytes, int] | None = None
    ) -> Applied:
        """Make a commit; see `ServerSession.commit`."""
        session = self.take()
        try:
            return session.commit(body, told or {}, sync=sync, timeout_s=timeout_s)
        finally:
            self.give_back(session)

    def close(self) -> None:
        """Close those that are free."""
        with self._lock:
            free, self._free = self._free, []
        for session in free:
            session.close()

    def after_fork_in_child(self) -> None:
        """Those of the parent are its own."""
        self._lock = threading.Lock()
        self._free = []
