"""Turns: who goes first where many transactions lose the same race.

Invariant: a turn only refuses, with the conflict that the refused would be
told a moment later anyway; it never lets anything through that validation
would not. It is forgotten with the writer, and missed by nobody then.

An optimistic transaction that is slow, because its process has to be woken
for each attempt, can lose to a fast one for as long as that goes on. So one
that has been refused often gets a turn: for a few milliseconds no other
transaction that has read the key is accepted, and its next attempt wins.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from inmem.errors import ConflictError
from inmem.keys import Key

_PATIENCE: Final = 8  # conflicts in a row: with a chance of one in three, one transaction in thirty
_TURN_US: Final = 5_000  # a function that takes longer gives its turn away
_REMEMBERED: Final = 4096  # sessions that have lost; of more, all begin to count anew


class Turns:
    """At most one turn at a time: others wait for theirs, and lose no more by it than by the race."""

    def __init__(self) -> None:
        self._losses: dict[bytes, int] = {}  # conflicts in a row, by session
        self._key: bytes | None = None  # whose turn it is
        self._holder = b""
        self._until_us = 0

    def check(self, session: bytes, reads: Container[bytes], now_us: int) -> None:
        """Refuse what has read the key of another's turn.

        Raises:
            ConflictError: names the key.
        """
        key = self._key
        if key is None or session == self._holder or key not in reads:
            return
        if now_us >= self._until_us:
            self._key = None
            return
        raise ConflictError(f"{Key(key)!r} is another transaction's turn, which has lost it often", key=key)

    def lost(self, session: bytes, error: ConflictError, now_us: int) -> None:
        """A transaction was refused; where that was once too often, the error says that it is next."""
        if len(self._losses) >= _REMEMBERED:
            self._losses.clear()
        losses = self._losses[session] = self._losses.get(session, 0) + 1
        if losses < _PATIENCE or not isinstance(error.key, bytes):
            return
        free = self._key is None or now_us >= self._until_us or session == self._holder
        # Of many that wait those who have lost most go first; all the others race on.
        if free and losses >= max(self._losses.values()) * 3 // 4:
            self._key, self._holder, self._until_us = error.key, session, now_us + _TURN_US
            error.is_next = True

    def won(self, session: bytes) -> None:
        """A commit took effect."""
        if self._losses:
            self._losses.pop(session, None)
        if self._key is not None and session == self._holder:
            self._key = None
