"""What is asked of inmem: every target in one table, and whether a figure meets it.

A figure is one of a benchmark's document; `must` and `aim` bound its median
from below, or from above where a cost is meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """A bound of one figure. None: nothing is asked."""

    document: str
    figure: str
    must: float | None = None
    aim: float | None = None
    at_most: bool = False
    unit: str = ""

    @property
    def sign(self) -> str:
        """How the figure is to compare with the bound."""
        return "≤" if self.at_most else "≥"

    def meets(self, value: float, bound: float) -> bool:
        """Whether a value is on the right side of a bound."""
        return value <= bound if self.at_most else value >= bound


ECHO = "probe: futex echo"  # what a wake-up of another process costs on this machine
_PUT, _APPEND, _CAS, _TRACE = "kv put", "event append", "cell cas", "trace record, 2 tags"
_STEP, _MODIFY = "transaction: kv + event + cell + trace", "transaction: read, modify, write"
_LOADED = ", beside 4 busy"

# What each write does in a second on any machine that is not too slow for it, beside load too.
_FLOORS = {_PUT: 10_000, _APPEND: 5_000, _CAS: 5_000, _TRACE: 2_000, _STEP: 1_000}
_YCSB_AIMS = {("A", "redis"): 2, ("F", "redis"): 2}  # half of these mixes are writes

TARGETS = (
    Target("single", "kv get: per second", 20_000, unit="/s"),
    Target("single", "kv get: x redis", 20, 40, unit="x"),
    Target("single", "kv get: x sqlite", 1.5, unit="x"),
    Target("single", "kv get: x stratadb in process", None, 4, unit="x"),
    Target("single", "kv get: x probe: lmdb get", 0.3, unit="x"),
    *(
        Target("single", f"{operation}{situation}: per second", floor, unit="/s")
        for operation, floor in _FLOORS.items() for situation in ("", _LOADED)
    ),
    Target("single", f"{_PUT}: x redis", 1.2, 2, unit="x"),
    Target("single", f"{_PUT}: x stratadb", 1.5, unit="x"),
    Target("single", f"{_PUT}: p50 us", None, 40, at_most=True, unit="µs"),
    Target("single", f"{_PUT}{_LOADED}: x redis", 0.8, 1.2, unit="x"),
    Target("single", f"{_PUT}{_LOADED}: p99 x redis", 2, at_most=True, unit="x"),
    # What 0.8 times Redis comes to on a machine where no processor is ever idle.
    Target("single", f"{_PUT}{_LOADED}: cpu us", None, 40, at_most=True, unit="µs"),
    Target("processes", "kv put, 8 processes: x redis", 1.5, 2, unit="x"),
    Target("processes", "kv put, 8 processes: cpu x inmem before", 0.6, at_most=True, unit="x"),
    Target("processes", "kv put, 8 processes: x sqlite", None, 1, unit="x"),
    Target("processes", "kv put, 8 processes: x stratadb", 1.2, unit="x"),
    Target("processes", "kv put, 64 processes: x redis", 2, unit="x"),
    Target("single", "kv put_many of 100: x redis", 2, unit="x"),
    Target("single", "kv put_many of 100: x sqlite", None, 0.7, unit="x"),
    Target("single", "kv pipeline of 100: x redis", 2, unit="x"),
    Target("single", f"{_APPEND}: x redis", 1, 1.5, unit="x"),
    Target("contention", "same log, append: 8 processes / 1", 2, unit="x"),
    Target("contention", "same log, append: conflicts", 0, at_most=True),
    Target("single", f"{_CAS}: x redis", 2.5, unit="x"),
    Target("single", f"{_TRACE}: x redis", 1.2, 2, unit="x"),
    Target("single", f"{_STEP}: x redis", 1.2, unit="x"),
    Target("single", f"{_STEP}: x sqlite", None, 0.7, unit="x"),
    Target("single", f"{_MODIFY}: x redis", 2, 3, unit="x"),
    Target("sync", "sync put, 8 processes: x redis always", 1.2, unit="x"),
    Target("sync", "sync put, 8 processes: x stratadb always", 3, unit="x"),
    Target("sync", "sync put, 8 processes: x probe: fdatasync", None, 2, unit="x"),
    Target("contention", "same cell, transition: 4 processes / 1", 0.25, 0.5, unit="x"),
    Target("contention", "same cell, transition: 8 processes / 1", 0.15, 0.5, unit="x"),
    Target("contention", "same cell, transition, 4 processes: slowest / mean", 0.1, unit="x"),
    Target("contention", "same cell, transition, 8 processes: slowest / mean", 0.1, unit="x"),
    # "Grows with cores until they are full" names no number: anything above one process is growth.
    Target("processes", "kv get: readers on all cores / 1", 1.0, unit="x"),
    Target("growth", "kv get: most keys / fewest", 0.5, unit="x"),
    Target("growth", "kv put: most keys / fewest", 0.5, unit="x"),
    # Linear is: an item of the longest result costs at most twice an item of one a tenth as long; not in
    # the run is: the same result costs at most twice as much in the large run as in the small one.
    *(
        Target("growth", f"{operation}: {what}", 2, at_most=True, unit="x")
        for operation in ("list", "query_by_type", "query_by_tag", "query_by_time", "get_children")
        for what in ("an item of 10 k / of k", "large run / small")
    ),
    Target("growth", "verify_chain: events per second", 200_000, unit="/s"),
    Target(
        "recovery", "killed under load: ms to the next answer, slowest client", 300, at_most=True, unit="ms"
    ),
    Target("queues", "job claimed and acked, 1 process: x redis", 1.2, unit="x"),
    Target("queues", "job claimed and acked, 8 processes: x redis", 1.2, unit="x"),
    Target("queues", "job claimed and acked, 1 process: x huey", 3, unit="x"),
    Target("queues", "claims with very many jobs waiting / with few", 0.7, unit="x"),
    Target("queues", "from put to start: p50 us", 300, at_most=True, unit="µs"),
    *(
        Target("savers", f"{operation}, {count}: {ours}x {peer}", 1, unit="x")
        for operation in ("put", "put_writes", "get_tuple") for count in ("1 process", "8 processes")
        for ours, peer in (("", "langgraph sqlite"), ("inmem on postgresql ", "langgraph postgres"))
    ),
    Target("recovery", "from a checkpoint: keys per second", 200_000, unit="/s"),
    Target("recovery", "from the log: records per second", 100_000, unit="/s"),
    Target("memory", "image / encoded keys and values", 2, at_most=True, unit="x"),
    Target("memory", "private memory of a client: MiB", 60, at_most=True, unit="MiB"),
    *(
        Target("ycsb", f"ycsb {letter}{situation}: x {peer}", 1, _YCSB_AIMS.get((letter, peer)), unit="x")
        for situation in ("", _LOADED) for letter in "ABCDEF" for peer in ("redis", "sqlite", "stratadb")
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """A target with what was measured, and a word for it."""

    target: Target
    figure: Mapping[str, Any] | None
    word: str

    @property
    def missed(self) -> bool:
        """Whether a `must` is not met."""
        return self.word.startswith("missed")


def judge(documents: Mapping[str, Mapping[str, Any]]) -> list[Verdict]:
    """Every target beside its figure."""
    return [_judge(target, documents) for target in TARGETS]


def _judge(target: Target, documents: Mapping[str, Mapping[str, Any]]) -> Verdict:
    figure = documents.get(target.document, {}).get("figures", {}).get(target.figure)
    if figure is None:
        return Verdict(target, None, "not measured")
    value = figure["median"]
    if target.must is not None and not target.meets(value, target.must):
        return Verdict(target, figure, f"missed: {_short(target, value, target.must)} the must"
                       + _slow_machine(target, documents))
    if target.aim is not None and not target.meets(value, target.aim):
        return Verdict(target, figure, f"{_short(target, value, target.aim)} the aim")
    return Verdict(target, figure, "met")


def _slow_machine(target: Target, documents: Mapping[str, Mapping[str, Any]]) -> str:
    """For a rate that is too low, what it is beside the probe: a machine can be too slow for it."""
    operation, _, what = target.figure.rpartition(": ")
    figure = documents[target.document]["figures"].get(f"{operation}: x {ECHO}")
    if what != "per second" or figure is None:
        return ""
    return f" ({figure['median']:.2g} x the {ECHO.removeprefix('probe: ')} of this machine)"


def _short(target: Target, value: float, bound: float) -> str:
    if not bound:
        return f"{value:g} instead of"
    return f"{abs(value / bound - 1):.0%} {'above' if target.at_most else 'below'}"
