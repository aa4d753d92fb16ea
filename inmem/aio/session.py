"""A session of an event loop: many commits under way at once, each of which takes effect exactly once.

It drives `inmem.client.protocol` over one connection. What coroutines commit
in one turn of the loop travels in one message, and so do the answers. There is
no thread, except while a writer is looked for, which may have to be started.

Invariant: a commit has a number only once it is sent. So one that is cancelled
before that leaves nothing behind; one that is cancelled later stays under way,
and its answer is taken by nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from inmem.aio.connection import LoopConnection
from inmem.client.applied import Applied, applied
from inmem.client.protocol import PATIENCE_S, Answered, SessionProtocol
from inmem.client.session import WriterAccess
from inmem.client.zmtp import path_of
from inmem.config import FORMAT_VERSION, MAX_IN_FLIGHT_BYTES, MIB, PROTOCOL_VERSION
from inmem.errors import (
    ClosedError,
    CommitUnknownError,
    ForkError,
    InmemError,
    InvariantError,
    WriterUnavailableError,
)
from inmem.host.control import EPOCH
from inmem.wire import COMMITS, FLAG_SYNC, GOODBYE, GOODBYE_HEADER, from_wire, together

IN_FLIGHT: Final = 64  # commits; more of them wait here, so that other sessions get their share
_TOGETHER_BYTES: Final = MIB  # of commits in one message
_LATE: Final = 1024  # answers that came after their deadline, kept for who resends
_TICK_S: Final = 0.2  # while something is under way
_RETRY_S: Final = 0.002  # before another look at who serves; doubles
_RETRY_MAX_S: Final = 0.1
_GOODBYE_S: Final = 0.2  # for a writer that does not read


T = TypeVar("T")


class _Commit:
    __slots__ = ("body", "convert", "deadline", "flags", "future", "is_resent", "timeout_s")

    def __init__(
        self, body: bytes, flags: int, convert: Callable[[Applied], Any], timeout_s: float,
        future: asyncio.Future[Any],
    ) -> None:
        self.body = body
        self.flags = flags
        self.convert = convert
        self.timeout_s = timeout_s
        self.deadline = time.monotonic() + timeout_s
        self.future = future
        self.is_resent = False  # then its answer is kept: it may be asked for again


class LoopSession:
    """The commits of one event loop to one store. All of it runs in that loop."""

    def __init__(self, access: WriterAccess) -> None:
        self._access = access
        self.loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._in_flight = min(IN_FLIGHT, access.settings.max_in_flight)
        self.protocol = SessionProtocol(max_in_flight=self._in_flight, patience_s=PATIENCE_S)
        self._queue: deque[_Commit] = deque()  # not sent, so without a number
        self._sent: dict[int, _Commit] = {}
        self._sent_bytes = 0
        self._late: dict[int, Answered] = {}
        self.open: set[LoopConnection] = set()
        self._connection: LoopConnection | None = None  # that was welcomed
        self._connecting: asyncio.Task[None] | None = None
        self._welcome: asyncio.Future[None] | None = None  # awaited by `_connecting`
        self._is_flush_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    # --- commits ----------------------------------------------------------------------

    def commit(
        self, body: bytes, convert: Callable[[Applied], Any], *, sync: bool, timeout_s: float
    ) -> asyncio.Future[Any]:
        """Send a commit; a future of what `convert` makes of what it came to.

        Raises:
            ClosedError: the database was closed.
            InvariantError: called in another event loop.
            ForkError: called in a forked child.

        The future raises:
            WriterUnavailableError: no writer before the deadline; nothing was sent.
            CommitUnknownError: sent, and not answered in time; what its `resend` gives is to be awaited.
            InmemError: what the writer decided.
        """
        self._check()
        future = self.loop.create_future()
        self._queue.append(_Commit(body, FLAG_SYNC if sync else 0, convert, timeout_s, future))
        if not self._is_flush_due:
            self._is_flush_due = True
            self.loop.call_soon(self.flush)
        if self._timer is None:
            self._timer = self.loop.call_later(min(_TICK_S, timeout_s), self._tick)
        elif timeout_s < _TICK_S:
            self.loop.call_later(timeout_s, self._end_overdue)
        return future

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise ForkError("this database belongs to the event loop of the parent process")
        check_loop(self.loop)
        if self._is_closed or self._access.closed:
            raise ClosedError("the database is closed")

    def in_flight(self) -> int:
        """How many commits are not answered."""
        return len(self._queue) + len(self._sent)

    def flush(self) -> None:
        """Send what waits, as far as it may be under way; connect first if need be."""
        self._is_flush_due = False
        connection, queue, protocol = self._connection, self._queue, self.protocol
        if connection is None or self._access.control.words[EPOCH] != connection.epoch:
            if queue or protocol.unanswered:
                self._connect()
            return
        frames: list[bytes] = []
        size = 0
        room = self._in_flight - len(protocol.unanswered)
        while queue and room > 0 and connection.is_writable:
            one = queue[0]
            if one.future.done():  # cancelled, or too late
                queue.popleft()
                continue
            if self._sent and self._sent_bytes + len(one.body) > MAX_IN_FLIGHT_BYTES:
                break
            queue.popleft()
            sequence, frame = protocol.submit(one.body, one.flags)
            self._sent[sequence] = one
            self._sent_bytes += len(one.body)
            room -= 1
            if frames and size + len(frame) > _TOGETHER_BYTES:
                self._send(connection, frames)
                frames, size = [], 0
            frames.append(frame)
            size += len(frame)
        if frames:
            self._send(connection, frames)

    def _send(self, connection: LoopConnection, frames: list[bytes]) -> None:
        connection.send(frames[0] if len(frames) == 1 else together(COMMITS, frames))

    def received(self, connection: LoopConnection, frames: list[bytes]) -> None:
        """Frames have come."""
        protocol, now = self.protocol, time.monotonic()
        for frame in frames:
            protocol.receive(frame, now)
        if self._welcome is not None and protocol.welcome is not None and not self._welcome.done():
            self._welcome.set_result(None)
        for sequence, answered in protocol.fetch_all():
            self._settle(sequence, answered)
        if connection is self._connection:
            if not protocol.is_welcome:  # the writer did not know the session: it has a new id now
                self._lose_what_is_lost()
                self._connection = None
                connection.close()
                self._connect()
            else:
                self._send_outgoing(connection)
                if self._queue:
                    self.flush()

    def _settle(self, sequence: int, answered: Answered) -> None:
        one = self._sent.pop(sequence, None)
        if one is None:
            return
        self._sent_bytes -= len(one.body)
        future = one.future
        if future.cancelled():
            return
        if future.done() or one.is_resent:  # nobody waits any more, but may ask for it
            self._late[sequence] = answered
            if len(self._late) > _LATE:
                del self._late[next(iter(self._late))]
        if future.done():
            return
        try:
            future.set_result(one.convert(applied(answered)))
        except Exception as error:
            future.set_exception(error)

    def _send_outgoing(self, connection: LoopConnection) -> None:
        for frame in self.protocol.outgoing():
            connection.send(frame)

    # --- deadlines --------------------------------------------------------------------

    def _tick(self) -> None:
        """Something is under way: end what is overdue, and say again what has had no answer for long."""
        self._timer = None
        self._end_overdue()
        if self._is_closed or not self._last_deadline():
            return  # nobody waits: the next commit goes on
        self._timer = self.loop.call_later(_TICK_S, self._tick)
        connection = self._connection
        if connection is None or self._access.control.words[EPOCH] != connection.epoch:
            self._connect()
        elif self.protocol.unanswered:
            self.protocol.tick(time.monotonic())
            self._send_outgoing(connection)

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for one in self._queue:
            if now >= one.deadline and not one.future.done():
                one.future.set_exception(WriterUnavailableError(
                    f"nothing could be sent within {one.timeout_s} s", path=self._access.path
                ))
        self._queue = deque(one for one in self._queue if not one.future.done())
        for sequence, one in self._sent.items():
            if now >= one.deadline and not one.future.done():
                one.future.set_exception(self._unknown(sequence, one, f"no answer within {one.timeout_s} s"))

    def _unknown(
        self, sequence: int, one: _Commit, why: str, *, can_resend: bool = True
    ) -> CommitUnknownError:
        error = CommitUnknownError(
            f"the outcome of this commit is not known: {why}",
            commit_id=f"{self.protocol.session_id.hex()}:{sequence}",
        )
        if can_resend:
            default_s = self._access.settings.timeout_s
            error.resender = lambda timeout_s: self._resolve(sequence, one, timeout_s or default_s)
        return error

    async def _resolve(self, sequence: int, one: _Commit, timeout_s: float) -> Any:
        """What `CommitUnknownError.resend` gives, to be awaited. May be asked for again."""
        self._check()
        if sequence in self._late:
            return one.convert(applied(self._late[sequence]))
        under_way = self._sent.get(sequence)
        if under_way is None:
            raise self._unknown(sequence, one, "no writer knows its session any more", can_resend=False)
        if not under_way.future.done():  # it is resent already
            done, _ = await asyncio.wait((under_way.future,), timeout=timeout_s)
            if done:
                return await self._resolve(sequence, one, timeout_s)
            raise self._unknown(sequence, one, f"no answer within {timeout_s} s")
        again = _Commit(one.body, one.flags, one.convert, timeout_s, self.loop.create_future())
        again.is_resent = True
        self._sent[sequence] = again
        if sequence in self.protocol.unanswered and self._connection is not None:
            self._connection.send(self.protocol.frame(sequence))
        if self._timer is None:
            self._timer = self.loop.call_later(min(_TICK_S, timeout_s), self._tick)
        return await again.future

    def _lose_what_is_lost(self) -> None:
        """Nobody can tell any more whether these were applied."""
        for sequence in [each for each in self._sent if each in self.protocol.lost]:
            one = self._sent.pop(sequence)
            self._sent_bytes -= len(one.body)
            if not one.future.done():
                why = "no writer knows its session any more"
                one.future.set_exception(self._unknown(sequence, one, why, can_resend=False))

    # --- the connection ---------------------------------------------------------------

    def _connect(self) -> None:
        if self._connecting is None and not self._is_closed:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()
            self._connecting = self.loop.create_task(self._until_connected())

    async def _until_connected(self) -> None:
        """Find the writer of now, and have it know the session; for as long as somebody waits for that."""
        pause_s = _RETRY_S
        try:
            while not self._is_closed and (deadline := self._last_deadline()) > time.monotonic():
                if await self._try_connect(deadline):
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _RETRY_MAX_S)
        except InmemError as error:
            self._fail_all(error)
        finally:
            self._connecting = None
            if self._connection is not None:
                self.flush()

    def _last_deadline(self) -> float:
        """Until when somebody waits."""
        waiting = [one.deadline for one in (*self._queue, *self._sent.values()) if not one.future.done()]
        return max(waiting, default=0.0)

    async def _try_connect(self, deadline: float) -> bool:
        """Whether the writer of now has welcomed the session.

        Raises:
            InmemError: there is none to be had, or it refuses this client.
        """
        access, protocol = self._access, self.protocol
        state = await _in_thread(lambda: access.ensure_writer(deadline))
        connection = LoopConnection(self, state.epoch)
        try:
            await self.loop.create_unix_connection(lambda: connection, path_of(state.endpoint))
        except OSError:
            return False  # it has ended, or has just begun to listen at another place
        self._welcome = self.loop.create_future()
        try:
            await asyncio.wait(
                (self._welcome, connection.has_ended), timeout=PATIENCE_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
            welcome = protocol.welcome if self._welcome.done() else None
            if welcome is not None:
                if "error" in welcome:
                    raise from_wire(welcome["error"])
                if protocol.welcomed() and not connection.has_ended.done():
                    self._connection = connection
                    self._send_outgoing(connection)
                    return True
                self._lose_what_is_lost()
            return False
        finally:
            self._welcome = None
            if self._connection is not connection:
                connection.close()

    def shaken(self, connection: LoopConnection) -> None:
        """The other side speaks ZMTP: greet it."""
        connection.send(self.protocol.greeting(
            pid=self._pid, database=self._access.database_id, protocol=PROTOCOL_VERSION,
            format_version=FORMAT_VERSION, slot=False,
        ))

    def lost(self, connection: LoopConnection) -> None:
        """A connection has ended."""
        if connection is self._connection:
            self._connection = None
            if self._queue or self.protocol.unanswered:
                self._connect()

    def _fail_all(self, error: InmemError) -> None:
        """No writer can be had: who has sent something does not know what became of it."""
        queue, self._queue = self._queue, deque()
        for one in queue:
            if not one.future.done():
                one.future.set_exception(copy_of(error))
        for sequence, one in self._sent.items():
            if not one.future.done():
                one.future.set_exception(self._unknown(sequence, one, str(error)))

    # --- the end ----------------------------------------------------------------------

    def close(self) -> None:
        """Say goodbye, if nothing is unanswered, and end. What is not answered raises."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        closed = ClosedError("the database was closed")
        for one in self._queue:
            if not one.future.done():
                one.future.set_exception(copy_of(closed))
        for sequence, one in self._sent.items():
            if not one.future.done():
                one.future.set_exception(self._unknown(sequence, one, str(closed), can_resend=False))
        connection, self._connection = self._connection, None
        if connection is not None:
            if not self.protocol.unanswered:
                connection.send(GOODBYE_HEADER.pack(GOODBYE, self.protocol.session_id))
            connection.close()

    def abandon(self) -> None:
        """End without the loop, which is closed already."""
        self._is_closed = True
        self._connection = None
        for connection in [*self.open]:
            if connection.transport is not None:
                connection.transport.abort()

    async def closed(self) -> None:
        """Until the connections are closed, also if nobody takes what was sent."""
        if self._connecting is not None:
            await asyncio.wait((self._connecting,))
        if self.open:
            await asyncio.wait([each.has_ended for each in self.open], timeout=_GOODBYE_S)
        for each in [*self.open]:
            if each.transport is not None:
                each.transport.abort()
                await asyncio.wait((each.has_ended,))


async def _in_thread(call: Callable[[], T]) -> T:
    """Make a call in a thread of its own: those of the loop may all be busy, waiting for this very call.

    Nobody waits for the thread if this is cancelled, at the end of the program either.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def end(result: T | None, error: BaseException | None) -> None:
        if not future.done():
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(cast(T, result))

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = call()
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(end, result, error)

    threading.Thread(target=run, name="inmem-connect", daemon=True).start()
    return await future


def check_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Refuse to be used elsewhere than in this event loop.

    Raises:
        InvariantError: it is not the one that runs here.
    """
    try:
        is_here = asyncio.get_running_loop() is loop
    except RuntimeError:
        is_here = False
    if not is_here:
        raise InvariantError(
            "this database was opened in another event loop", hint="Open it in each loop that uses it."
        )


def copy_of(error: InmemError) -> InmemError:
    """The same error for somebody else: each has a traceback of its own."""
    return type(error)(error.message, hint=error.hint, **error.fields)
