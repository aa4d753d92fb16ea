"""Samples of the commits: how long groups take, and which runs are written most.

Invariant: samples are bounded in number and size whatever the load, so that
they cost a commit less than reading a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from inmem.errors import InmemError
from inmem.writer.committer import Request
from inmem.writeset import OP_CALL, MalformedError, decode

_EVERY_S: Final = 0.01  # between two samples: at 10 µs each, a thousandth of the writer's time
_MAX_BYTES: Final = 4096  # of a commit in a sample: a larger one takes too long to decode
_MAX_RUNS: Final = 512  # runs that are remembered
_REPORTED: Final = 16  # runs that the status names


class Sampler:
    """Times and samples of one writer."""

    def __init__(self) -> None:
        self.groups = 0
        self.group_s = 0.0  # time spent on groups, from validation to answers
        self.due = 0.0  # when the next sample is taken
        self._weights: dict[bytes, float] = {}  # commits by run, older ones count less
        self._looked = False  # since the last `forget`

    def look(self, requests: Sequence[Request], now: float) -> None:
        """Take one commit as the sample for its whole group. Cost: about 10 µs."""
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
        """Halve the weight of past samples; drop them all if none was taken since the last call."""
        if self._looked:
            self._thin()
        else:
            self._weights.clear()
        self._looked = False

    def _thin(self) -> None:
        kept = sorted(self._weights.items(), key=lambda item: -item[1])[: _MAX_RUNS // 2]
        self._weights = {run: weight / 2 for run, weight in kept if weight >= 0.25}

    def hottest(self) -> dict[str, float]:
        """The share of commits of the runs that are written most, largest first."""
        total = sum(self._weights.values())
        first = sorted(self._weights.items(), key=lambda item: -item[1])[:_REPORTED]
        return {run.decode(errors="replace"): weight / total for run, weight in first}


def _run_of(body: bytes) -> bytes:
    """The prefix of the run that the first operation of a commit names; empty if it names none."""
    try:
        op = decode(body).ops[0]
    except (MalformedError, InmemError, IndexError):  # the commit was refused
        return b""
    if op[0] != OP_CALL:
        return bytes(op[1]).partition(b"\0")[0]
    # The first argument of a procedure is a key or a prefix; those of runs take namespace and run.
    arguments = op[2]
    if not arguments or not isinstance(arguments[0], bytes):
        return b""
    prefix = arguments[0].partition(b"\0")[0]
    if op[1].startswith("run.") and len(arguments) > 1 and isinstance(arguments[1], str):
        return prefix + b"/" + arguments[1].encode(errors="replace")
    return prefix
