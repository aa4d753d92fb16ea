"""The protocol of a session: commits that take effect exactly once, as a state machine without I/O.

It is given frames and the time, and says which frames to send. It knows no socket, no clock and no
thread; `inmem.client.session` drives it with blocking calls.

Rules, each held by `tests/unit/test_protocol.py` against every order of events:

1. A commit gets the next sequence number and keeps it. Numbers have no gap.
2. Commits are sent in the order of their numbers. After a lost connection all unanswered ones are sent
   again, in order, to whatever writer serves then. It knows them by session, sequence and digest.
3. A commit leaves the unanswered ones only with its answer, or when no writer can tell any more whether
   it was applied: then its outcome is unknown.
4. A session that the writer does not know gets a new id. Only what cannot have been applied moves to it.
5. Whoever drives this may be interrupted between any two lines, and may lose what it had in hand. It then
   closes its connection and calls `settle`: the state is whole after every statement, so that is enough.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import msgpack

from inmem.config import MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES
from inmem.wire import (
    ANSWER,
    ANSWER_HEADER,
    ANSWERS,
    APPLIED,
    CHECKPOINT,
    COMMIT,
    COMMIT_HEADER,
    FAILED,
    REFUSED,
    REQUEST_HEADER,
    RESEND,
    SESSION_BYTES,
    WELCOME,
    apart,
    hello,
    parse_map,
)
from inmem.writeset import WriteSet

Answered = tuple[int, int, bytes]  # status, version, result

PATIENCE_S: Final = 1.0  # silence of a living writer after which all is said again: no commit takes as long
BUSY_DELAY_S: Final = 0.01
VOID: Final = WriteSet().encode()
_ASK_AGAIN: Final = 32  # commits between two questions for the lost answer of an older one


class _Unanswered:
    __slots__ = ("body", "flags", "sent", "under_way")

    def __init__(self, body: bytes, flags: int) -> None:
        self.body = body
        self.flags = flags
        self.sent = 0  # how often; never fewer than it was
        self.under_way = 0  # how often on this connection, less the answers that did not decide it


def _random_id() -> bytes:
    return os.urandom(SESSION_BYTES)


class SessionProtocol:
    """One session's numbers, unanswered commits and answers."""

    def __init__(
        self, *, max_in_flight: int = MAX_IN_FLIGHT, patience_s: float = PATIENCE_S,
        new_id: Callable[[], bytes] = _random_id,
    ) -> None:
        self._new_id = new_id
        self._max_in_flight = max_in_flight
        self._patience_s = patience_s
        self.session_id = new_id()
        self.is_registered = False  # with a writer: it, and every later one, must know the session
        self.is_welcome = False  # on the connection of now
        self.welcome: dict[str, Any] | None = None  # what the writer said when it was greeted
        self.unanswered: dict[int, _Unanswered] = {}  # in the order of their numbers
        self.lost: set[int] = set()  # nobody can tell whether these were applied
        self.next_sequence = 1
        self._answers: dict[int, Answered] = {}  # not fetched yet
        self._asked: dict[int, int] = {}  # requests that change nothing: number and kind
        self._asks_out: list[int] = []  # requests that go out again
        self._next_request = 1
        self._replies: dict[int, Answered] = {}
        self._send_from = 0  # unanswered commits from here on go out again; 0 for none
        self._busy_from = 0  # the first commit that a busy writer refused; it goes out again at `_busy_until`
        self._busy_until = 0.0
        self._silent_since: float | None = None
        self._silence_s = patience_s

    # --- commits ----------------------------------------------------------------------

    def has_room(self, body: bytes) -> bool:
        """Whether a commit may be sent while the unanswered ones are under way."""
        waiting = self.unanswered
        if not waiting:
            return True
        return (
            len(waiting) < self._max_in_flight
            and sum(len(each.body) for each in waiting.values()) + len(body) <= MAX_IN_FLIGHT_BYTES
        )

    def submit(self, body: bytes, flags: int) -> tuple[int, bytes]:
        """Number a commit, which is unanswered from now on; its number and its first message."""
        sequence = self.next_sequence
        commit = _Unanswered(body, flags)
        # One statement: a number is never used twice, and never left out.
        self.unanswered[sequence], self.next_sequence = commit, sequence + 1
        commit.sent = commit.under_way = 1
        oldest = next(iter(self.unanswered))
        return sequence, COMMIT_HEADER.pack(COMMIT, flags, self.session_id, sequence, oldest) + body

    def frame(self, sequence: int) -> bytes:
        """The message of an unanswered commit, to be sent again."""
        unanswered = self.unanswered
        commit = unanswered[sequence]
        commit.sent += 1
        commit.under_way += 1
        return (
            COMMIT_HEADER.pack(COMMIT, commit.flags, self.session_id, sequence, next(iter(unanswered)))
            + commit.body
        )

    def answer_of_only(self, sequence: int) -> bool:
        """The answer of a commit has come to the caller, who keeps it; False if it is not the only one."""
        if len(self.unanswered) != 1 or sequence not in self.unanswered:
            return False
        self._silent_since = None
        self.unanswered.pop(sequence, None)
        return True

    def answer(self, sequence: int, answered: Answered) -> None:
        """A commit's answer has come, over whatever way."""
        self._silent_since = None
        if sequence not in self.unanswered:
            return
        self._answers[sequence] = answered
        self.unanswered.pop(sequence, None)

    def has_older(self, sequence: int) -> bool:
        """Whether a commit before an answered one is unanswered: its answer is here, or was lost."""
        return next(iter(self.unanswered), sequence) < sequence

    def older(self, sequence: int) -> list[int]:
        """The unanswered commits before one that was answered. The writer decided them first."""
        return [each for each in self.unanswered if each < sequence]

    def ask_again(self, sequence: int) -> list[bytes]:
        """Now and then, the messages of older ones that still have no answer: it was lost on the way."""
        while len(self._answers) > MAX_IN_FLIGHT:  # nobody asks for the oldest, and it is long ago
            self._answers.pop(next(iter(self._answers)), None)
        return [] if sequence % _ASK_AGAIN else [self.frame(each) for each in self.older(sequence)]

    def fetch_all(self) -> list[tuple[int, Answered]]:
        """Take all answers that have come."""
        if not self._answers:
            return []
        taken, self._answers = self._answers, {}
        return [*taken.items()]

    def peek(self, sequence: int) -> Answered | None:
        """The answer of a commit, which stays; None without one."""
        return self._answers.get(sequence)

    def fetch(self, sequence: int) -> Answered | None:
        """Take the answer of a commit, None without one."""
        return self._answers.pop(sequence, None)

    # --- requests that change nothing ---------------------------------------------------

    def ask(self, kind: int) -> tuple[int, bytes]:
        """Number a request and give its message. Safe to repeat, so it simply is."""
        number = self._next_request
        self._asked[number], self._next_request = kind, number + 1
        return number, REQUEST_HEADER.pack(kind, number)

    def fetch_reply(self, number: int) -> Answered | None:
        """Take the reply to a request, None without one."""
        if number not in self._replies:
            return None
        reply = self._replies[number]
        self.drop_request(number)
        return reply

    def drop_request(self, number: int) -> None:
        """Nobody waits for the reply any more."""
        self._asked.pop(number, None)
        self._replies.pop(number, None)

    # --- the connection -----------------------------------------------------------------

    def greeting(
        self, *, pid: int, database: bytes, protocol: int, format_version: int, slot: bool = True
    ) -> bytes:
        """The first message on a new connection. `welcome` is None until the answer has come."""
        self.is_welcome, self.welcome = False, None
        return hello(
            protocol=protocol, format=format_version, database=database, session=self.session_id,
            pid=pid, resume=self.is_registered, slot=slot,
        )

    def welcomed(self) -> bool:
        """After the answer: whether the writer knows the session. All unanswered commits go out again.

        If not, the session has got a new id, and the writer must be greeted again.
        """
        assert self.welcome is not None
        if not self.welcome["known"]:
            self._renew(self.next_sequence)
            return False
        self.is_registered = self.is_welcome = True
        self._busy_from = 0
        self._silent_since = None
        self._send_all()
        self._asks_out = [*self._asked]
        return True

    def settle(self) -> None:
        """Nothing is known of the connection any more, nor of the call that was under way."""
        self.is_welcome = False
        for sequence in [each for each in self._answers if each in self.unanswered]:
            self.unanswered.pop(sequence, None)
        self._asked, self._replies, self._asks_out = {}, {}, []
        self._send_from = self._busy_from = 0
        self._silent_since = None

    def void(self, first: int) -> None:
        """Nobody will ask for the commits from `first` on: what was not applied yet will do nothing.

        The writer knows one that was applied by its digest, and then refuses this one.
        """
        for sequence, commit in self.unanswered.items():
            if sequence >= first:
                commit.body, commit.flags = VOID, 0

    def receive(self, frame: bytes, now: float) -> None:
        """Take in a message of the writer."""
        kind = frame[0]
        if kind == ANSWERS:
            for each in apart(frame):
                self.receive(each, now)
            return
        if kind == WELCOME:
            self._silent_since = None
            self.welcome = parse_map(frame)
            return
        _, status, number, version = ANSWER_HEADER.unpack_from(frame)
        result = frame[ANSWER_HEADER.size :]
        if kind != ANSWER:
            self._silent_since = None
            if number in self._asked:
                self._replies[number] = status, version, result
        elif status in (APPLIED, FAILED):
            self.answer(number, (status, version, result))
        elif number in self.unanswered:
            commit = self.unanswered[number]
            commit.under_way -= 1
            if status == REFUSED:
                self._refused(number, result, now)
            elif status == RESEND and commit.under_way <= 0:
                # All that came after the gap are answered like this. What was sent again since is under way.
                self._send_again(version)

    def _refused(self, number: int, result: bytes, now: float) -> None:
        code = msgpack.unpackb(result)[0]
        if code == "busy":
            first = min(self._busy_from, number) if self._busy_from else number
            self._busy_from, self._busy_until = first, now + BUSY_DELAY_S
        elif code == "session_unknown":
            self._renew(number)
        else:  # the writer will never apply it
            self.answer(number, (REFUSED, 0, result))

    def _renew(self, refused: int) -> None:
        """Begin a new session. What was refused for that, from `refused` on, moves to it.

        What was sent more than once, or before, may have been applied while
        the session was known: nobody can tell any more. So may what follows a
        commit that was sent more than once: the last one may be refused, and
        what was sent between the two may have come before.
        """
        kept: dict[int, _Unanswered] = {}
        lost = set(self.lost)
        first = self.unanswered.get(refused)
        came_in_order = first is not None and first.sent == 1
        for sequence, commit in self.unanswered.items():
            if not commit.sent or (came_in_order and commit.sent == 1 and sequence >= refused):
                kept[sequence] = _Unanswered(commit.body, commit.flags)
            else:
                lost.add(sequence)
        fresh = self._new_id()
        # One statement: no commit is in neither place, and none is kept under the old id.
        self.session_id, self.unanswered, self.lost, self.is_registered, self.is_welcome = (
            fresh, kept, lost, False, False
        )

    # --- time and what goes out -----------------------------------------------------------

    def tick(self, now: float) -> None:
        """Time has passed without an answer: decide whether to say something again, ever more rarely.

        A living writer may have dropped an answer, to a client that did not read for long. To be refused for
        now is no answer: it is what happens when older answers are lost.
        """
        if self._busy_from and now >= self._busy_until:
            first, self._busy_from = self._busy_from, 0
            self._send_again(first)
        if self._silent_since is None:
            self._silent_since, self._silence_s = now, self._patience_s
        elif now >= self._silent_since + self._silence_s:
            self._silent_since, self._silence_s = now, 2 * self._silence_s
            self._send_all()
            # A second request for a checkpoint means another checkpoint, and one takes as long as it takes.
            self._asks_out = [number for number, kind in self._asked.items() if kind != CHECKPOINT]

    def _send_again(self, first: int) -> None:
        self._send_from = min(self._send_from, first) if self._send_from else first

    def _send_all(self) -> None:
        for commit in self.unanswered.values():
            commit.under_way = 0
        self._send_again(1)

    def outgoing(self) -> list[bytes]:
        """What must be sent now beside new commits."""
        if not self._send_from:
            return []
        first, self._send_from = self._send_from, 0
        requests, self._asks_out = self._asks_out, []
        frames = [self.frame(each) for each in self.unanswered if each >= first]
        frames += [
            REQUEST_HEADER.pack(self._asked[number], number) for number in requests if number in self._asked
        ]
        return frames
