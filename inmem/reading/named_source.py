"""A source of one namespace: what commands read that only look."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from inmem.engines.base import Stored
from inmem.keys import Namespace
from inmem.reading.run import StoredRun
from inmem.reading.source import Source

_POLL_S: Final = 0.05


class NamedSource(Source):
    """A source, and the namespace that is looked at. Who follows what is in it looks again and again."""

    def __init__(
        self, name: str, begin: Callable[[], Stored], now_us: Callable[[], int], namespace: Namespace
    ) -> None:
        super().__init__(name, begin, now_us)
        self.namespace = namespace

    def run(self, name: str) -> StoredRun:
        """A run, or `@agent`, `@app`, `@tenant`. Each page of it is of the newest version."""
        return StoredRun(self, self.namespace, name)

    def arm(self, *starts: bytes) -> Any:
        """Before a look at what begins so, for which somebody will `sleep` until it changes."""

    def sleep(self, armed: Any) -> None:
        """Sleep until it has changed, or for a while."""
        time.sleep(_POLL_S)

    def follow(self) -> None:
        """Go on with what has come in the place of what is read."""
