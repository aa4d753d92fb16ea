"""Reads of the newest version: one that loses its connection is made again, as it has shown nothing yet.

So is what is read after a commit to tell what that has taken: the commit is made.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from inmem.client.applied import Applied, Shown
from inmem.client.direct import Commits, DirectSink
from inmem.client.retry import resolved_as
from inmem.client.views import LatestView, closed
from inmem.engines.base import Item
from inmem.engines.postgres.moment import SMALL_PAGE
from inmem.errors import CommitUnknownError, SnapshotTooOldError, WriterUnavailableError
from inmem.record import is_live

T = TypeVar("T")

_TRIES: Final = 3  # of a read that takes longer than a snapshot may: the server may have stood still


class ServerLatest(LatestView):
    """The newest version at each call."""

    def __init__(self, *arguments: Any, first: Callable[[bytes, bytes, int, bool], list[Item]]) -> None:
        """`first` gives a few first records of a range, with those that have expired."""
        super().__init__(*arguments)
        self._first = first
        self._shown = threading.local()

    def close(self) -> None:
        """The handle was closed."""
        super().close()
        self._first = closed

    def show(self, records: dict[bytes, bytes | None] | None) -> None:
        """What this thread looks at next, as a commit of its own has left it a moment ago."""
        self._shown.records = records

    def read_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The live records under some keys, all of one version."""
        shown = getattr(self._shown, "records", None)
        if shown is not None:
            self.show(None)
            if all(key in shown for key in keys):
                now_us = self.now_us()
                found = [shown[key] for key in keys]
                return [each if each is not None and is_live(each, now_us) else None for each in found]
        return again(super().read_many, keys)

    def scan(self, start: bytes, end: bytes, **options: Any) -> list[Item]:
        """The live records of a range, all of one version."""
        limit, max_bytes = options.get("limit"), options.get("max_bytes")
        if limit is not None and 0 < limit <= SMALL_PAGE and max_bytes is None:  # one statement has them
            items = self._first(start, end, limit, options.get("reverse", False))
            now_us = self.now_us()
            live = [item for item in items if is_live(item[1], now_us)]
            if len(live) == len(items):
                return live
        return again(super().scan, start, end, **options)

    def count(self, start: bytes, end: bytes) -> int:
        """How many live records a range has."""
        return again(super().count, start, end)

    def is_deleted(self, prefix: bytes) -> bool:
        """Whether the run with this prefix was deleted."""
        return again(super().is_deleted, prefix)


class ServerSink(DirectSink):
    """Commits of their own, of the thread that calls; `show` is where a view takes what they have shown."""

    __slots__ = ("_show",)

    def __init__(
        self, session: Callable[[], Commits], timeout_s: float, default: Callable[[Any], Any] | None,
        show: Callable[[dict[bytes, bytes | None] | None], None],
    ) -> None:
        super().__init__(session, timeout_s, default)
        self._show = show

    def _made(self, body: bytes, convert: Callable[[Applied], Any]) -> Any:
        def told(applied: Applied) -> Any:
            try:
                return again(convert, applied)
            except WriterUnavailableError:
                error = CommitUnknownError("the commit was made, and what it has taken could not be read")
                error.resender = lambda timeout_s: told(applied)
                raise error from None

        try:
            applied = self._session().commit(body, sync=False, timeout_s=self._timeout_s)
        except CommitUnknownError as error:
            raise resolved_as(error, told) from None
        if not isinstance(applied, Shown):
            return told(applied)
        self._show(applied.records)
        try:
            return told(applied)
        finally:
            self._show(None)


def again(read: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """What a read gives. Its snapshot waits for a server until the deadline each time."""
    tries = 0
    while True:
        try:
            return read(*arguments, **options)
        except SnapshotTooOldError as error:
            tries += error.age_s is not None
            if tries == _TRIES:
                raise
