"""Failpoints: named places where a test may kill or stop this process.

Invariant: without `INMEM_FAILPOINT` in the environment a failpoint does
nothing. The variable is `name:n`, `name:n:file` or `name:n:file:stop`. When
the name is reached for the n-th time, the process sends itself SIGKILL, or
SIGSTOP with `stop`. With a file, it does so only if the file does not exist,
and creates the file first, so that the next writer lives.
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
        count, _, rest = rest.partition(":")
        flag, _, action = rest.partition(":")
        self.name = name
        self._left = int(count or "1")
        self._flag = Path(flag) if flag else None
        self._signal = signal.SIGSTOP if action == "stop" else signal.SIGKILL

    def reached(self, name: str) -> None:
        """Kill or stop the process if the name is reached for the n-th time."""
        if name != self.name:
            return
        self._left -= 1
        if self._left:
            return
        if self._flag is not None:
            if self._flag.exists():
                return
            self._flag.touch()
        os.kill(os.getpid(), self._signal)


_failpoint = Failpoint(os.environ[VARIABLE]) if VARIABLE in os.environ else None


# For who would call `reached` often: None where it does nothing.
hook: Final = _failpoint.reached if _failpoint is not None else None


def reached(name: str) -> None:
    """Called where a test may want the process to be killed or stopped."""
    if _failpoint is not None:
        _failpoint.reached(name)
