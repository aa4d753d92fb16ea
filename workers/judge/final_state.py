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

from workers.judge.checks import Check
from workers.judge.history import Op

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


def check_integrity(final: FinalState) -> Check:
    """What the store's own check found."""
    check = Check("integrity", compared=max(1, final.records))
    for problem in final.problems:
        check.problem(problem)
    return check
