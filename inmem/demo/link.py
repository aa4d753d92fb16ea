"""A process's end of the pipe to its parent: the task comes first, then nothing but the end.

Invariant: a process whose parent is gone, or that was asked to stop, ends by
itself, whatever it does at the moment.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict, dataclass
from typing import Any, Final

_GRACE_S: Final = 20.0  # from being asked to stop until a process ends itself


class ParentGoneError(Exception):
    """Nobody hears this process any more."""


@dataclass(frozen=True, slots=True)
class DemoTask:
    """What a process is told: the store, the run of the fleet, its role and its name."""

    place: str
    run: str
    role: str
    name: str
    holder: str  # the name, with how often it was started
    seed: int
    workers: int

    def encode(self) -> bytes:
        """As a line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"


class ParentLink:
    """Reads the task from standard input, tells by lines of JSON on standard output."""

    def __init__(self) -> None:
        self.task = DemoTask(**json.loads(sys.stdin.buffer.readline()))
        self.stopping = threading.Event()
        threading.Thread(target=self._watch, name="parent", daemon=True).start()

    def _watch(self) -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass  # nothing is ever sent: the end of the file says to stop
        self.stopping.set()
        threading.Event().wait(_GRACE_S)
        os._exit(1)

    def tell(self, kind: str, **fields: Any) -> None:
        """Tell the parent something.

        Raises:
            ParentGoneError: there is none.
        """
        try:
            sys.stdout.buffer.write(json.dumps({"kind": kind, **fields}).encode() + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise ParentGoneError from None

    def doing(self, text: str) -> None:
        """Tell what this process is busy with."""
        self.tell("doing", text=text)
