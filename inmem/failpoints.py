"""Failpoints: named places where a test may kill this process.

Invariant: without `INMEM_FAILPOINT` in the environment a failpoint does
nothing. The variable is `name:n` or `name:n:file`: at the n-th time that the
name is reached, the process sends itself SIGKILL; with a file, only if that
does not exist yet, and it is created first, so that the next writer lives.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Final

VARIABLE: Final = "INMEM_FAILPOINT"


class Failpoint:
    """The one failpoint that the environment names."""

    def __init__(self, text: str) -> None:
        name, _, rest = text.partition(":")
        count, _, flag = rest.partition(":")
        self.name = name
        self._left = int(count or "1")
        self._flag = Path(flag) if flag else None

    def reached(self, name: str) -> None:
        """Die here if the time has come."""
        if name != self.name:
            return
        self._left -= 1
        if self._left:
            return
        if self._flag is not None:
            if self._flag.exists():
                return
            self._flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)


_failpoint = Failpoint(os.environ[VARIABLE]) if VARIABLE in os.environ else None


def reached(name: str) -> None:
    """Called where a test may want the process to die."""
    if _failpoint is not None:
        _failpoint.reached(name)
