"""Turns: which transaction goes first where many conflict on one key.

Invariant: a turn can only refuse a commit, as validation can; it never
accepts one that validation would refuse. Turns are not stored: a new writer
begins without any.

A slow transaction, whose process has to be woken for each attempt, can lose
to a fast one again and again. So one that was refused often gets a turn: for
a few milliseconds, other transactions that have read the key are refused, and
its next attempt wins.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from inmem.errors import ConflictError
from inmem.keys import Key

_MIN_LOSSES: Final = 8  # conflicts in a row: with a chance of one in three, one transaction in thirty
_TURN_US: Final = 5_000  # a transaction that takes longer loses its turn
_REMEMBERED: Final = 4096  # sessions that have lost; beyond that all counts are dropped


class Turns:
    """At most one turn at a time."""

    def __init__(self) -> None:
        self._losses: dict[bytes, int] = {}  # conflicts in a row, by session
        self._key: bytes | None = None  # that the turn is about, None without a turn
        self._holder = b""
        self._until_us = 0

    def check(self, session: bytes, reads: Container[bytes], now_us: int) -> None:
        """Refuse a commit that has read the key of another session's turn.

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
        """Count a conflict; if the session gets the turn for it, the error says that it is next."""
        if len(self._losses) >= _REMEMBERED:
            self._losses.clear()
        losses = self._losses[session] = self._losses.get(session, 0) + 1
        if losses < _MIN_LOSSES or not isinstance(error.key, bytes):
            return
        free = self._key is None or now_us >= self._until_us or session == self._holder
        # Of many candidates, those with the most losses go first.
        if free and losses >= max(self._losses.values()) * 3 // 4:
            self._key, self._holder, self._until_us = error.key, session, now_us + _TURN_US
            error.is_next = True

    def won(self, session: bytes) -> None:
        """Forget the losses of a session whose commit took effect."""
        if self._losses:
            self._losses.pop(session, None)
        if self._key is not None and session == self._holder:
            self._key = None
