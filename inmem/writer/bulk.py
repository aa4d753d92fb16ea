"""Bulk work: what expired, and what is left of deleted runs, removed in slices between groups of commits.

Invariant: nobody sees what a slice removes, so it may be done at any time, in
any portion, or again after a kill. A slice takes a few milliseconds, and the
next one waits as long as this one took if there were commits meanwhile: bulk
work takes half of a busy writer's time at most, and all of an idle one's.
"""

from __future__ import annotations

import time
from typing import Final

from inmem.config import SWEEP_LIMIT
from inmem.host import failpoints
from inmem.host.control import VERSION
from inmem.storage.store import NEVER_US, PublishError
from inmem.storage.wal.log import WalBrokenError
from inmem.writer.durability import end_process
from inmem.writer.journal import Journal
from inmem.writer.parts import Parts

_RETRY_S: Final = 1.0  # after a failure: there was no room
_NEVER: Final = float("inf")

journal = Journal()


class BulkWork:
    """The slices of one writer."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.due = 0.0  # when the next slice may be done, by the monotonic clock
        self._not_before = 0.0

    def plan(self, now: float) -> None:
        """Find out when there is something to do. Commits change that: look again after some."""
        store = self._parts.generations.store
        due = _NEVER
        if store.purges:
            due = now
        elif store.next_expiry_us != NEVER_US:
            due = now + max(0.0, (store.next_expiry_us - self._parts.clock.now_us()) / 1e6)
        self.due = max(due, self._not_before)

    def make_room(self) -> None:
        """Where the quota is nearly used up, free what is left of deleted runs before more is stored.

        Who deletes a run to make room must not be refused because its space comes back later.
        """
        store = self._parts.generations.store
        try:
            while store.purges and store.is_tight():
                store.purge(SWEEP_LIMIT)
        except PublishError as error:
            journal.warning("bulk_failed", error=error)

    def do_slice(self, *, is_busy: bool) -> None:
        """Do one slice, and plan the next; what fails for want of room is tried again later."""
        began = time.monotonic()
        parts = self._parts
        store = parts.generations.store
        self._not_before = 0.0
        try:
            # In turn, so that the one does not wait for the end of the other.
            if parts.committer.sweep(parts.clock.now_us(), SWEEP_LIMIT):
                parts.control.words[VERSION] = parts.committer.version
                failpoints.reached("swept")
            if store.purges:
                store.purge(SWEEP_LIMIT)
                failpoints.reached("purged")
        except WalBrokenError:
            end_process()
        except (PublishError, OSError) as error:
            journal.warning("bulk_failed", error=error)
            self._not_before = began + _RETRY_S
        else:
            if is_busy:
                now = time.monotonic()
                self._not_before = now + (now - began)
        self.plan(time.monotonic())
