"""The sessions of one thread: each call has one for itself."""

from __future__ import annotations

import threading
from typing import Any

from inmem.client.applied import Applied
from inmem.client.session import Session, WriterAccess
from inmem.errors import ClosedError
from inmem.host.interrupts import let_through


class ThreadSessions(threading.local):
    """The free sessions of one thread.

    A call that comes in the middle of another one of its thread, such as a
    signal handler's, finds that one's session taken and uses another.
    """

    def __init__(self, access: WriterAccess) -> None:
        self._access = access
        self._free: list[Session] = []

    def commit(self, body: bytes, *, sync: bool, timeout_s: float) -> Applied:
        """Commit and wait for the outcome. See `Session.commit`."""
        free = self._free  # as `take` and `give_back`, without their calls: this is what a put costs
        try:
            session = free.pop()
        except IndexError as error:
            let_through(error)
            session = self._new()
        try:
            return session.commit(body, sync=sync, timeout_s=timeout_s)
        finally:
            free.append(session)

    def request(self, kind: int, timeout_s: float) -> tuple[int, Any]:
        """Ask for what changes nothing. See `Session.request`."""
        session = self.take()
        try:
            return session.request(kind, timeout_s)
        finally:
            self.give_back(session)

    def take(self) -> Session:
        """A session for the caller alone, until it is given back."""
        try:
            return self._free.pop()
        except IndexError as error:
            let_through(error)
            return self._new()

    def give_back(self, session: Session) -> None:
        """The caller is done with it, and has fetched what it wants to know."""
        self._free.append(session)

    def _new(self) -> Session:
        if self._access.closed:  # by another thread, which closed the sockets of this one too
            raise ClosedError("the database is closed")
        return Session(self._access)

    def close(self) -> None:
        """Close this thread's sessions. Those of others see that the database is closed."""
        while self._free:
            self._free.pop().close()
