"""A session: one thread's line to the writer, over which commits are exactly once.

Invariant: commits leave in sequence order, each under one identity for ever;
what is unanswered is sent again, in order, to whatever writer comes next, and
is dropped only with its answer. So no failure of the writer reaches a caller
who has time to wait.

A new writer means a new connection, and so does one that has broken: what
was on its way may be lost, and is sent again.

The path is `Line`: it sends frames and waits for answers, both through the
board in shared memory (see `inmem.host.board`) or through the socket.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack

from inmem.client.dealer import Dealer
from inmem.config import (
    FORMAT_VERSION,
    MAX_IN_FLIGHT,
    MAX_IN_FLIGHT_BYTES,
    MAX_MESSAGE_BYTES,
    PROTOCOL_VERSION,
)
from inmem.errors import (
    BusyError,
    ClosedError,
    CommitUnknownError,
    ForkError,
    InmemError,
    WriterUnavailableError,
    from_wire,
)
from inmem.host.board import SUPPORTED, Board
from inmem.host.control import ACTIVE, EPOCH, Control, ControlState
from inmem.wire import (
    ANSWER,
    ANSWER_HEADER,
    APPLIED,
    CHECKPOINT,
    COMMIT,
    COMMIT_HEADER,
    FAILED,
    FLAG_SYNC,
    GOODBYE,
    GOODBYE_HEADER,
    REFUSED,
    REQUEST_HEADER,
    RESEND,
    WELCOME,
    hello,
    parse_map,
)

if TYPE_CHECKING:
    from inmem.client.attachment import Attachment

_SLICE_MS: Final = 10  # how long to block before looking whether the writer lives
_SPIN: Final = 200  # looks before sleeping, about 100 µs: a wake-up costs more than a short wait
_CROWD: Final = 1  # sessions that commit now; with more of them long spins are stolen from the others
_SPIN_IN_CROWD: Final = 60
_SLEEP_US: Final = 1000  # first sleep; doubles, so that a missed wake is cheap and a long wait too
_SLEEP_MAX_US: Final = _SLICE_MS * 1000
_BUSY_DELAY_S: Final = 0.01
_ASK_AGAIN: Final = 32  # commits between two questions for the lost answer of an older one
_PATIENCE_S: Final = 1.0  # without an answer of a living writer: far beyond a large commit's time
_RETRY_S: Final = 0.002  # before another look at who serves; doubles
_RETRY_MAX_S: Final = 0.1


class Line:
    """A socket to one incarnation of the writer, and a way to see its death."""

    def __init__(self, state: ControlState, control: Control, deadline: float) -> None:
        self.epoch = state.epoch
        self._control = control
        self._board: Board | None = None
        self._slot = -1
        self._mail = 0
        self._pidfd = -1
        self._died = False
        try:
            self._pidfd = os.pidfd_open(state.pid)
        except ProcessLookupError:
            self._died = True
        dealer = self._dealer = Dealer(state.endpoint, MAX_MESSAGE_BYTES)
        try:
            self._died |= not dealer.connect(deadline)
        except BaseException:
            self.close()
            raise
        self.send = dealer.send

    def use_board(self, board: Board, slot: int) -> None:
        """From now on answers come through a slot of a board."""
        self._board = board
        self._slot = slot
        self._mail = board.mail(slot)

    def offer(self, frame: bytes) -> bool:
        """Send a frame through the lane of the slot; False if it must go through the socket.

        Through that it goes, too, while the writer sleeps: it has to be woken anyhow.
        """
        board = self._board
        if board is None or board.writer_sleeps() or not board.offer(self._slot, frame):
            return False
        if board.writer_sleeps():  # it lay down meanwhile, and may not have seen the lane
            self.send(b"")
        return True

    def answer(self, sequence: int) -> tuple[int, int, bytes] | bytes | None:
        """The answer to a commit, or a frame that came instead; None after a slice without either.

        Looks for a while before it sleeps, a shorter one if others commit too:
        with more runnable processes than cores that keeps them from their work.
        """
        board = self._board
        if self._dealer.is_sending:
            self._dealer.pump(_SLICE_MS)
            return None
        if board is None:
            return self.receive()
        slot = self._slot
        spin = _SPIN if self._control.words[ACTIVE] <= _CROWD else _SPIN_IN_CROWD
        if board.look(slot, sequence, spin):
            return board.fetch(slot, sequence)
        pause_us = _SLEEP_US
        while pause_us <= _SLEEP_MAX_US:
            board.sleep(slot, sequence, self._mail, pause_us)
            if board.look(slot, sequence, 0):
                return board.fetch(slot, sequence)
            if board.mail(slot) != self._mail:
                return self.receive()
            pause_us *= 2
        return None

    def look(self, sequence: int) -> tuple[int, int, bytes] | None:
        """An answer that is on the board already."""
        board, slot = self._board, self._slot
        return board.fetch(slot, sequence) if board is not None and board.look(slot, sequence, 0) else None

    def has_mail(self) -> bool:
        """Whether the board announces a frame that has not come yet."""
        return self._board is not None and self._board.mail(self._slot) != self._mail

    def took_mail(self) -> None:
        """A frame that the board announced has come, whoever received it."""
        self._mail += 1

    def receive(self) -> bytes | None:
        """The next frame of the socket; None after a slice without one."""
        return self._dealer.receive(_SLICE_MS)

    @property
    def is_sending(self) -> bool:
        """Whether a frame is on its way out."""
        return self._dealer.is_sending

    def is_dead(self) -> bool:
        """Whether the writer's process has ended, or the connection to it."""
        self._dealer.pump(0)
        if self._dealer.ended:
            return True
        if not self._died and self._pidfd >= 0:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            self._died = bool(poll.poll(0))
        return self._died

    def close(self) -> None:
        """Close the socket; what it has taken still arrives."""
        self._dealer.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class Applied(NamedTuple):
    """A commit that took effect: its version, and the results of its procedure calls."""

    version: int
    results: list[Any]


class _Patience:
    """With a writer that lives and does not answer: when to say it again, ever more rarely.

    It may have dropped the answer, to a client that did not read for long.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def is_over(self) -> bool:
        """Whether it is time; then it begins anew, twice as long."""
        now = time.monotonic()
        if now < self._end:
            return False
        self._seconds *= 2
        self._end = now + self._seconds
        return True


class _Pending:
    __slots__ = ("body", "flags", "sent")

    def __init__(self, body: bytes, flags: int) -> None:
        self.body = body
        self.flags = flags
        self.sent = 0  # how often


class Session:
    """One thread's session. Its lock lets another thread resolve an unknown commit."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._lock = threading.RLock()
        self._id = os.urandom(16)
        self._pid = os.getpid()
        self._registered = False
        self._next = 1
        self._pending: dict[int, _Pending] = {}  # unanswered, in sequence order
        self._answers: dict[int, tuple[int, int, bytes]] = {}  # answered, not yet fetched
        self._lost: set[int] = set()  # unanswered, of a session that no writer knows any more
        self._replies: dict[int, tuple[int, int, bytes]] = {}
        self._requests = 0
        self._resent_from = 0  # where the last gap began, until something is answered
        self._patience: _Patience | None = None  # runs while nothing is answered
        self._line: Line | None = None
        self._closed = False
        self._welcome: dict[str, Any] | None = None

    # --- commits --------------------------------------------------------------------

    def commit(self, body: bytes, *, sync: bool, timeout_s: float) -> Applied:
        """Send a commit and wait for its outcome. Cost: one round trip.

        Raises:
            WriterUnavailableError: no writer before the deadline; nothing was sent.
            CommitUnknownError: sent, and not answered before the deadline.
            InmemError: what the writer decided.
        """
        with self._lock:
            deadline = time.monotonic() + timeout_s
            sequence = self._submit(body, sync, deadline)
            return self._outcome(sequence, deadline, timeout_s)

    def submit(self, body: bytes, *, sync: bool, timeout_s: float) -> int:
        """Send a commit and do not wait; `outcome` fetches what became of it."""
        with self._lock:
            return self._submit(body, sync, time.monotonic() + timeout_s)

    def has_room(self, body: bytes) -> bool:
        """Whether a commit can be sent while the unanswered ones are under way."""
        waiting = self._pending
        return not waiting or sum(len(p.body) for p in waiting.values()) + len(body) <= MAX_IN_FLIGHT_BYTES

    def outcome(self, sequence: int, timeout_s: float) -> Applied:
        """Wait for a submitted commit; raises like `commit`."""
        self._refuse_in_child()
        with self._lock:
            return self._outcome(sequence, time.monotonic() + timeout_s, timeout_s)

    def _refuse_in_child(self) -> None:
        if self._pid != os.getpid():
            raise ForkError("this pipeline or transaction belongs to the parent process")

    def _submit(self, body: bytes, sync: bool, deadline: float) -> int:
        self._refuse_in_child()
        if len(self._pending) >= self._attachment.settings.max_in_flight:
            raise BusyError(
                f"{len(self._pending)} commits of this thread are unanswered",
                what="commits in flight", limit=self._attachment.settings.max_in_flight,
            )
        if not self.has_room(body):
            raise BusyError(
                f"the unanswered commits of this thread and this one of {len(body)} bytes are too large",
                what="bytes in flight", limit=MAX_IN_FLIGHT_BYTES,
            )
        line = self._line
        if line is None or self._attachment.control.words[EPOCH] != line.epoch:
            line = self._connect(deadline)
        sequence = self._next
        pending = _Pending(body, FLAG_SYNC if sync else 0)
        self._pending[sequence] = pending
        self._next = sequence + 1
        self._send(line, sequence, pending)
        return sequence

    def _send(self, line: Line, sequence: int, pending: _Pending) -> None:
        pending.sent += 1
        answered_below = next(iter(self._pending))
        frame = COMMIT_HEADER.pack(COMMIT, pending.flags, self._id, sequence, answered_below) + pending.body
        # With others on their way it would overtake them, or they it.
        if pending.sent > 1 or answered_below != sequence or not line.offer(frame):
            line.send(frame)

    def _outcome(self, sequence: int, deadline: float, timeout_s: float) -> Applied:
        answers = self._answers
        try:
            while sequence not in answers:
                if sequence in self._lost:
                    raise self._unknown(sequence, "no writer knows its session any more", False)
                self._step(deadline, sequence)
        except (TimeoutError, WriterUnavailableError) as error:
            why = f"no answer within {timeout_s} s" if isinstance(error, TimeoutError) else str(error)
            raise self._unknown(sequence, why, True) from None
        status, version, result = answers.pop(sequence)
        if status == APPLIED:
            return Applied(version, msgpack.unpackb(result))
        raise from_wire(msgpack.unpackb(result))

    def _unknown(self, sequence: int, why: str, can_resend: bool) -> CommitUnknownError:
        error = CommitUnknownError(
            f"the outcome of this commit is not known: {why}", commit_id=f"{self._id.hex()}:{sequence}"
        )
        if can_resend:
            default = self._attachment.settings.timeout_s
            error._resend = lambda timeout_s: self._resolve(sequence, timeout_s or default)
        return error

    def _resolve(self, sequence: int, timeout_s: float) -> Applied:
        self._refuse_in_child()
        with self._lock:
            if self._closed:
                raise ClosedError("the database was closed")
            if sequence in self._pending and self._line is not None:
                self._send(self._line, sequence, self._pending[sequence])
            return self._outcome(sequence, time.monotonic() + timeout_s, timeout_s)

    # --- requests that change nothing -------------------------------------------------

    def request(self, kind: int, timeout_s: float) -> tuple[int, Any]:
        """Ask for a status, a sync or a checkpoint: (version, result). Safe to repeat, so it simply is.

        Raises:
            WriterUnavailableError: no answer before the deadline.
        """
        with self._lock:
            deadline = time.monotonic() + timeout_s
            self._requests += 1
            number = self._requests
            line: Line | None = None
            patience: _Patience | None = None
            try:
                while number not in self._replies:
                    if self._line is None or line is not self._line:
                        line = self._line or self._connect(deadline)
                        patience = None
                    if patience is None or patience.is_over():
                        line.send(REQUEST_HEADER.pack(kind, number))
                        # A checkpoint takes as long as it takes, and a second request means another one.
                        patience = patience or _Patience(_PATIENCE_S if kind != CHECKPOINT else timeout_s)
                    self._step(deadline)
            except TimeoutError:
                raise WriterUnavailableError(
                    f"the writer did not answer within {timeout_s} s",
                    path=str(self._attachment.directory.path),
                ) from None
            status, version, result = self._replies.pop(number)
            self._replies.clear()
            if status == APPLIED:
                return version, msgpack.unpackb(result)
            raise from_wire(msgpack.unpackb(result))

    # --- the line -----------------------------------------------------------------------

    def _step(self, deadline: float, sequence: int | None = None) -> None:
        """Take in one answer or frame, or find out that the writer is gone and go to the next.

        Raises:
            TimeoutError: the deadline has passed.
        """
        if self._attachment.closed:
            raise ClosedError("the database is closed")
        line = self._line
        if line is None:
            line = self._connect(deadline)
        came = line.receive() if sequence is None else line.answer(sequence)
        if isinstance(came, tuple):
            assert sequence is not None
            self._resent_from = 0
            self._patience = None
            self._pending.pop(sequence, None)
            self._answers[sequence] = came
            if next(iter(self._pending), sequence) < sequence:
                self._catch_up(line, sequence, deadline)
        elif came is not None:
            self._take(line, came, deadline)
        elif line.is_dead() or self._attachment.control.words[EPOCH] != line.epoch:
            self._connect(deadline)
        else:
            if time.monotonic() >= deadline:
                raise TimeoutError
            if self._patience is None or line.is_sending:
                self._patience = _Patience(_PATIENCE_S)
            elif self._patience.is_over():
                self._send_again(line, 0)

    def _catch_up(self, line: Line, sequence: int, deadline: float) -> None:
        """Take in the answers to commits before one that was answered, whose callers did not wait for them.

        They were decided before it. Left alone they would hold up all that
        the writer may forget, until it takes no more of this session.
        """
        for older in [number for number in self._pending if number < sequence]:
            came = line.look(older)
            if came is not None:
                del self._pending[older]
                self._answers[older] = came
        while line.has_mail() and (frame := line.receive()) is not None:
            self._take(line, frame, deadline)
        for older, pending in self._pending.items():
            if older < sequence and sequence % _ASK_AGAIN == 0:  # its answer was lost on the way
                self._send(line, older, pending)
        while len(self._answers) > MAX_IN_FLIGHT:  # nobody has asked for the oldest, and it is long ago
            del self._answers[next(iter(self._answers))]

    def _take(self, line: Line, frame: bytes, deadline: float) -> None:
        kind = frame[0]
        self._patience = None
        if kind == WELCOME:
            self._welcome = parse_map(frame)
            return
        _, status, number, version = ANSWER_HEADER.unpack_from(frame)
        result = frame[ANSWER_HEADER.size :]
        if kind != ANSWER:
            self._replies[number] = status, version, result
            return
        line.took_mail()
        if number in self._pending:
            if status in (APPLIED, FAILED):
                self._resent_from = 0
                del self._pending[number]
                self._answers[number] = status, version, result
            elif status == RESEND and version != self._resent_from:
                # All that came after the gap are answered like this: the first answer is enough.
                self._resent_from = version
                self._send_again(line, version)
            elif status == REFUSED:
                self._refused(line, number, result, deadline)

    def _refused(self, line: Line, number: int, result: bytes, deadline: float) -> None:
        code, message, _ = msgpack.unpackb(result)
        if code == "busy":
            if time.monotonic() >= deadline:
                raise TimeoutError
            time.sleep(_BUSY_DELAY_S)
            self._send_again(line, number)
        elif code == "session_unknown":
            self._renew(number)
            self._connect(deadline)
        else:
            raise InmemError(
                f"the writer refused a commit: {message}", hint="Report this: it should not happen."
            )

    def _renew(self, refused: int) -> None:
        """Begin a new session. What was refused for that, from `refused` on, moves to it.

        What was sent more than once, or before, may have been applied while
        the session was known: nobody can tell any more.
        """
        waiting, self._pending = self._pending, {}
        self._id = os.urandom(16)
        self._registered = False
        for sequence, pending in waiting.items():
            if not pending.sent or (pending.sent == 1 and sequence >= refused):
                pending.sent = 0
                self._pending[sequence] = pending
            else:
                self._lost.add(sequence)
        self._drop_line()

    def _send_again(self, line: Line, first: int) -> None:
        for sequence, pending in self._pending.items():
            if sequence >= first:
                self._send(line, sequence, pending)

    def _connect(self, deadline: float) -> Line:
        """A line to the writer of now, with the session known there and all pending sent.

        Raises:
            WriterUnavailableError: not before the deadline.
            InmemError: the writer refuses this client.
        """
        if self._closed:
            raise ClosedError("the database is closed")
        pause_s = _RETRY_S
        while True:
            self._drop_line()
            state = self._attachment.ensure_writer(deadline)
            try:
                line = Line(state, self._attachment.control, deadline)
                try:
                    known = self._greet(line, deadline)
                except BaseException:
                    line.close()
                    raise
            except TimeoutError:
                raise self._not_welcome() from None
            if known is None:  # that writer died too, or has just begun to listen at another place
                line.close()
                if time.monotonic() >= deadline:
                    raise self._not_welcome()
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _RETRY_MAX_S)
                continue
            self._line = line
            if not known:
                self._renew(self._next)
                continue
            self._registered = True
            try:
                self._take_slot(line)
            except BaseException:  # no memory to map the board, or an interrupt: the next call greets anew
                self._drop_line()
                raise
            if self._pending:
                self._send_again(line, 0)
            return line

    def _greet(self, line: Line, deadline: float) -> bool | None:
        """Whether the session is known to the writer; None if that died."""
        attachment = self._attachment
        self._welcome = None
        greeting = hello(
            protocol=PROTOCOL_VERSION, format=FORMAT_VERSION, database=attachment.identity.database_id,
            session=self._id, pid=os.getpid(), resume=self._registered,
        )
        line.send(greeting)
        patience = _Patience(_PATIENCE_S)
        while self._welcome is None:
            frame = line.receive()
            if frame is not None:
                self._take(line, frame, deadline)
            elif line.is_dead() or attachment.control.words[EPOCH] != line.epoch:
                return None
            elif time.monotonic() >= deadline:
                raise self._not_welcome()
            elif patience.is_over():
                line.send(greeting)
        if "error" in self._welcome:
            raise from_wire(self._welcome["error"])
        return bool(self._welcome["known"])

    def _not_welcome(self) -> WriterUnavailableError:
        return WriterUnavailableError(
            "the writer did not welcome this process in time", path=str(self._attachment.directory.path)
        )

    def _take_slot(self, line: Line) -> None:
        assert self._welcome is not None
        slot, path = self._welcome["slot"], self._welcome["board"]
        if slot < 0 or not SUPPORTED:
            return
        try:
            line.use_board(self._attachment.board(path), slot)
        except FileNotFoundError:
            pass  # that writer has gone: this line will notice

    def _drop_line(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def close(self) -> None:
        """Say goodbye, if nothing is unanswered, and close the line."""
        with self._lock:
            if self._line is not None and not self._pending and not self._line.is_dead():
                self._line.send(GOODBYE_HEADER.pack(GOODBYE, self._id))
            self._closed = True
            self._drop_line()

    def __del__(self) -> None:
        # A thread that ends takes its session with it. In a forked child it is the parent's.
        if self.__dict__.get("_line") is not None and self._pid == os.getpid():
            self.close()


