"""A connection that no call waits on for longer than it may.

Invariant: nothing is ever cancelled. A call whose deadline passes, or that is
interrupted, ends its connection; a commit that was under way there is made or
not, and the row of its session tells. A cancelled one could be answered as
made while no standby has it.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from typing import Any

import psycopg
from psycopg import waiting


class PatientConnection(psycopg.Connection[Any]):
    """A connection that no call waits on for longer than until its deadline."""

    deadline = math.inf  # of the call that uses it, by `time.monotonic`
    patience_s = math.inf  # for one answer, where another server may have taken over from this one
    is_in_doubt = False  # a standby was not waited for

    def __del__(self, *_: Any) -> None:
        """psycopg warns here. An interrupt between two lines may drop one: libpq ends it with its object."""

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """What psycopg waits with. An interrupt or a deadline that passes ends the connection."""
        left_s = min(self.left_s(), self.patience_s)
        until = time.monotonic() + left_s
        if left_s < math.inf:
            timeout = left_s if timeout is None else min(left_s, timeout)
        try:
            found = waiting.wait(gen, self.pgconn.socket, interval, timeout)
        except psycopg.Error as error:
            if error.sqlstate is None and time.monotonic() >= until:
                self.close()
                raise psycopg.OperationalError("the server did not answer in time") from None
            raise
        except BaseException:
            self.close()
            raise
        self.check_doubt()
        return found

    def cut(self) -> None:
        """End what another thread does with it. That one closes it: the socket has its number until then."""
        try:
            number = os.dup(self.pgconn.socket)
        except (psycopg.Error, OSError):
            return  # it is closed
        with socket.socket(fileno=number) as ours, contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)

    def left_s(self) -> float:
        """How long the call may still wait."""
        return max(0.0, self.deadline - time.monotonic())

    def check_doubt(self) -> None:
        """Raise, as if it was lost, if the answer that came may be of a commit that no standby has."""
        if self.is_in_doubt:
            self.close()
            raise psycopg.OperationalError("the server does not wait for its standby")

    def noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        """Something else than an answer has come; its text may be in any language."""
        if notice.source_function == "SyncRepWaitForLSN":
            self.is_in_doubt = True
