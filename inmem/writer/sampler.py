"""How the groups went, and which runs are written most: by looking at a few commits.

Invariant: what is looked at is bounded in number and size whatever the load,
so that knowing it costs the path of a commit less than a clock's reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from inmem.commit.committer import Request
from inmem.errors import InmemError
from inmem.writeset import OP_CALL, MalformedError, decode

_EVERY_S: Final = 0.01  # between two looks: a hundred a second, a thousandth of the writer's time
_MAX_BYTES: Final = 4096  # of a commit that is looked at: a larger one takes too long to decode
_MAX_RUNS: Final = 512  # that are remembered, and
_TOLD: Final = 16  # told


class Sampler:
    """What the writer knows of its own work, beside its counters."""

    def __init__(self) -> None:
        self.groups = 0
        self.group_s = 0.0  # spent on groups, from their validation to their answers
        self.due = 0.0  # when the next look is
        self._weights: dict[bytes, float] = {}  # commits by run, older ones counting less
        self._looked = False  # since the last `forget`

    def look(self, requests: Sequence[Request], now: float) -> None:
        """Take one commit of a group for all of them. Cost: about 10 µs."""
        self.due = now + _EVERY_S
        self._looked = True
        body = requests[self.groups % len(requests)].body
        if len(body) > _MAX_BYTES:
            return
        run = _run_of(body)
        if run:
            if len(self._weights) >= _MAX_RUNS and run not in self._weights:
                self._thin()
            self._weights[run] = self._weights.get(run, 0.0) + len(requests)

    def forget(self) -> None:
        """Let what was seen until now count half; all goes if nothing was seen since the last time."""
        if self._looked:
            self._thin()
        else:
            self._weights.clear()
        self._looked = False

    def _thin(self) -> None:
        kept = sorted(self._weights.items(), key=lambda item: -item[1])[: _MAX_RUNS // 2]
        self._weights = {run: weight / 2 for run, weight in kept if weight >= 0.25}

    def hottest(self) -> dict[str, float]:
        """The share that the runs have which are written most, the first most."""
        total = sum(self._weights.values())
        first = sorted(self._weights.items(), key=lambda item: -item[1])[:_TOLD]
        return {run.decode(errors="replace"): weight / total for run, weight in first}


def _run_of(body: bytes) -> bytes:
    """The prefix of the run that a commit begins with; empty if it names none."""
    try:
        op = decode(body).ops[0]
    except (MalformedError, InmemError, IndexError):  # it was refused, and whoever sent it knows why
        return b""
    if op[0] != OP_CALL:
        return bytes(op[1]).partition(b"\0")[0]
    # Procedures begin with a key or a prefix; those of runs with their namespace and a run in it.
    arguments = op[2]
    if not arguments or not isinstance(arguments[0], bytes):
        return b""
    prefix = arguments[0].partition(b"\0")[0]
    if op[1].startswith("run.") and len(arguments) > 1 and isinstance(arguments[1], str):
        return prefix + b"/" + arguments[1].encode(errors="replace")
    return prefix
