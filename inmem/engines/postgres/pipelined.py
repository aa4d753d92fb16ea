"""Pipelines: commits that wait for each other travel together, as one transaction."""

from __future__ import annotations

from typing import Final

from inmem.client.applied import Applied
from inmem.engines.postgres.commits import ServerSessions
from inmem.errors import InmemError

MOST_BYTES: Final = 4 << 20  # of the commits of one transaction
MOST: Final = 32


class PipelinedSession:
    """What a pipeline submits to: commits are kept until one's outcome is asked for, or they are many."""

    def __init__(self, sessions: ServerSessions) -> None:
        self._sessions = sessions
        self._outcomes: dict[int, Applied | InmemError] = {}
        self._waiting: dict[int, bytes] = {}  # bodies that are not sent, in order
        self._how: tuple[bool, float] = (False, 10.0)
        self.next_sequence = 1

    def take(self) -> PipelinedSession:
        """It is its pipeline's alone."""
        return self

    def commit(self, body: bytes, *, sync: bool, timeout_s: float) -> Applied:
        """Make a commit that is none of the others."""
        return self._sessions.commit(body, sync=sync, timeout_s=timeout_s)

    def give_back(self, session: object) -> None:
        """It goes with its pipeline; what was submitted takes effect."""
        self._send()

    def has_room(self, body: bytes) -> bool:
        """There is always room."""
        return True

    def submit(self, body: bytes, *, sync: bool, timeout_s: float) -> int:
        """Take a commit, after those before it."""
        size = sum(map(len, self._waiting.values()))
        if self._waiting and (size + len(body) > MOST_BYTES or len(self._waiting) >= MOST):
            self._send()
        sequence, self.next_sequence = self.next_sequence, self.next_sequence + 1
        self._waiting[sequence] = body
        self._how = sync, timeout_s
        return sequence

    def outcome(self, sequence: int, timeout_s: float) -> Applied:
        """What became of one."""
        if sequence not in self._outcomes:
            self._send()
        outcome = self._outcomes[sequence]
        if isinstance(outcome, InmemError):
            raise outcome
        return outcome

    def _send(self) -> None:
        bodies, self._waiting = self._waiting, {}
        if not bodies:
            return
        sync, timeout_s = self._how
        try:
            outcomes = self._sessions.commit_all([*bodies.values()], sync=sync, timeout_s=timeout_s)
        except InmemError as error:
            if error.is_foreign:
                self._waiting = bodies
                raise
            outcomes = [error] * len(bodies)
        self._outcomes.update(zip(bodies, outcomes, strict=True))

    def forget(self, sequence: int) -> None:
        """Its outcome was noted."""
        self._outcomes.pop(sequence, None)
