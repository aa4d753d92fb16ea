"""Turns: which transaction goes first where many conflict on one key.

Invariant: a turn can only refuse a commit, as validation can, or make it come
later; it never accepts one that validation would refuse. Turns are not
stored: a new writer begins without any.

A slow transaction, whose process has to be woken for each attempt, can lose
to a fast one again and again. So one that was refused often gets a turn, and
its next attempt wins. For a few milliseconds, other transactions that have
read the key are refused. Commits that write it without having read it come
later: their clients send them again. If it lost for a range, or for the order
of times, that holds for all that is written in the bucket. Plain writes wait for
half of the time at most, however often somebody loses.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Final

from inmem.errors import ConflictError
from inmem.keys import Key, bucket_of

_MIN_LOSSES: Final = 8  # conflicts in a row: with a chance of one in three, one transaction in thirty
_TURN_US: Final = 5_000  # a transaction that takes longer loses its turn
_REST: Final = 1  # times as long as plain writes have waited for a turn, they wait for none
_REMEMBERED: Final = 4096  # sessions that have lost; beyond that all counts are dropped


class Turns:
    """At most one turn at a time."""

    def __init__(self) -> None:
        self._losses: dict[bytes, int] = {}  # conflicts in a row, by session
        self._key: bytes | None = None  # that the turn is about, None without a turn
        self._bucket: bytes | None = None  # and its bucket, if the turn is about all of that
        self._holder = b""
        self._until_us = 0
        self._held_from_us = self._held_until_us = self._rests_until_us = 0  # plain writes, for a turn

    def check(self, session: bytes, reads: Mapping[bytes, int], now_us: int) -> None:
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
        raise ConflictError(
            f"{Key(key)!r} is another transaction's turn, which has lost it often", key=key,
            read_version=reads[key],
        )

    def holds(
        self, session: bytes, changes: Iterable[Sequence[Any]], buckets: Container[bytes], now_us: int
    ) -> bool:
        """Whether a commit comes later, as it changes what another session's turn is about."""
        key = self._key
        if key is None or session == self._holder or now_us >= self._held_until_us:
            return False
        if self._bucket is not None:
            return self._bucket in buckets
        return any(key in change for change in changes)

    def lost(self, session: bytes, error: ConflictError, reads: Container[bytes], now_us: int) -> None:
        """Count a conflict; if the session gets the turn for it, the error says that it is next."""
        if len(self._losses) >= _REMEMBERED:
            self._losses.clear()
        losses = self._losses[session] = self._losses.get(session, 0) + 1
        if losses < _MIN_LOSSES or not isinstance(error.key, bytes):
            return
        free = self._key is None or now_us >= self._until_us or session == self._holder
        # A key that was read names its version. What was lost otherwise can be lost to all of the bucket.
        is_of_key = error.read_version is not None and error.key in reads
        bucket = None if is_of_key else bucket_of(error.key)
        rests = now_us < self._rests_until_us
        if bucket is not None and rests:
            return  # plain writes would come before it
        # Of many candidates, those with the most losses go first.
        if free and losses >= max(self._losses.values()) * 3 // 4:
            self._key, self._bucket, self._holder = error.key, bucket, session
            self._until_us = now_us + _TURN_US
            if not rests:
                self._held_from_us, self._held_until_us = now_us, self._until_us
                self._rests_until_us = self._until_us + _REST * _TURN_US
            error.is_next = True

    def won(self, session: bytes, now_us: int) -> None:
        """Forget the losses of a session whose commit took effect."""
        if self._losses:
            self._losses.pop(session, None)
        if self._key is not None and session == self._holder:
            self._key = None
            if now_us < self._held_until_us:
                self._held_until_us = now_us
                self._rests_until_us = now_us + _REST * (now_us - self._held_from_us)
