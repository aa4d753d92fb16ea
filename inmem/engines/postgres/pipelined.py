"""Pipelines."""

from __future__ import annotations

from inmem.client.applied import Applied
from inmem.engines.postgres.commits import ServerSessions
from inmem.errors import InmemError


class PipelinedSession:
    """What a pipeline submits to: each commit is made at once, and its outcome kept."""

    def __init__(self, sessions: ServerSessions) -> None:
        self._sessions = sessions
        self._outcomes: dict[int, Applied | InmemError] = {}
        self.next_sequence = 1

    def take(self) -> PipelinedSession:
        """It is its pipeline's alone."""
        return self

    def commit(self, body: bytes, *, sync: bool, timeout_s: float) -> Applied:
        """Make a commit that is none of the others."""
        return self._sessions.commit(body, sync=sync, timeout_s=timeout_s)

    def give_back(self, session: object) -> None:
        """It goes with its pipeline."""

    def has_room(self, body: bytes) -> bool:
        """There is always room."""
        return True

    def submit(self, body: bytes, *, sync: bool, timeout_s: float) -> int:
        """Make a commit."""
        sequence, self.next_sequence = self.next_sequence, self.next_sequence + 1
        try:
            self._outcomes[sequence] = self._sessions.commit(body, sync=sync, timeout_s=timeout_s)
        except InmemError as error:
            self._outcomes[sequence] = error
        return sequence

    def outcome(self, sequence: int, timeout_s: float) -> Applied:
        """What became of one."""
        outcome = self._outcomes[sequence]
        if isinstance(outcome, InmemError):
            raise outcome
        return outcome

    def forget(self, sequence: int) -> None:
        """Its outcome was noted."""
        self._outcomes.pop(sequence, None)
