"""Commits: decided here, under locks that the server keeps.

Invariant: a commit whose connection is lost is sent again, under its number: the row of
the session says whether it was made. A refused one leaves no trace.
"""

from __future__ import annotations

import os
import random
import time
from typing import Final

import psycopg
import xxhash

from inmem.client.applied import Applied
from inmem.engines.postgres.asking import BEGIN, ROLLBACK
from inmem.engines.postgres.attempts import Attempt, Commit, ForgottenError, Outcome
from inmem.engines.postgres.connections import Connections, ServerConnection, is_lost
from inmem.engines.postgres.known import Memory, Told
from inmem.engines.postgres.statements import ADD_SESSION, LOCKED, SOON_OVER
from inmem.errors import CommitUnknownError, InmemError, InvalidInputError, WriterUnavailableError
from inmem.writeset import MalformedError, decode

_AGAIN: Final = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
_LOST: Final = (psycopg.OperationalError, psycopg.InterfaceError)
_PAUSE_S: Final = 0.01


class ServerSession:
    """Whose commits have numbers; it has a connection of its own. One call at a time."""

    def __init__(self, connections: Connections, chain: int, memory: Memory) -> None:
        self._connections = connections
        self._chain = chain
        self._memory = memory
        self._connection: ServerConnection | None = None
        self._begin()

    def _begin(self) -> None:
        self._id = os.urandom(16)
        self._sequence = 0
        self._held: frozenset[bytes] = frozenset()  # rows that its connection has locked, see `hold`
        self._is_stored = False
        self._is_in_doubt = False  # whether the commit of the next number may have been made

    def commit(self, body: bytes, told: Told, *, sync: bool, timeout_s: float) -> Applied:
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
        self, bodies: list[bytes], told: Told, *, sync: bool, timeout_s: float
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
        held, self._held = self._held, frozenset()
        sync = sync and self._connections.durability != "sync"  # else each commit is
        pause_s = _PAUSE_S / 2
        while True:
            try:
                connection = self._connected(deadline)
            except WriterUnavailableError:
                if was_sent:
                    raise self._unknown(bodies, told, sync) from None
                raise
            try:
                outcomes = self._attempt(connection, commits, told, sequence, digest, sync, held)
            except ForgottenError:
                may_be_made = self._is_in_doubt
                self._begin()
                if may_be_made:
                    raise CommitUnknownError("the server does not know this session any more") from None
                sequence = 1
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
            except BaseException as error:
                self._ended(connection)
                if was_sent or not isinstance(error, InmemError):
                    self._begin()  # what was sent before may still be on its way: it finds another session
                raise
            else:
                self._is_in_doubt = False
                return outcomes
            held = frozenset()
            time.sleep(random.uniform(0, pause_s))
            pause_s = min(1.0, pause_s * 2)

    def _attempt(
        self, connection: ServerConnection, commits: list[Commit], told: Told, sequence: int, digest: int,
        sync: bool, held: frozenset[bytes],
    ) -> list[Outcome]:
        if not self._is_stored:
            if held:
                connection.ask((ROLLBACK, ()))
                held = frozenset()
            connection.ask((ADD_SESSION, (self._id,)))
            self._is_stored = True
        attempt = Attempt(
            connection, self._connections, self._memory, self._chain, self._id, sequence, digest
        )
        outcomes = attempt.make(commits, told, sync=sync, is_in_doubt=self._is_in_doubt, held=held)
        if attempt.is_made:
            self._sequence = sequence
        return outcomes

    def _unknown(self, bodies: list[bytes], told: Told, sync: bool) -> CommitUnknownError:
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

    def close(self) -> None:
        """Its connection goes."""
        if self._connection is not None:
            self._connection.close()


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
        self._free.append(session)

    def commit(
        self, body: bytes, *, sync: bool, timeout_s: float, told: Told | None = None,
        held: ServerSession | None = None,
    ) -> Applied:
        """Make a commit; see `ServerSession.commit`. `held` is a session that has locked for it."""
        session = self.take() if held is None else held
        try:
            return session.commit(body, told or Told(), sync=sync, timeout_s=timeout_s)
        finally:
            self.give_back(session)

    def commit_all(self, bodies: list[bytes], *, sync: bool, timeout_s: float) -> list[Outcome]:
        """Make some commits as one transaction; see `ServerSession.commit_all`."""
        session = self.take()
        try:
            return session.commit_all(bodies, Told(), sync=sync, timeout_s=timeout_s)
        finally:
            self.give_back(session)

    def close(self) -> None:
        """Close those that are free."""
        free, self._free = self._free, []
        for session in free:
            session.close()

    def after_fork_in_child(self) -> None:
        """Those of the parent are its own."""
        self._free = []
