"""Hints that something was written that somebody waits for. Nothing relies on them: see `polling`.

Who has committed in a bucket whose row says that somebody waits notifies, in a
transaction of its own: within the commit all that notify would wait for each other.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

import xxhash

from inmem.engines.postgres.asking import AskedConnection, Statement

LISTEN: Final = "listen inmem"
_NOTIFY: Final = Statement("select pg_notify('inmem', $1)", "t")
_SELDOM_S: Final = 0.02  # between two hints of one bucket: who has had one looks often for a while
_MAX: Final = 1024  # buckets whose times are remembered


class Hints:
    """The hints that a process gives for one store."""

    def __init__(self) -> None:
        self._given: dict[bytes, float] = {}
        self.count = 0

    def give(self, connection: AskedConnection, buckets: Iterable[bytes]) -> None:
        """Say that these were written, by the connection of the commit that did."""
        now = time.monotonic()
        due = [bucket for bucket in buckets if now - self._given.get(bucket, 0.0) >= _SELDOM_S]
        if not due:
            return
        if len(self._given) > _MAX:
            self._given.clear()
        self._given.update(dict.fromkeys(due, now))
        self.count += 1
        connection.tell(_NOTIFY, " ".join(map(payload_of, due[:64])))  # who waits looks anyway


def payload_of(bucket: bytes) -> str:
    """What stands for a bucket in a hint."""
    return xxhash.xxh3_64_hexdigest(bucket)


def is_hint_for(payload: str, buckets: Iterable[bytes]) -> bool:
    """Whether a hint is of one of these."""
    told = {*payload.split(" ")}
    return any(payload_of(bucket) in told for bucket in buckets)
