"""Recorded transactions as data, and what can be read off them without judging.

Invariant: what a transaction read is told apart from what it had written
itself; the judges see only what others left it. It knows no store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from workers.judge.history import OK, REFUSED, UNKNOWN, HistoryError, Op, read_history

APPEND: Final = "append"  # (APPEND, list, element)
READ: Final = "read"  # (READ, list, elements), own appends included; absent is []
ADD: Final = "add"  # (ADD, counter, delta)
VALUE: Final = "value"  # (VALUE, counter, number), own adds included; absent is 0

KINDS: Final = {
    "duplicate": "an element is in a list twice, or was appended twice",
    "garbage": "an element was read that nobody appended to that list",
    "order": "two reads of a list of which neither begins like the other",
    "internal": "a transaction's reads contradict each other, or its own writes",
    "lost": "an acknowledged append is not there at the end",
    "total": "a counter is not the sum of what was added to it",
    "bounds": "a counter was read that cannot have been so at that time",
    "G1a": "a write of a transaction that was refused was read",
    "G1b": "one of several appends of a transaction was read without the others",
    "G0": "a cycle of appends",
    "G1c": "a cycle of appends and reads",
    "G-single": "a cycle with one read of what was changed later",
    "G2": "a cycle with several such reads",
    "version": "versions of commits contradict each other or the order of answers",
    "replay": "replaying in the order of versions gives another value than was read",
}  # cycles also with "-session" or "-real-time"

FINAL: Final = -1  # the worker who reads everything at the end
Step = Sequence[Any]


@dataclass(slots=True)
class Txn:
    """One transaction: what it did in order, and what it was told."""

    worker: int  # whose transactions come one after the other
    n: int
    outcome: str  # OK, REFUSED or UNKNOWN; of the last two only writes count
    steps: list[Step]
    asked_at: int = 0  # nanoseconds
    answered_at: int | None = None
    version: int | None = None  # of the commit, or of the snapshot; None if it was not told

    def __str__(self) -> str:
        return "the end" if self.worker == FINAL else f"{self.worker}.{self.n}"

    @property
    def writes(self) -> bool:
        return any(step[0] in (APPEND, ADD) for step in self.steps)


@dataclass(frozen=True, slots=True)
class Anomaly:
    """What is wrong: one of KINDS, how it shows, and who takes part."""

    kind: str
    text: str
    txns: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(slots=True)
class Verdict:
    """All anomalies, and how much there was to find them in."""

    anomalies: list[Anomaly] = field(default_factory=list)
    transactions: int = 0
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    reads: int = 0  # of acknowledged transactions
    foreign_reads: int = 0  # that saw an element of another worker
    replayed: int = 0
    edges: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.acknowledged > 0 and not self.anomalies

    @property
    def kinds(self) -> set[str]:
        return {anomaly.kind for anomaly in self.anomalies}

    def summary(self) -> str:
        """A few lines for a person."""
        edges = ", ".join(f"{count} {kind}" for kind, count in self.edges.items())
        lines = [
            f"{self.transactions} transactions ({self.acknowledged} acknowledged, {self.refused} refused, "
            f"{self.unknown} unknown), {self.reads} reads, {self.foreign_reads} of others' writes, "
            f"{self.replayed} replayed; edges: {edges}; anomalies: {len(self.anomalies)}"
        ]
        return "\n  ".join(lines + [str(anomaly) for anomaly in self.anomalies[:10]])


def from_ops(ops: Iterable[Op]) -> list[Txn]:
    """The transactions among recorded questions: those named "txn".

    Asked with `{"steps": [...]}`, all that it may write; acknowledged with
    `{"steps": [...], "version": ...}`, what it did and read.
    """
    txns = []
    for op in ops:
        if op.op != "txn":
            continue
        told = op.result if op.outcome == OK else op.args
        txns.append(Txn(
            op.worker, op.n, op.outcome, told["steps"], op.asked_at, op.answered_at, told.get("version")
        ))
    return txns


def from_history(paths: Iterable[Path]) -> list[Txn]:
    """The transactions in the files of several workers.

    Raises:
        HistoryError: a file is not a whole history, or has another's name.
    """
    txns: list[Txn] = []
    for path in paths:
        prefix, _, number = path.stem.rpartition("-")
        if prefix != "worker" or not number.isdigit():
            raise HistoryError(f"{path.name} is no worker's history")
        txns += from_ops(read_history(path, int(number)))
    return txns


class Evidence:
    """A history, and what all judges need of it."""

    def __init__(self, txns: list[Txn], final: Mapping[str, Any] | None) -> None:
        outcomes = Counter(txn.outcome for txn in txns)
        self.verdict = Verdict([], len(txns), outcomes[OK], outcomes[REFUSED], outcomes[UNKNOWN])
        self.txns = txns
        self.writers: dict[str, dict[Any, int]] = {}  # list -> element -> index of who appended it
        self.counters: set[str] = set()
        for index, txn in enumerate(txns):
            for kind, key, what in txn.steps:
                if kind in (ADD, VALUE):
                    self.counters.add(key)
                elif kind == APPEND and self.writers.setdefault(key, {}).setdefault(what, index) != index:
                    self.report("duplicate", f"{what!r} was appended to {key} by two", txn)
        self.final = final
        if final is not None:
            self.txns = [*txns, self._at_the_end(final)]
        # What each acknowledged transaction found, without what it had written itself.
        self.lists: list[dict[str, list[Any]]] = [{} for _ in self.txns]
        self.values: list[dict[str, float]] = [{} for _ in self.txns]
        self.order: dict[str, list[Any]] = {}  # list -> its longest read
        for index, txn in enumerate(self.txns):
            if txn.outcome == OK:
                self._look_inside(index, txn)

    def report(self, kind: str, text: str, *txns: Txn) -> None:
        named = tuple(str(txn) for txn in txns)
        who = f" ({', '.join(named)})" if named else ""
        self.verdict.anomalies.append(Anomaly(kind, text + who, named))

    def acknowledged(self) -> Iterator[tuple[int, Txn]]:
        return ((index, txn) for index, txn in enumerate(self.txns) if txn.outcome == OK)

    def possible(self) -> Iterator[tuple[int, Txn]]:
        """Those that happened or may have."""
        return ((index, txn) for index, txn in enumerate(self.txns) if txn.outcome != REFUSED)

    def _at_the_end(self, final: Mapping[str, Any]) -> Txn:
        # An empty list stands for every list that is not named, and 0 for a counter.
        lists = {key: value for key, value in final.items() if isinstance(value, list)}
        counters = {key: value for key, value in final.items() if not isinstance(value, list)}
        self.counters |= counters.keys()
        named = sorted(self.writers.keys() | lists.keys())
        steps: list[Step] = [(READ, key, lists.get(key, [])) for key in named]
        steps += [(VALUE, key, counters.get(key, 0)) for key in sorted(self.counters)]
        end = max((txn.answered_at or txn.asked_at for txn in self.txns), default=0)
        return Txn(FINAL, 0, OK, steps, end + 1, end + 2)

    def _look_inside(self, index: int, txn: Txn) -> None:
        """Take a transaction's own writes from its reads; what is left must be one value for each object."""
        own: dict[str, list[Any]] = {}
        added: dict[str, float] = {}
        for kind, key, what in txn.steps:
            if kind == APPEND:
                own.setdefault(key, []).append(what)
            elif kind == ADD:
                added[key] = added.get(key, 0) + what
            elif kind == VALUE:
                found = what - added.get(key, 0)
                if self.values[index].setdefault(key, found) != found:
                    self.report("internal", f"counter {key} was {self.values[index][key]} and {found}", txn)
            else:
                mine = own.get(key, [])
                length = len(what) - len(mine)
                if length < 0 or list(what[length:]) != mine:
                    self.report("internal", f"{key} was read as {brief(what)} after appending {mine}", txn)
                    continue
                if len(what) > len(self.order.setdefault(key, [])):
                    self.order[key] = list(what)
                before = list(what[:length])
                if self.lists[index].setdefault(key, before) != before:
                    self.report("internal", f"{key} was read as two values", txn)
                self.verdict.reads += txn.worker != FINAL
                self.verdict.foreign_reads += txn.worker != FINAL and any(
                    self.txns[writer].worker != txn.worker for writer in self._writers_of(key, before)
                )

    def _writers_of(self, key: str, elements: Iterable[Any]) -> Iterator[int]:
        writers = self.writers.get(key, {})
        return (writers[element] for element in elements if element in writers)


def brief(elements: Sequence[Any]) -> str:
    """The end of a list, where lists differ."""
    shown = ", ".join(map(str, elements[-4:]))
    return f"[{'... ' if len(elements) > 4 else ''}{shown}] of {len(elements)}"
