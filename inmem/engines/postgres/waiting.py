"""Waiting: who waits looks again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from inmem.client.waiting import Watched, timed_out
from inmem.commit.validation import Recent
from inmem.engines.postgres.moment import SeenBuckets
from inmem.engines.postgres.store import ServerStore

_POLL_S: Final = 0.002
_POLL_MAX_S: Final = 0.02


class ServerWaits:
    """Who waits looks again and again."""

    def __init__(self, store: Callable[[], ServerStore]) -> None:
        self._store = store

    def walks(self, snapshot: Any) -> Recent:
        """Versions of the buckets that were read in a snapshot."""
        return SeenBuckets({}, snapshot.seen)

    def wait(self, watched: Watched, deadline: float) -> None:
        """Sleep until something has changed."""
        pause_s = _POLL_S
        while time.monotonic() < deadline:
            moment = self._store().moment()
            try:
                if watched.has_changed(moment):
                    return
            finally:
                moment.close()
            time.sleep(min(pause_s, max(0.0, deadline - time.monotonic())))
            pause_s = min(_POLL_MAX_S, pause_s * 1.5)
        raise timed_out()
