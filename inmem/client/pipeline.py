"""Pipelined writes: sent in groups, without waiting for each answer.

Invariant: writes take effect in the order in which they were made. The session
that a group was submitted with is the one that is asked for its outcome.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import get_ident
from types import FrameType
from typing import Any, Final, Protocol, TypeVar

from inmem.client.applied import Applied
from inmem.client.batch import (
    PART_BYTES,
    AwaitedCall,
    Call,
    Entry,
    JoinedCall,
    operations,
    resolve_all,
    size_of,
)
from inmem.client.retry import resolved_as
from inmem.config import Settings
from inmem.errors import BusyError, ClosedError, CommitUnknownError, ForkError, InmemError
from inmem.host.interrupts import OneThread
from inmem.pending import Pending
from inmem.primitives.server import WRITE_WHOLE
from inmem.stepping import Steps, driven
from inmem.writeset import OP_CALL, OP_PUT, WriteSet

T = TypeVar("T")
_this_frame = sys._getframe
_GROUP_BYTES: Final = 1 << 20  # of writes that travel together, as `size_of` counts: these fit a commit


class Submits(Protocol):
    """A session, as far as a pipeline needs it. Its numbers follow on each other, one for each commit."""

    @property
    def next_sequence(self) -> int: ...

    def forget(self, sequence: int) -> None: ...

    def submit(self, body: bytes, *, sync: bool, timeout_s: float) -> int: ...

    def outcome(self, sequence: int, timeout_s: float) -> Applied: ...

    def has_room(self, body: bytes) -> bool: ...


class SessionSource(Protocol):
    """Where a session comes from that nobody else uses meanwhile."""

    def take(self) -> Any: ...

    def give_back(self, session: Any) -> None: ...


class PipelineSink:
    """Where the writes of one group of a pipeline go."""

    __slots__ = ("_pipeline",)

    def __init__(self, pipeline: PipelinedWrites) -> None:
        self._pipeline = pipeline

    @property
    def default(self) -> Callable[[Any], Any] | None:
        """See `Sink`."""
        return self._pipeline.default

    def put(self, key: bytes, payload: bytes, expires: int) -> None:
        """Write a record."""
        self._pipeline.add(self, len(payload) + PART_BYTES, [OP_PUT, key, payload, expires])

    def write(self, ops: list[list[Any]]) -> None:
        """Some operations, in one commit."""
        entries: list[Entry] = [Call(op[1], op[2]) if op[0] == OP_CALL else op for op in ops]
        # What is unforeseen goes alone: with others it could be more than one commit may come to.
        is_unforeseen = any(op[0] == OP_CALL and op[1] in WRITE_WHOLE for op in ops)
        self._pipeline.add(self, _GROUP_BYTES if is_unforeseen else size_of(ops), *entries)

    def call(self, procedure: str, arguments: list[Any], pending: type[Pending[Any]]) -> Pending[Any]:
        """Run a procedure; the result is there after the flush."""
        result = pending()
        self._pipeline.add(self, size_of(arguments), AwaitedCall(procedure, arguments, result))
        return result

    def join(
        self, procedure: str, head: Any, items: list[Any], part: Callable[[Any, int], Any],
        pending: type[Pending[Any]], *, is_one: bool = False,
    ) -> Any:
        """Run a procedure on items, in one call with those of the write before if it takes them."""
        return self._pipeline.join(self, procedure, head, items, pending, is_one)

    def ask(
        self, procedure: str, arguments: list[Any], convert: Callable[[Any], T], *, alone: str = "",
        shows_time: bool = True, is_sure: bool = False,
    ) -> Pending[T]:
        """Run a procedure; what `convert` makes of its result is there after the flush."""
        result: _Converted[T] = _Converted(convert)
        self._pipeline.add(self, size_of(arguments), AwaitedCall(procedure, arguments, result))
        return result

    def drive(self, steps: Steps[T]) -> T:
        """Take steps; what they return."""
        return driven(steps)


class _Converted(Pending[T]):
    __slots__ = ("_convert",)

    def __init__(self, convert: Callable[[Any], T]) -> None:
        super().__init__()
        self._convert = convert

    def resolve(self, result: Any) -> None:
        super().resolve(self._convert(result))


class PipelinedWrites(OneThread):
    """The groups of one pipeline: the one that is filled, and those that are under way."""

    default: Callable[[Any], Any] | None = None  # see `Sink`

    def __init__(self, sessions: SessionSource, settings: Settings, *, sync: bool) -> None:
        super().__init__()
        self._settings = settings
        self._sync = sync
        self._sessions = sessions
        self._session: Submits | None = None  # taken when there is something to send
        self._is_closed = False
        self._is_inherited = False  # by a forked child
        self._limit = settings.pipeline_group
        self._group: list[Entry] = []
        self._filled_for: PipelineSink | None = None
        self._left = 0  # how many writes more it takes
        self._free = 0  # and about how many bytes
        self._groups: list[list[Entry]] = []  # that are full: the first ones are submitted, none is settled
        self._first = 0  # the number of the first of them in its session
        self._error: InmemError | None = None
        self._inside: FrameType | None = None  # the call that is under way

    @property
    def is_over(self) -> bool:
        """Whether it was closed."""
        return self._is_closed

    def after_fork_in_child(self) -> bool:
        """What was written to it the parent sends. The database can be used."""
        self.thread, self._is_inherited = 0, True
        return False

    def take_over(self) -> None:
        """See `OneThread`.

        Raises:
            ForkError: it belongs to the parent process.
        """
        if self._is_inherited:
            self.thread = 0
            raise ForkError("this pipeline belongs to the parent process")
        super().take_over()

    def sink(self) -> PipelineSink:
        """Where the writes of one group go: consecutive ones travel together as one commit."""
        return PipelineSink(self)

    def in_flight(self) -> int:
        """How many commits are sent and not answered."""
        session = self._session
        return 0 if session is None or not self._first else session.next_sequence - self._first

    def add(self, sink: PipelineSink, size: int, *entries: Entry) -> None:
        """The next write, of about so many bytes (see `size_of`).

        Raises:
            BusyError: called by a signal handler or finalizer in the middle of another call, or by another
                thread while one is under way.
            LimitError: it is too much for a commit.
        """
        if self._inside is not None:
            self._refuse_nested()
        if self.thread != get_ident():
            self.take_over()
        try:
            self._inside = _this_frame()
            if size > _GROUP_BYTES:
                WriteSet(ops=operations([*entries])).encode()  # too much for a commit: say so here
            if self._filled_for is not sink or not self._left or size > self._free:
                self._next_group(sink)
            self._left -= 1
            self._free -= size
            self._group.extend(entries)
        finally:
            self._inside = None

    def join(
        self, sink: PipelineSink, procedure: str, head: Any, items: list[Any], pending: type[Pending[Any]],
        is_one: bool,
    ) -> Any:
        """The next write, in the call of the one before if that takes its items. Raises as `add`."""
        if self._inside is not None:
            self._refuse_nested()
        if self.thread != get_ident():
            self.take_over()
        try:
            self._inside = _this_frame()
            size = size_of(items)
            if size > _GROUP_BYTES:
                WriteSet(ops=[[OP_CALL, procedure, [head, items]]]).encode()
            if self._filled_for is not sink or not self._left or size > self._free:
                self._next_group(sink)
            self._left -= 1
            self._free -= size
            group = self._group
            if not items:
                return []
            # All of a group is of one run: a call of the same procedure has the same head.
            added = None
            if group:
                last = group[-1]
                if type(last) is JoinedCall and last.procedure == procedure:
                    added = last.join(procedure, items, pending)
            if added is None:
                call = JoinedCall(procedure, head)
                added = call.join(procedure, items, pending)
                assert added is not None
                group.append(call)
            return added[0] if is_one else added
        finally:
            self._inside = None

    def _refuse_nested(self) -> None:
        """Refuse a call in the middle of another: the group that it fills may be sent under it."""
        frame: FrameType | None = _this_frame()
        while frame is not None:
            if frame is self._inside:
                raise BusyError(
                    "this pipeline is in the middle of another call of this thread", what="pipeline",
                    hint="In a signal handler or finalizer, write through the database or another pipeline.",
                )
            frame = frame.f_back
        # The call that is noted was interrupted before it could say that it has ended.

    def _next_group(self, sink: PipelineSink) -> None:
        """Begin the group that the next write of a sink belongs to."""
        if self._is_closed:
            raise ClosedError("the pipeline is closed")
        self._send()
        self._filled_for, self._left, self._free = sink, self._limit, _GROUP_BYTES

    def _send(self) -> None:
        """Close the group that is filled, and submit what is not submitted."""
        if self._group:
            # One statement: an interrupt leaves the group here or there.
            self._groups, self._group, self._filled_for = [*self._groups, self._group], [], None
        if not self._groups or self._is_closed:
            return
        session = self._session
        if session is None:
            session = self._session = self._sessions.take()
        if not self._first:
            self._first = session.next_sequence
        while (index := session.next_sequence - self._first) < len(self._groups):
            try:
                body = WriteSet(ops=operations(self._groups[index])).encode()
                if index and (index >= self._settings.pipeline_window or not session.has_room(body)):
                    self._settle(session)
                    continue
                session.submit(body, sync=self._sync, timeout_s=self._settings.timeout_s)
            except InmemError as error:  # of earlier writes: not to be raised by the one that comes next
                if error.is_foreign:
                    raise  # the group is on its way, or still here
                self._groups, self._error = (
                    [*self._groups[:index], *self._groups[index + 1 :]], self._error or error
                )

    def send(self) -> None:
        """Send what is left, and do not wait."""
        self._send()

    def settle_oldest(self) -> None:
        """Note the outcome of the oldest group that was sent, if there is one; it is waited for."""
        if self._groups and self._session is not None:
            self._settle(self._session)

    def _settle(self, session: Submits) -> None:
        """Wait for the oldest group, which stays until its outcome is noted."""
        sequence = self._first
        error: InmemError | None = None
        try:
            resolve_all(self._groups[0], session.outcome(sequence, self._settings.timeout_s).results)
        except InmemError as problem:
            if problem.is_foreign:
                raise
            error, group = problem, self._groups[0]
            if isinstance(problem, CommitUnknownError):
                resolved_as(problem, lambda applied: resolve_all(group, applied.results))
        self._groups, self._first, self._error = self._groups[1:], sequence + 1, self._error or error
        session.forget(sequence)

    def flush(self) -> None:
        """Send what is left, wait for all answers and raise the first error.

        Raises:
            InmemError: the first error of a write; later writes may have been applied.
            BusyError: as of `add`.
        """
        if self._inside is not None:
            self._refuse_nested()
        if self.thread != get_ident():
            self.take_over()
        try:
            self._inside = _this_frame()
            self._send()
            while self._groups and self._session is not None:
                self._settle(self._session)
        finally:
            self._inside = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Take no more writes, and give the session back."""
        session, self._session, self._filled_for, self._is_closed = self._session, None, None, True
        if session is None or self._is_inherited:
            return
        if self.thread == get_ident() or not self.is_inside():  # else another thread is using it
            self._sessions.give_back(session)
