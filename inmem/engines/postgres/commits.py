"""Commits: decided here, under locks that the server keeps.

Invariant: a commit whose connection is lost is sent again, under its number: the row of
the session says whether it was made. A refused one leaves no trace.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
import xxhash

from inmem.client.applied import Applied
from inmem.engines.postgres.asking import BEGIN, ROLLBACK, Ask
from inmem.engines.postgres.attempts import Attempt, Commit, Outcome
from inmem.engines.postgres.connections import Connections, ServerConnection
from inmem.engines.postgres.failures import ForgottenError, as_ours, is_gone, is_lost
from inmem.engines.postgres.green import pause
from inmem.engines.postgres.known import Memory, Told
from inmem.engines.postgres.statements import ADD_SESSION, DROP_SESSION, LOCKED, SOON_OVER
from inmem.errors import (
    CommitsLostError,
    CommitUnknownError,
    DatabaseGoneError,
    InmemError,
    InvalidInputError,
    WriterUnavailableError,
)
from inmem.writeset import MalformedError, decode

_AGAIN: Final = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
_PAUSE_S: Final = 0.01


def _now() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ServerSession:
    """Whose commits have numbers; it has a connection for each. One call at a time."""

    def __init__(self, connections: Connections, chain: int, memory: Memory) -> None:
        self._connections = connections
        self._chain = chain
        self._memory = memory
        self._connection: ServerConnection | None = None
        self._used_at = _now()
        self._may_be_trimmed = False  # it was idle for so long
        self._resending = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._id = os.urandom(16)
        self._sequence = 0  # of its last commit that was acknowledged
        self._version = 0
        self._held: frozenset[bytes] = frozenset()  # rows that its connection has locked, see `hold`
        self._is_stored = False

    def commit(self, body: bytes, told: Told, *, sync: bool, timeout_s: float) -> Applied:
        """Decide one commit and make it.

        Raises:
            CommitUnknownError: the connection was lost, and no server came back in time.
            CommitsLostError: the server has lost commits of this session that it had acknowledged.
            WriterUnavailableError: there was no server; nothing was made.
            InmemError: it was refused.
        """
        [outcome] = self.commit_all([body], told, sync=sync, timeout_s=timeout_s)
        return _given(outcome)

    def commit_all(
        self, bodies: list[bytes], told: Told, *, sync: bool, timeout_s: float, resent: int | None = None
    ) -> list[Outcome]:
        """Decide some commits in their order, and make them as one transaction; what became of each.

        `resent` is the number under which they were sent before. Raises as `commit`; what one alone is
        refused for is raised too.
        """
        try:
            commits = [Commit(decode(body)) for body in bodies]
        except MalformedError as error:
            raise InvalidInputError(str(error)) from None
        now = _now()
        self._may_be_trimmed = now - self._used_at > self._connections.session_ttl_s / 2
        if resent is None and not self._held and self._may_be_trimmed:
            self._begin()
        self._used_at = now
        sequence = self._sequence + 1 if resent is None else resent
        digest = xxhash.xxh3_64_intdigest(b"".join(bodies)) - (1 << 63)
        deadline = time.monotonic() + timeout_s
        may_be_made = resent is not None
        said: psycopg.Error | None = None  # the last that the server has said, which tells more than silence
        held, self._held = self._held, frozenset()
        sync = sync and self._connections.durability != "sync"  # else each commit is
        pause_s = _PAUSE_S / 2
        while True:
            try:
                connection = self._connected(deadline)
            except WriterUnavailableError:
                if may_be_made:
                    raise self._unknown(bodies, told, sync, sequence) from None
                raise
            attempt = Attempt(
                connection, self._connections, self._memory, self._chain, self._id, sequence, digest
            )
            try:
                if not self._is_stored:
                    held = self._stored(connection, held)
                outcomes = attempt.make(commits, told, sync=sync, is_in_doubt=may_be_made, held=held)
            except ForgottenError as error:
                is_known = self._check_lost(error)
                self._begin()
                if may_be_made and not is_known:
                    raise CommitUnknownError("the server does not know this session any more") from None
                may_be_made = False  # it was not: what came before it is not there either
                sequence = 1
            except _AGAIN as error:
                self._ended(connection)
                if time.monotonic() >= deadline:
                    unknown = self._unknown(bodies, told, sync, sequence)
                    raise (unknown if may_be_made else as_ours(error)) from None
            except psycopg.Error as error:
                is_lasting = not is_lost(error, connection)
                said = error if error.sqlstate or said is None else said
                may_be_made |= attempt.may_be_made and is_gone(connection)
                self._connections.lost(connection)
                if is_lasting or time.monotonic() >= deadline:
                    unknown = self._unknown(bodies, told, sync, sequence)
                    raise (unknown if may_be_made else as_ours(said)) from None
            except BaseException as error:
                self._ended(connection)
                if may_be_made or not isinstance(error, InmemError):
                    # What was sent before may still be on its way: it finds another session, or none.
                    if isinstance(error, InmemError) and not self._forgotten(connection):
                        raise self._unknown(bodies, told, sync, sequence) from None
                    self._begin()
                raise
            else:
                if attempt.is_made:
                    self._sequence = sequence
                    self._version = max(each.version for each in outcomes if isinstance(each, Applied))
                return outcomes
            held = frozenset()
            pause(random.uniform(0, pause_s))
            pause_s = min(1.0, pause_s * 2)

    def _stored(self, connection: ServerConnection, held: frozenset[bytes]) -> frozenset[bytes]:
        """Have the server know the session; the rows that are still locked."""
        add: Ask = ADD_SESSION, (self._id, self._connections.database_id)
        connection.ask(*([(ROLLBACK, ())] if held else []), add)
        self._is_stored = True
        return frozenset()

    def _check_lost(self, found: ForgottenError) -> bool:
        """Tell of commits that were acknowledged and are not there; whether there are such.

        Raises:
            DatabaseGoneError: another store is there.
            CommitsLostError: the server has lost some that it was to keep.
        """
        connections = self._connections
        if found.database_id != connections.database_id:
            raise DatabaseGoneError("the server holds another store there than it did") from None
        lost = self._sequence - (found.last or 0)
        if lost <= 0 or (found.last is None and self._may_be_trimmed):
            return False
        text = f"the server has lost {lost} commits of this session that it had acknowledged"
        connections.tell_once(text)
        if connections.durability == "sync":
            version = self._version
            self._begin()
            raise CommitsLostError(text, lost=lost, version=version) from None
        return True

    def _forgotten(self, connection: ServerConnection) -> bool:
        """Whether the server now refuses whatever still comes of this session."""
        try:
            connection.ask((DROP_SESSION, (self._id,)))
        except psycopg.Error:
            connection.close()
            return False
        return True

    def _unknown(
        self, bodies: list[bytes], told: Told, sync: bool, sequence: int
    ) -> CommitUnknownError:
        """From now on the session is of these commits alone: nothing else may have their number."""
        error = CommitUnknownError("the connection was lost, and it is not known whether the commit was made")

        def resend(timeout_s: float | None) -> Any:
            with self._resending:
                try:
                    outcomes = self.commit_all(
                        bodies, told, sync=sync, timeout_s=10.0 if timeout_s is None else timeout_s,
                        resent=sequence,
                    )
                finally:
                    self.close()
            return outcomes if len(bodies) > 1 else _given(outcomes[0])

        error.resender = resend
        return error

    def _connected(self, deadline: float) -> ServerConnection:
        if self._connection is not None and self._connection.closed:
            self.rest()
        if self._connection is None:
            self._connection = self._connections.take(deadline)
        self._connection.deadline = deadline
        return self._connection

    def rest(self) -> None:
        """Give its connection back until the next commit."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._connections.give_back(connection)

    def _ended(self, connection: ServerConnection) -> None:
        """No transaction is open any more."""
        try:
            connection.ask((ROLLBACK, ()))
        except psycopg.Error:
            connection.close()

    def hold(self, rows: list[bytes], timeout_s: float) -> None:
        """Lock rows of buckets for the next commit, before it is known, and reads after that.

        The server lets them go if nothing comes for a second.
        """
        connection = self._connected(time.monotonic() + timeout_s)
        try:
            connection.ask((BEGIN, ()), (SOON_OVER, ()), (LOCKED, (rows,)))
        except psycopg.Error:
            self._ended(connection)
        else:
            self._held = frozenset(rows)

    def let_go(self) -> None:
        """There is no such commit."""
        if self._held and self._connection is not None:
            self._held = frozenset()
            self._connection.tell(ROLLBACK)
            self.rest()

    def close(self) -> None:
        """Its connection goes."""
        if self._connection is not None:
            self._connection.close()
            self.rest()


def _given(outcome: Outcome) -> Applied:
    if isinstance(outcome, InmemError):
        raise outcome
    return outcome


def _one_of(group: CommitUnknownError, number: int) -> CommitUnknownError:
    """The error of one commit of a group: to resend it is to resend the group, once for all of them."""
    again = group.resender
    assert again is not None
    error = CommitUnknownError(group.message, hint=group.hint)
    error.resender = lambda timeout_s: _given(again(timeout_s)[number])
    return error


class ServerSessions:
    """The sessions of an engine: one for each commit that is under way, kept for the next one."""

    def __init__(self, connections: Connections, chain: int) -> None:
        self._connections = connections
        self._chain = chain
        self._free: list[ServerSession] = []
        self._memory = Memory()

    def take(self) -> ServerSession:
        """One that nobody else uses."""
        try:
            return self._free.pop()  # a list's own methods are safe among threads
        except IndexError:
            return ServerSession(self._connections, self._chain, self._memory)

    def give_back(self, session: ServerSession) -> None:
        """It is free again."""
        session.rest()
        self._free.append(session)

    def commit(
        self, body: bytes, *, sync: bool, timeout_s: float, told: Told | None = None,
        held: ServerSession | None = None,
    ) -> Applied:
        """Make a commit; see `ServerSession.commit`. `held` is a session that has locked for it."""
        session = self.take() if held is None else held
        try:  # as `_used`
            [outcome] = session.commit_all([body], told or Told(), sync=sync, timeout_s=timeout_s)
        except CommitUnknownError:
            session.close()
            raise
        except BaseException:
            self.give_back(session)
            raise
        self.give_back(session)
        if isinstance(outcome, InmemError):
            raise outcome
        return outcome

    def commit_all(self, bodies: list[bytes], *, sync: bool, timeout_s: float) -> list[Outcome]:
        """Make some commits as one transaction; see `ServerSession.commit_all`.

        If it is not known what became of several, each has an error of its own, to be resolved.
        """
        try:
            with self._used() as session:
                return session.commit_all(bodies, Told(), sync=sync, timeout_s=timeout_s)
        except CommitUnknownError as error:
            if len(bodies) == 1 or error.resender is None:
                raise
            return [_one_of(error, number) for number in range(len(bodies))]

    @contextmanager
    def _used(self, session: ServerSession | None = None) -> Iterator[ServerSession]:
        """A session for a call. One whose commit is in doubt is not used again: its error has it."""
        session = self.take() if session is None else session
        try:
            yield session
        except CommitUnknownError:
            session.close()
            raise
        except BaseException:
            self.give_back(session)
            raise
        else:
            self.give_back(session)

    def close(self) -> None:
        """Close those that are free."""
        free, self._free = self._free, []
        for session in free:
            session.close()

    def after_fork_in_child(self) -> None:
        """Those of the parent are its own."""
        self._free = []
