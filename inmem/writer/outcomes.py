"""Sessions and outcomes: why a commit takes effect exactly once.

Invariant: the commits of a session are decided in the order of their
sequences, each once. An outcome is stored in the same store transaction as
the writes, until the client says that it has the answer. So a request that is
sent again, to this writer or the next, gets the first answer.

What a client can rely on:

1. A request of an unknown session is refused, never applied.
2. A sequence that was decided is answered from its outcome. The same sequence
   with other content is an error.
3. A sequence beyond the next one is answered with the sequence to resend from.
   Sequences below `answered_below` are not missed, as the client has their
   answers: a failure changed nothing and may not have been stored.

Record of a session in the table SESSIONS, under its 16-byte id, MessagePack:
`[last sequence, answered below, last active (s), [[sequence, digest, status,
version, result], ...]]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgpack

from inmem.config import MAX_SESSIONS, MIN_SESSION_IDLE_S
from inmem.errors import BusyError, CorruptionError


class Outcome(NamedTuple):
    """The outcome of one sequence. `result` is MessagePack. What makes one may be a plain tuple."""

    digest: int
    status: int
    version: int
    result: bytes


# As a session's record has it: the sequence and its outcome, a tuple that costs no call to make.
Row = tuple[int, int, int, int, bytes]


@dataclass(slots=True)
class _Session:
    last: int = 0
    answered_below: int = 0
    active_s: int = 0
    outcomes: dict[int, Row] = field(default_factory=dict)


UNKNOWN: Final = "unknown"
GAP: Final = "gap"
FORGOTTEN: Final = "forgotten"
MISMATCH: Final = "mismatch"
FULL: Final = "full"
HELD: Final = "held"


class Sessions:
    """All registered sessions, and which of them must be written."""

    def __init__(self, records: Iterable[tuple[bytes, bytes]], *, ttl_s: float, max_in_flight: int) -> None:
        self._ttl_s = ttl_s
        self._max_in_flight = max_in_flight
        self._sessions: dict[bytes, _Session] = {}
        for session_id, record in records:
            self._sessions[bytes(session_id)] = _decode(record)
        self._dirty: set[bytes] = set()
        self._undo: dict[bytes, tuple[_Session, int, int, int, dict[int, Row]] | None] = {}
        self._unstored: set[bytes] = set()  # registered, and in no group that was published
        self.must_write = False  # a session was registered: publish even without commits

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session_id: bytes) -> bool:
        return session_id in self._sessions

    def last_sequence(self, session_id: bytes) -> int:
        """The last sequence that was decided, of a known session."""
        return self._sessions[session_id].last

    def register(self, session_id: bytes, now_us: int) -> None:
        """Begin a session; the next group stores it.

        Raises:
            BusyError: too many sessions, none of them idle for long enough.
        """
        if len(self._sessions) >= MAX_SESSIONS:
            self._make_room(now_us)
        self._touch(session_id)
        self._sessions[session_id] = _Session(active_s=now_us // 1_000_000)
        self._dirty.add(session_id)
        self._unstored.add(session_id)
        self.must_write = True

    def is_stored(self, session_id: bytes) -> bool:
        """Whether a session is known to this writer, and would be to the next."""
        return session_id in self._sessions and session_id not in self._unstored

    def drop(self, session_id: bytes) -> None:
        """End a session that its client closed."""
        if session_id in self._sessions:
            self._touch(session_id)
            del self._sessions[session_id]
            self._dirty.add(session_id)

    def expire(self, now_us: int) -> None:
        """End sessions that were idle for longer than the limit."""
        oldest = now_us / 1e6 - self._ttl_s
        for session_id in [i for i, s in self._sessions.items() if s.active_s < oldest]:
            self.drop(session_id)

    def leap(self, by_s: int) -> None:
        """Store time has leapt ahead, between two groups: nobody was idle for as long."""
        for session_id, session in self._sessions.items():
            session.active_s += by_s
            self._dirty.add(session_id)

    def set_back(self, now_us: int) -> None:
        """The clock was ahead: no session was active later than now."""
        now_s = now_us // 1_000_000
        for session_id, session in self._sessions.items():
            if session.active_s > now_s:
                self._touch(session_id)
                session.active_s = now_s
                self._dirty.add(session_id)

    def _make_room(self, now_us: int) -> None:
        session_id, session = min(self._sessions.items(), key=lambda item: item[1].active_s)
        if now_us // 1_000_000 - session.active_s < MIN_SESSION_IDLE_S:
            raise BusyError(
                f"{MAX_SESSIONS} sessions are in use", what="sessions", limit=MAX_SESSIONS,
                hint="Close databases and threads that are not needed.",
            )
        self.drop(session_id)

    def find(
        self, session_id: bytes, sequence: int, answered_below: int, digest: int
    ) -> Outcome | str | None:
        """What to do with a request: None to decide it, an outcome to repeat, or why it is refused."""
        session = self._sessions.get(session_id)
        if session is None:
            return UNKNOWN
        if answered_below > sequence:
            answered_below = sequence
        if sequence <= session.last:
            row = session.outcomes.get(sequence)
            if row is None:
                return FORGOTTEN
            return Outcome(*row[1:]) if row[1] == digest else MISMATCH
        if sequence != session.last + 1 and sequence != answered_below:
            return GAP
        limit = self._max_in_flight
        if len(session.outcomes) >= limit and sum(s >= answered_below for s in session.outcomes) >= limit:
            return FULL
        return None

    def record(
        self, session_id: bytes, sequence: int, answered_below: int, now_us: int,
        outcome: tuple[int, int, int, bytes],
    ) -> None:
        """Keep the outcome of a request for which `find` returned None."""
        session = self._sessions[session_id]
        outcomes = session.outcomes
        if session_id not in self._undo:
            self._undo[session_id] = (
                session, session.last, session.answered_below, session.active_s, outcomes.copy()
            )
        # No client has this answer yet. If it could claim so, outcomes would not be bounded.
        if answered_below > sequence:
            answered_below = sequence
        if answered_below > session.answered_below:
            session.answered_below = answered_below
            for earlier in list(outcomes):  # in sequence order
                if earlier >= answered_below:
                    break
                del outcomes[earlier]
        session.last = sequence
        session.active_s = now_us // 1_000_000
        outcomes[sequence] = (sequence, *outcome)
        self._dirty.add(session_id)

    def _touch(self, session_id: bytes) -> None:
        if session_id not in self._undo:
            session = self._sessions.get(session_id)
            self._undo[session_id] = None if session is None else (
                session, session.last, session.answered_below, session.active_s, session.outcomes.copy()
            )

    def changes(self) -> list[tuple[bytes, bytes | None]]:
        """The records to write (None: remove) for all that changed since `written`."""
        found: list[tuple[bytes, bytes | None]] = []
        for session_id in self._dirty:
            session = self._sessions.get(session_id)
            found.append((session_id, None if session is None else _encode(session)))
        return found

    def written(self) -> None:
        """Call it when the changes are in the image."""
        self._dirty.clear()
        self._undo.clear()
        self._unstored.clear()
        self.must_write = False

    def settle(self) -> None:
        """Keep the changes in memory without writing them; they cannot be undone any more."""
        self._undo.clear()

    def undo(self) -> None:
        """Undo all changes since `written` but for registrations: the group was not published.

        The next group that is published stores these.
        """
        for session_id, before in self._undo.items():
            if before is not None:
                session = self._sessions[session_id] = before[0]
                _, session.last, session.answered_below, session.active_s, session.outcomes = before
            elif (registered := self._sessions.get(session_id)) is not None:
                self._sessions[session_id] = _Session(active_s=registered.active_s)
        self._undo.clear()


# One packer for the one thread that decides: to build one costs more than to pack a record.
_pack = msgpack.Packer(autoreset=True).pack


def _encode(session: _Session) -> bytes:
    data: bytes = _pack((
        session.last, session.answered_below, session.active_s, list(session.outcomes.values()),
    ))
    return data


def _decode(record: bytes) -> _Session:
    try:
        last, answered_below, active_s, outcomes = msgpack.unpackb(record)
        return _Session(
            last, answered_below, active_s, {item[0]: (item[0], *Outcome(*item[1:])) for item in outcomes}
        )
    except (ValueError, TypeError, LookupError) as error:
        raise CorruptionError(f"a session record does not parse: {error}", file="image", offset=0) from None


def describe_refusal(verdict: str) -> tuple[str, str, dict[str, Any]]:
    """Code, message and fields of the error for a refusal by `find`."""
    messages = {
        UNKNOWN: ("session_unknown", "the session is unknown or has expired"),
        FORGOTTEN: ("outcome_forgotten", "the client has said that it has this answer"),
        MISMATCH: ("digest_mismatch", "the same sequence was sent before with other content"),
        FULL: ("busy", "too many unanswered commits in this session"),
        HELD: ("busy", "a transaction that has lost often goes first"),
    }
    return (*messages[verdict], {})
