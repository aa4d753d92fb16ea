"""A session with blocking calls: one line of commits to the writer, each of which takes effect exactly once.

It drives `inmem.client.protocol` over a link to the writer of now. A new
writer means a new link, and so does one that has broken: what was on its way
may be lost, and is sent again. So no failure of the writer reaches a caller
who has time to wait.

An exception may come out of any line here: a signal handler can raise. What
the link was doing is unknown then, so the next call drops it, connects anew
and sends again what is unanswered. The commit that was interrupted is taken
back: it took effect at once, or never will.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from threading import get_ident
from typing import Any, Final, Protocol, TypeVar

import msgpack

from inmem.client.applied import Applied, applied
from inmem.client.link import Link
from inmem.client.protocol import PATIENCE_S, Answered, SessionProtocol
from inmem.config import FORMAT_VERSION, MAX_IN_FLIGHT_BYTES, PROTOCOL_VERSION, Settings
from inmem.errors import (
    BusyError,
    ClosedError,
    CommitUnknownError,
    ForkError,
    InmemError,
    WriterUnavailableError,
)
from inmem.host.board import Board
from inmem.host.control import EPOCH, Control, ControlState
from inmem.host.interrupts import Exclusive, is_foreign, let_through
from inmem.wire import APPLIED, FLAG_SYNC, GOODBYE, GOODBYE_HEADER, from_wire

T = TypeVar("T")
_Found = list[Answered]  # where the answer of an unknown commit is kept, once it has come

_RETRY_S: Final = 0.002  # before another look at who serves; doubles
_RETRY_MAX_S: Final = 0.1


class WriterAccess(Protocol):
    """What a session needs of its process: who serves, and the board that it shares."""

    closed: bool
    control: Control
    settings: Settings
    path: str
    database_id: bytes

    def ensure_writer(self, deadline: float) -> ControlState: ...

    def board(self, path: str) -> Board: ...


class Session(Exclusive):
    """Commits in order, one call at a time: another thread may resolve an unknown commit.

    A call that comes in the middle of another one of the same thread is
    refused. `inmem.client.attachment` gives it another session.
    """

    def __init__(self, access: WriterAccess) -> None:
        super().__init__()
        self._link: Link | None = None
        self._pid = os.getpid()
        self._access = access
        self._is_whole = True  # False while a call uses the link: it is suspect if that was interrupted
        self._to_void = 0  # then the number of the commit that nobody will ask for; 0 for none
        self._closed = False
        self.protocol = SessionProtocol(
            max_in_flight=access.settings.max_in_flight, patience_s=PATIENCE_S
        )

    def what(self) -> str:
        """See `Exclusive`."""
        return "another call with this pipeline, transaction or commit"

    def _own(self, deadline: float, call: Callable[..., T], *arguments: Any) -> T:
        """Make a call when no other one uses the session, and see whose errors come out of it."""
        try:
            return self.alone(deadline, call, *arguments)
        except InmemError as error:
            error.is_foreign = is_foreign(error)
            raise

    # --- commits ----------------------------------------------------------------------

    def commit(self, body: bytes, *, sync: bool, timeout_s: float) -> Applied:
        """Send a commit and wait for its outcome. Cost: one round trip.

        Raises:
            WriterUnavailableError: no writer before the deadline; nothing was sent.
            CommitUnknownError: sent, and not answered before the deadline.
            InmemError: what the writer decided.
        """
        deadline = time.monotonic() + timeout_s
        turns, turn = self.turns, [get_ident()]
        try:  # as `_own`, without its two calls: this is what a put costs
            if turns.setdefault(0, turn) is not turn:
                self.wait_for_turn(turn, deadline)
            link, sequence = self._submit(body, sync, deadline, is_awaited=True)
            came = link.wait(sequence, deadline)
            if isinstance(came, tuple) and self.protocol.answer_of_only(sequence):
                self._is_whole = True
                return applied(came)
            return applied(self._answer(sequence, deadline, timeout_s, came=came))
        except InmemError as error:
            error.is_foreign = is_foreign(error)
            raise
        finally:
            if 0 in turns and turns[0] is turn:
                del turns[0]

    def submit(self, body: bytes, *, sync: bool, timeout_s: float) -> int:
        """Send a commit and do not wait; `outcome` fetches what became of it."""
        deadline = time.monotonic() + timeout_s
        return self._own(deadline, self._only_submit, body, sync, deadline)

    def _only_submit(self, body: bytes, sync: bool, deadline: float) -> int:
        _, sequence = self._submit(body, sync, deadline, is_awaited=False)
        self._is_whole = True
        return sequence

    def has_room(self, body: bytes) -> bool:
        """Whether a commit can be sent while the unanswered ones are under way."""
        return self.protocol.has_room(body)

    @property
    def next_sequence(self) -> int:
        """What `submit` will return: it tells whether one that was interrupted has numbered its commit."""
        return self.protocol.next_sequence

    def forget(self, sequence: int) -> None:
        """The caller has noted the outcome of a submitted commit."""
        self.protocol.fetch(sequence)

    def outcome(self, sequence: int, timeout_s: float) -> Applied:
        """Wait for a submitted commit; raises like `commit`. It can be asked for until it is forgotten."""
        deadline = time.monotonic() + timeout_s
        return self._own(deadline, self._wait_for, sequence, deadline, timeout_s)

    def _wait_for(self, sequence: int, deadline: float, timeout_s: float) -> Applied:
        self._refuse_in_child()
        self._begin()
        return applied(self._answer(sequence, deadline, timeout_s, keep=True))

    def _refuse_in_child(self) -> None:
        if self._pid != os.getpid():
            raise _of_the_parent()

    def _submit(self, body: bytes, sync: bool, deadline: float, *, is_awaited: bool) -> tuple[Link, int]:
        """Number and send a commit; the link stays suspect until the caller has done its part.

        If it is awaited, nobody asks for it any more when the call is interrupted.
        """
        if self._pid != os.getpid():  # a handler may have forked in the middle of this call
            raise _of_the_parent()
        if self._access.closed:  # by another thread, which does not close what this one uses
            raise ClosedError("the database is closed")
        protocol = self.protocol
        link = self._link
        if link is None or not self._is_whole or self._access.control.words[EPOCH] != link.epoch:
            link = self._ready(deadline)
        # One statement: what is in doubt is this commit, and no other.
        self._is_whole, self._to_void = False, protocol.next_sequence if is_awaited else 0
        if protocol.unanswered:
            self._take_ready(link)
            link = self._make_room(link, body, deadline)
        is_alone = not protocol.unanswered
        sequence, frame = protocol.submit(body, FLAG_SYNC if sync else 0)
        # With others on their way it would overtake them, or they it.
        if not is_alone or not link.offer(frame):
            link.send(frame)
        return link, sequence

    def _make_room(self, link: Link, body: bytes, deadline: float) -> Link:
        """If too much is unanswered, take in what was answered meanwhile.

        Raises:
            BusyError: that was not enough; nothing was sent.
        """
        protocol = self.protocol
        if protocol.has_room(body):
            return link
        self._take_older(link, protocol.next_sequence)
        if not protocol.has_room(body):
            self._step(deadline, next(iter(protocol.unanswered)))  # sees a new writer, and says things again
            link = self._link or self._connect(deadline)
            self._take_older(link, protocol.next_sequence)
        if protocol.has_room(body):
            return link
        self._is_whole = True
        count, limit = len(protocol.unanswered), self._access.settings.max_in_flight
        if count >= limit:
            message = f"{count} commits of this thread are unanswered"
            raise BusyError(message, what="commits in flight", limit=limit)
        raise BusyError(
            f"the unanswered commits of this thread and this one of {len(body)} bytes are too large",
            what="bytes in flight", limit=MAX_IN_FLIGHT_BYTES,
        )

    def _answer(
        self, sequence: int, deadline: float, timeout_s: float, *, keep: bool = False,
        came: Answered | bytes | None = None, found: _Found | None = None,
    ) -> Answered:
        """Wait for the answer of a numbered commit. `came` came instead; `found` is where resends keep it.

        Raises:
            CommitUnknownError: whatever else keeps it away, for the commit may be applied.
        """
        protocol = self.protocol
        fetch = protocol.peek if keep else protocol.fetch
        why, can_resend = f"no answer within {timeout_s} s", True
        try:
            if came is not None and self._link is not None:
                self._take(self._link, sequence, came, deadline)
            while (answered := fetch(sequence)) is None:
                if sequence in protocol.lost:
                    why, can_resend = "no writer knows its session any more", False
                elif sequence not in protocol.unanswered:
                    why, can_resend = "its answer was fetched before", False
                elif self._step(deadline, sequence):
                    continue
                break
        except InmemError as error:
            let_through(error)
            answered, why, can_resend = None, str(error), not (self._closed or self._access.closed)
        self._is_whole = True
        if answered is None:
            raise self._unknown(sequence, why, can_resend, [] if found is None else found)
        return answered

    def _unknown(self, sequence: int, why: str, can_resend: bool, found: _Found) -> CommitUnknownError:
        error = CommitUnknownError(
            f"the outcome of this commit is not known: {why}",
            commit_id=f"{self.protocol.session_id.hex()}:{sequence}",
        )
        if can_resend:
            default = self._access.settings.timeout_s
            error.resender = lambda timeout_s: self._resolve(sequence, timeout_s or default, found)
        return error

    def _resolve(self, sequence: int, timeout_s: float, found: _Found) -> Applied:
        if not found:
            deadline = time.monotonic() + timeout_s
            try:
                self._own(deadline, self._send_and_wait, sequence, deadline, timeout_s, found)
            except BusyError as error:  # another thread uses the session for too long
                let_through(error)
                raise self._unknown(sequence, str(error), True, found) from None
        return applied(found[0])

    def _send_and_wait(self, sequence: int, deadline: float, timeout_s: float, found: _Found) -> None:
        self._refuse_in_child()
        if self._closed:
            raise ClosedError("the database was closed")
        self._begin()
        if sequence in self.protocol.unanswered and self._link is not None:
            self._link.send(self.protocol.frame(sequence))
        found.append(self._answer(sequence, deadline, timeout_s, keep=True, found=found))
        self.protocol.fetch(sequence)

    # --- requests that change nothing -------------------------------------------------

    def request(self, kind: int, timeout_s: float) -> tuple[int, Any]:
        """Ask for a status, a sync or a checkpoint: (version, result). Safe to repeat, so it simply is.

        Raises:
            WriterUnavailableError: no answer before the deadline.
        """
        deadline = time.monotonic() + timeout_s
        status, version, result = self._own(deadline, self._ask, kind, deadline, timeout_s)
        if status == APPLIED:
            return version, msgpack.unpackb(result)
        raise from_wire(msgpack.unpackb(result))

    def _ask(self, kind: int, deadline: float, timeout_s: float) -> Answered:
        link = self._ready(deadline)
        self._begin()
        number, frame = self.protocol.ask(kind)
        link.send(frame)
        while (reply := self.protocol.fetch_reply(number)) is None:
            if not self._step(deadline, None):
                self.protocol.drop_request(number)
                self._is_whole = True
                raise WriterUnavailableError(
                    f"the writer did not answer within {timeout_s} s", path=self._access.path
                )
        self._is_whole = True
        return reply

    # --- the link -----------------------------------------------------------------------

    def _ready(self, deadline: float) -> Link:
        """The link to the writer of now."""
        if not self._is_whole:
            self._settle()
        link = self._link
        if link is None or self._access.control.words[EPOCH] != link.epoch:
            link = self._connect(deadline)
        return link

    def _begin(self) -> None:
        """A call uses the link from now on; one that an interrupt has left in doubt goes."""
        if not self._is_whole:
            self._settle()
        self._is_whole, self._to_void = False, 0

    def _settle(self) -> None:
        """A call was interrupted: what its link was doing is unknown."""
        self._drop_link()
        self.protocol.settle()
        if self._to_void:
            self.protocol.void(self._to_void)
        self._is_whole = True

    def _step(self, deadline: float, sequence: int | None) -> bool:
        """Take in one answer or frame, or find out that the writer is gone and go to the next.

        `sequence` is the commit that is waited for, None for a reply. False if the deadline has passed.
        """
        if self._access.closed:
            self._is_whole = True
            raise ClosedError("the database is closed")
        protocol = self.protocol
        link = self._link
        if link is None:
            link = self._connect(deadline)
        came = link.receive() if sequence is None else link.wait(sequence, deadline)
        if came is not None:
            self._take(link, sequence, came, deadline)
            return time.monotonic() < deadline or sequence not in protocol.unanswered
        if link.has_ended() or self._access.control.words[EPOCH] != link.epoch:
            self._connect(deadline)
            return True
        now = time.monotonic()
        if not link.is_sending:
            protocol.tick(now)
        self._send_outgoing(link, deadline)
        return now < deadline

    def _take(self, link: Link, sequence: int | None, came: Answered | bytes, deadline: float) -> None:
        """Take in the answer to a commit, or a frame."""
        protocol = self.protocol
        if isinstance(came, bytes):
            protocol.receive(came, time.monotonic())
        elif sequence is not None:
            protocol.answer(sequence, came)
        if sequence is not None and protocol.has_older(sequence):
            self._take_ready(link)
            if sequence not in protocol.unanswered:
                self._take_older(link, sequence)
        self._send_outgoing(link, deadline)

    def _take_ready(self, link: Link) -> None:
        """Take in the oldest answers while they are on the board."""
        protocol = self.protocol
        while protocol.unanswered:
            oldest = next(iter(protocol.unanswered))
            came = link.look(oldest)
            if came is None:
                return
            protocol.answer(oldest, came)

    def _take_older(self, link: Link, sequence: int) -> None:
        """Take in the answers to commits before one, whose callers did not wait for them.

        Left alone they would hold up all that the writer may forget, until it takes no more of this session.
        """
        protocol = self.protocol
        for older in protocol.older(sequence):
            came = link.look(older)
            if came is not None:
                protocol.answer(older, came)
        while protocol.has_older(sequence) and (frame := link.receive(0)) is not None:
            protocol.receive(frame, time.monotonic())
        for frame in protocol.ask_again(sequence):
            link.send(frame)

    def _send_outgoing(self, link: Link, deadline: float) -> None:
        if not self.protocol.is_welcome:  # the writer did not know the session: it has a new id now
            self._connect(deadline)
            return
        for frame in self.protocol.outgoing():
            link.send(frame)

    def _connect(self, deadline: float) -> Link:
        """A link to the writer of now, with the session known there and all unanswered commits sent.

        Raises:
            WriterUnavailableError: not before the deadline.
            InmemError: the writer refuses this client.
        """
        if self._closed:
            raise ClosedError("the database is closed")
        pause_s = _RETRY_S
        while True:
            self._drop_link()
            link = Link(self._access.ensure_writer(deadline), self._access.control)
            try:
                is_known = self._greet(link, deadline)
                if is_known:
                    self._take_slot(link)
                    for frame in self.protocol.outgoing():
                        link.send(frame)
                    self._link = link
                    return link
            finally:
                if self._link is not link:
                    link.close()
            if is_known is None:  # that writer died too, or has just begun to listen at another place
                if time.monotonic() >= deadline:
                    raise self._not_welcome()
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _RETRY_MAX_S)

    def _greet(self, link: Link, deadline: float) -> bool | None:
        """Whether the session is known to the writer; None if that died."""
        access, protocol = self._access, self.protocol
        reached = link.connect(deadline)
        if reached is None:
            raise self._not_welcome()
        if not reached:
            return None
        greeting = protocol.greeting(
            pid=os.getpid(), database=access.database_id, protocol=PROTOCOL_VERSION,
            format_version=FORMAT_VERSION,
        )
        link.send(greeting)
        silence_s = PATIENCE_S
        again = time.monotonic() + silence_s
        while protocol.welcome is None:
            now = time.monotonic()
            if (frame := link.receive()) is not None:
                protocol.receive(frame, now)
            elif link.has_ended() or access.control.words[EPOCH] != link.epoch:
                return None
            elif now >= deadline:
                raise self._not_welcome()
            elif now >= again:
                silence_s *= 2
                again = now + silence_s
                link.send(greeting)
        if "error" in protocol.welcome:
            raise from_wire(protocol.welcome["error"])
        return protocol.welcomed()

    def _not_welcome(self) -> WriterUnavailableError:
        return WriterUnavailableError(
            "the writer did not welcome this process in time", path=self._access.path
        )

    def _take_slot(self, link: Link) -> None:
        welcome = self.protocol.welcome
        assert welcome is not None
        slot, path = welcome["slot"], welcome["board"]
        if slot < 0:
            return
        try:
            link.use_board(self._access.board(path), slot)
        except FileNotFoundError as error:
            let_through(error)  # else that writer has gone: the next wait will notice

    def _drop_link(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def close(self) -> None:
        """Say goodbye, if nothing is unanswered, and close the link."""
        self._closed = True
        try:
            self.alone(0.0, self._say_goodbye)
        except BusyError as error:  # the call that is under way finds the database closed
            let_through(error)

    def _say_goodbye(self) -> None:
        if not self._is_whole:
            self._settle()
        link = self._link
        if link is not None and not self.protocol.unanswered and not link.has_ended():
            link.send(GOODBYE_HEADER.pack(GOODBYE, self.protocol.session_id))
        self._drop_link()

    def __del__(self) -> None:
        # A thread that ends takes its session with it. In a forked child it is the parent's.
        if self.__dict__.get("_link") is not None and self._pid == os.getpid():
            self.close()


def _of_the_parent() -> ForkError:
    return ForkError("this pipeline or transaction belongs to the parent process")
