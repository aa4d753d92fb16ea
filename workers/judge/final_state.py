"""What is in the store at the end, as plain data, and the checks that hold histories against it.

Invariant: a check sees histories and a final state and asks no store; so a
test can forge either and see it fail. What was acknowledged must be there,
once; what was refused must be nowhere; what was never answered may be either,
but whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.judge.checks import Check, check_numbers
from workers.judge.history import OK, REFUSED, UNKNOWN, Op

Look = Callable[[Check, list[Op], "FinalState"], None]
Table = Sequence[tuple[str, Look, frozenset[str]]]  # name of the check, what it does, kinds of questions


@dataclass(slots=True)
class FinalRun:
    """What is there of one run at the end."""

    status: str | None = None  # None: no record
    version: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)
    kv: dict[str, Any] = field(default_factory=dict)
    events: list[tuple[int, str, Any]] = field(default_factory=list)  # sequence, type, payload
    cells: dict[str, tuple[Any, int]] = field(default_factory=dict)  # value, version
    traces: dict[str, tuple[str | None, Any]] = field(default_factory=dict)  # parent, what the body says
    jobs: dict[int, tuple[Any, str, int]] = field(default_factory=dict)  # payload, state, attempt
    job_count: int = 0  # as the store counts them
    chain: str | None = None  # what is wrong with it
    takes_writes: bool = True  # of a run that was deleted: whether it takes one

    @property
    def is_empty(self) -> bool:
        return self.status is None and not (self.kv or self.events or self.cells or self.traces)


@dataclass(slots=True)
class FinalState:
    """Every run that anybody named; hot runs are those that were there from the start."""

    hot: list[str]
    runs: dict[str, FinalRun]
    problems: list[str] = field(default_factory=list)  # what the store's own check found
    records: int = 1  # that it looked at


def run_checks(table: Table, histories: Iterable[Iterable[Op]], final: FinalState) -> list[Check]:
    """The checks of a table for whose questions anything was asked; they see these in their order."""
    ops = [op for history in histories for op in history]
    done = []
    for name, look, kinds in table:
        asked = [op for op in ops if op.op in kinds]
        if asked:
            done.append(Check(name))
            look(done[-1], asked, final)
    return done


def check_effect(check: Check, op: Op, whole: bool, absent: bool, found: object) -> None:
    """What was acknowledged is there whole, what was refused is nowhere, and what had no answer is either."""
    fine = whole if op.outcome == OK else absent if op.outcome == REFUSED else whole or absent
    check.require(fine, f"{op}: {op.outcome}, there is {found}")


def count_by(ops: Iterable[Op], run: str, outcome: str) -> list[Op]:
    """Those on one run with one outcome."""
    return [op for op in ops if op.run == run and op.outcome == outcome]


def check_told(check: Check, what: str, ops: list[Op], run: str, last: int, first: int = 1) -> None:
    """Each number from `first` to `last` was told to one question of a run, or its question had no answer."""
    told = [op.result - first + 1 for op in count_by(ops, run, OK)]
    check_numbers(check, f"{what} of {run}", told, last - first + 1, len(count_by(ops, run, UNKNOWN)))


def check_integrity(final: FinalState) -> Check:
    """What the store's own check found."""
    check = Check("integrity", compared=max(1, final.records))
    for problem in final.problems:
        check.problem(problem)
    return check
