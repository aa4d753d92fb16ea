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
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgpack
import psycopg
import xxhash

from inmem.changes import Table
from inmem.client.applied import Applied
from inmem.commit.decide import Effects, decide
from inmem.engines.postgres.buckets import (
    buckets_of,
    is_of_one_prefix,
    owner_bucket,
    owners_of,
    registry_of,
)
from inmem.engines.postgres.connections import CLOCK, Connections
from inmem.engines.postgres.failures import as_ours, is_gone, is_lost
from inmem.engines.postgres.moment import SeenBuckets
from inmem.engines.postgres.patience import PatientConnection
from inmem.engines.postgres.stored import Changes, Fences, LockedState
from inmem.errors import (
    CommitUnknownError,
    ConflictError,
    CorruptionError,
    InmemError,
    InvalidInputError,
    InvariantError,
    WriterUnavailableError,
)
from inmem.keys import fence_of
from inmem.primitives.server import PROCEDURES
from inmem.record import expires_at
from inmem.writeset import OP_CALL, MalformedError, WriteSet, decode

_DATA: Final = int(Table.DATA)
_AGAIN: Final = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
_PAUSE_S: Final = 0.01

Told = Callable[[], dict[bytes, int]]  # the versions of the buckets that a transaction has read in


class _Forgotten(Exception):
    """The server has no row of a session."""


class ServerSession:
    """Whose commits have numbers; it has a connection of its own. One call at a time."""

    def __init__(self, connections: Connections, chain: int) -> None:
        self._connections = connections
        self._chain = chain
        self._connection: PatientConnection | None = None
        self._resending = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._id = os.urandom(16)
        self._sequence = 0
        self._is_stored = self._may_be_made = False

    def commit(
        self, body: bytes, told: dict[bytes, int], *, sync: bool, timeout_s: float,
        resent: int | None = None,
    ) -> Applied:
        """Decide one commit and make it. `resent` is the number under which it was sent before.

        Raises:
            CommitUnknownError: the connection was lost, and no server came back in time.
            WriterUnavailableError: there was no server; nothing was made.
            InmemError: it was refused.
        """
        try:
            request = decode(body)
        except MalformedError as error:
            raise InvalidInputError(str(error)) from None
        sequence = self._sequence + 1 if resent is None else resent
        digest = xxhash.xxh3_64_intdigest(body) - (1 << 63)
        deadline = time.monotonic() + timeout_s
        was_sent = resent is not None
        said: psycopg.Error | None = None  # the last that the server has said, which tells more than silence
        pause_s = _PAUSE_S / 2
        while True:
            try:
                connection = self._connected(deadline)
            except WriterUnavailableError:
                if was_sent:
                    raise self._unknown(body, told, sync, sequence) from None
                raise
            try:
                applied = self._attempt(connection, request, told, sequence, digest, sync)
            except _AGAIN:
                connection.close()  # psycopg may take for prepared what an error has kept from being
            except _Forgotten:
                self._begin()
                if was_sent:
                    raise CommitUnknownError("the server does not know this session any more") from None
                sequence = 1
                continue
            except psycopg.Error as error:
                is_lasting = not is_lost(error, connection)
                said = error if error.sqlstate or said is None else said
                was_sent |= self._may_be_made and is_gone(connection)
                self._connections.lost(connection)
                if is_lasting or time.monotonic() >= deadline:
                    unknown = self._unknown(body, told, sync, sequence)
                    raise (unknown if was_sent else as_ours(said)) from None
            except BaseException as error:
                self._ended(connection)
                if was_sent or not isinstance(error, InmemError):
                    # What was sent before may still be on its way: it finds another session, or none.
                    if isinstance(error, InmemError) and not self._forgotten(connection):
                        raise self._unknown(body, told, sync, sequence) from None
                    self._begin()
                raise
            else:
                self._sequence = sequence
                return applied
            time.sleep(random.uniform(0, pause_s))
            pause_s = min(1.0, pause_s * 2)

    def _forgotten(self, connection: PatientConnection) -> bool:
        """Whether the server now refuses whatever still comes of this session."""
        try:
            connection.execute("delete from sessions where session = %s", (self._id,))
        except psycopg.Error:
            connection.close()
            return False
        return True

    def _unknown(
        self, body: bytes, told: dict[bytes, int], sync: bool, sequence: int
    ) -> CommitUnknownError:
        """From now on the session is this commit's alone: nothing else may have its number."""
        error = CommitUnknownError("the connection was lost, and it is not known whether the commit was made")

        def resend(timeout_s: float | None) -> Applied:
            with self._resending:
                try:
                    return self.commit(
                        body, told, sync=sync, timeout_s=10.0 if timeout_s is None else timeout_s,
                        resent=sequence,
                    )
                finally:
                    self.close()

        error.resender = resend
        return error

    def _connected(self, deadline: float) -> PatientConnection:
        connection = self._connection
        if connection is None or connection.closed:
            connection = self._connection = self._connections.take(deadline)
        connection.deadline = deadline
        return connection

    def _ended(self, connection: PatientConnection) -> None:
        """No transaction is open any more."""
        try:
            connection.execute("rollback")
        except psycopg.Error:
            connection.close()

    def lend(self) -> None:
        """Let others use its connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._connections.give_back(connection)

    def close(self) -> None:
        """Its connection goes."""
        if self._connection is not None:
            self._connection.close()

    def _attempt(
        self, connection: PatientConnection, request: WriteSet, told: dict[bytes, int], sequence: int,
        digest: int, sync: bool,
    ) -> Applied:
        self._may_be_made = False
        if not self._is_stored:
            connection.execute(
                "insert into sessions (session, sequence, digest, version, status, result)"
                " values (%s, 0, 0, 0, 0, '') on conflict do nothing", (self._id,),
            )
            self._is_stored = True
        buckets = buckets_of(request)
        digests = [fence_of(owner) for owner in owners_of(request, buckets)]
        keys = [*{*request.reads, *(op[1] for op in request.ops if op[0] != OP_CALL)}]
        wide = [each for each in request.ranges if not is_of_one_prefix(*each[:2])]
        also = " or bucket >= %s and bucket < %s" * len(wide)
        while True:
            with connection.pipeline():
                connection.execute("begin isolation level read committed")
                if sync:
                    connection.execute("set local synchronous_commit = on")
                session = connection.execute(
                    "select sequence, digest, version, result from sessions where session = %s for update",
                    (self._id,), binary=True,
                )
                locked = connection.execute(
                    f"select bucket, version from buckets where bucket = any(%s) {also}"
                    " order by bucket for update",
                    (buckets, *(each for start, end, _ in wide for each in (start, end))), binary=True,
                )
                clock = connection.execute(f"select {CLOCK}", binary=True)
                stored = connection.execute(
                    "select key, record from records where key = any(%s)", (keys,), binary=True
                )
                fences = connection.execute(
                    "select digest, fence from fences where digest = any(%s)", (digests,), binary=True
                )
            versions: dict[bytes, int] = dict(locked.fetchall())
            missing = [bucket for bucket in buckets if bucket not in versions]
            if not missing:
                break
            connection.execute("rollback")
            self._create(connection, missing, told)
        row = session.fetchone()
        if row is None or row[0] >= sequence:
            return self._known(connection, row, sequence, digest)
        closed: dict[bytes, bytes | None] = dict.fromkeys(digests)
        closed.update(fences.fetchall())
        clock_us: int = clock.fetchone()[0]  # type: ignore[index]
        self._connections.saw(clock_us)
        now_us = max([clock_us, *versions.values()])
        known: dict[bytes, bytes | None] = dict.fromkeys(keys)
        known.update(stored.fetchall())
        for start, end, _ in wide:
            if _between(versions, start, end) != _between(told, start, end):
                raise ConflictError("runs were written since they were read", key=start)
        request.ranges = [each for each in request.ranges if each not in wide]
        state = LockedState(connection, known)
        effects = decide(
            request, state, SeenBuckets(versions, told), PROCEDURES, version=now_us + 1, now_us=now_us,
            fences=Fences(state, closed, marks=False), marks=Fences(state, closed, marks=True),
            chain=self._chain,
        )
        results = msgpack.unpackb(effects.results)
        if not effects.ops:
            connection.execute("rollback")
            return Applied(now_us, results)
        self._write(connection, effects, now_us + 1, sequence, digest, set(versions))
        return Applied(now_us + 1, results)

    def _create(
        self, connection: PatientConnection, missing: list[bytes], told: dict[bytes, int]
    ) -> None:
        """Make rows of buckets, in a transaction of its own.

        The registries of their namespaces change before.
        If that was all that has changed since a transaction has read them, it is told so.
        """
        registries = sorted({registry_of(bucket) for bucket in missing})
        with connection.transaction():
            before = dict(connection.execute(
                "select bucket, version from buckets where bucket = any(%s) order by bucket for update",
                (registries,), binary=True,
            ).fetchall())
            after = dict(connection.execute(
                f"insert into buckets as b (bucket, version) select each, {CLOCK}"
                " from unnest(%s::bytea[]) each order by each on conflict (bucket) do update"
                f" set version = greatest(b.version + 1, {CLOCK}) returning bucket, version",
                (registries,), binary=True,
            ).fetchall())
            connection.execute(
                "insert into buckets (bucket, version) select each, 0 from unnest(%s::bytea[]) each"
                " order by each on conflict do nothing", (missing,),
            )
        for registry in registries:
            if told.get(registry, -1) == before.get(registry, 0):
                told[registry] = after[registry]
        told.update({bucket: 0 for bucket in missing if bucket not in told})

    def _known(
        self, connection: PatientConnection, row: tuple[Any, ...] | None, sequence: int, digest: int
    ) -> Applied:
        """The outcome of a commit that was made by an earlier attempt."""
        if row is None:
            connection.execute("rollback")
            raise _Forgotten
        if row[0] != sequence or row[1] != digest:
            connection.execute("rollback")
            self._begin()
            raise CommitUnknownError("this session has made another commit under this number")
        try:
            results = msgpack.unpackb(row[3])
        except ValueError:
            raise CorruptionError("the result of a commit is damaged") from None
        # A server that was restarted shows what its standby may not have; this waits for that.
        connection.execute("update sessions set active = now() where session = %s", (self._id,))
        connection.execute("commit")
        return Applied(row[2], results)

    def _write(
        self, connection: PatientConnection, effects: Effects, version: int, sequence: int, digest: int,
        locked: set[bytes],
    ) -> None:
        written = sorted({owner_bucket(bucket) for bucket in effects.buckets} & locked)
        unlocked = {owner_bucket(bucket) for bucket in effects.buckets} - locked
        changes = Changes(effects.ops)
        # A range may cover buckets of a run that were never made: nothing can be in them.
        if unlocked and not changes.ranges:
            raise InvariantError(f"a commit writes in buckets that it has not locked: {sorted(unlocked)!r}")
        self._may_be_made = True  # if no answer comes
        with connection.pipeline():
            for start, end in changes.ranges:
                connection.execute("delete from records where key >= %s and key < %s", (start, end))
            if changes.deleted:
                connection.execute("delete from records where key = any(%s)", (changes.deleted,))
            if changes.put:
                connection.execute(
                    "insert into records (key, record, expires)"
                    " select * from unnest(%s::bytea[], %s::bytea[], %s::bigint[])"
                    " on conflict (key) do update set record = excluded.record, expires = excluded.expires",
                    ([*changes.put], [*changes.put.values()],
                     [expires_at(record) or None for record in changes.put.values()]),
                )  # fmt: skip
            for digest_of_run, fence in changes.fences.items():
                if fence is None:
                    connection.execute("delete from fences where digest = %s", (digest_of_run,))
                else:
                    connection.execute(
                        "insert into fences values (%s, %s) on conflict (digest) do update"
                        " set fence = excluded.fence", (digest_of_run, fence),
                    )
            connection.execute(
                "update buckets set version = %s where bucket = any(%s)", (version, written)
            )
            made = connection.execute(
                "update sessions set sequence = %s, digest = %s, version = %s, result = %s, active = now()"
                " where session = %s and sequence < %s",
                (sequence, digest, version, effects.results, self._id, sequence),
            )
            connection.execute("commit")
        if made.rowcount != 1:
            raise InvariantError("another commit has this number")


def _between(versions: Mapping[bytes, int], start: bytes, end: bytes) -> dict[bytes, int]:
    """The versions of the buckets in a range over runs, and of their registry."""
    registry = registry_of(start)
    return {
        bucket: version for bucket, version in versions.items() if bucket == registry or start <= bucket < end
    }


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
        if self._connections.is_scarce:
            session.lend()
        with self._lock:
            self._free.append(session)

    def commit(
        self, body: bytes, *, sync: bool, timeout_s: float, told: dict[bytes, int] | None = None
    ) -> Applied:
        """Make a commit; see `ServerSession.commit`."""
        session: ServerSession | None = self.take()
        assert session is not None
        try:
            return session.commit(body, told or {}, sync=sync, timeout_s=timeout_s)
        except CommitUnknownError:
            session.close()
            session = None  # its error has it
            raise
        finally:
            if session is not None:
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
