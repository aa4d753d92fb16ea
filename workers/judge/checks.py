"""Checks: what was found against what was expected, counted and told.

Invariant: a check compares everything it names and says how much that was; a
check that compared nothing is a failure, not a pass. The checkers take plain
data, so that a test can hand them a damaged copy and see them fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from workers.judge.values import same, shorten

Record = tuple[str, dict[str, Any]]  # an event: type, payload
MAX_PROBLEMS: Final = 5  # told per check; the rest is counted


@dataclass(slots=True)
class Check:
    """One question about the final state: how much was compared, and what was wrong."""

    name: str
    compared: int = 0
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0
    lost: int = 0  # of what was acknowledged and can be counted one by one
    doubled: int = 0

    @property
    def ok(self) -> bool:
        return self.compared > 0 and not self.problem_count

    def problem(self, text: str) -> None:
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)

    def require(self, condition: bool, text: str) -> None:
        """Count one comparison, and a problem if it does not hold."""
        self.compared += 1
        if not condition:
            self.problem(text)

    def count(self, least: int, have: int, most: int) -> None:
        """Count what is missing of what was acknowledged, and what is there beyond what was asked for."""
        self.lost += max(0, least - have)
        self.doubled += max(0, have - most)

    def equal(self, have: Any, want: Any, what: str) -> None:
        """Count one comparison of two values and their types."""
        self.require(same(have, want), f"{what} is {shorten(have)}, expected {shorten(want)}")

    def summary(self) -> str:
        """One line for a person."""
        if self.ok:
            return f"{self.compared:,} compared"
        if not self.problem_count:
            return "nothing was compared"
        more = self.problem_count - len(self.problems)
        return "; ".join(self.problems) + (f"; and {more} more" if more else "")


@dataclass(slots=True, kw_only=True)
class Judged:
    """What came of a program: failures of its processes, and the checks that followed."""

    failures: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.failures and bool(self.checks) and all(check.ok for check in self.checks)

    def problems(self) -> list[str]:
        return self.failures + [f"{one.name}: {one.summary()}" for one in self.checks if not one.ok]


def check_numbers(check: Check, what: str, numbers: Iterable[int], final: int, unknown: int = 0) -> None:
    """Every number from 1 to `final` was given to one question, but for as many as had no answer."""
    seen: set[int] = set()
    for number in numbers:
        check.require(number not in seen, f"{what}: {number} was given twice")
        check.require(1 <= number <= final, f"{what}: {number} was given, the last is {final}")
        seen.add(number)
    missing = final - len(seen)
    check.require(
        0 <= missing <= unknown, f"{what}: the last is {final}, but {len(seen)} were acknowledged"
    )


def check_entries(check: Check, what: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Same names, and the same value with the same type under each."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            check.require(False, f"{what}: {name!r} is lost")
        elif name not in expected:
            check.require(False, f"{what}: {name!r} should not be there")
        else:
            check.equal(found[name], expected[name], f"{what}: {name!r}")


def check_store(check: Check, report: Any) -> None:
    """The store's own check of image, log, chains and indices found nothing."""
    check.compared += max(1, report.records)
    for problem in report.problems:
        check.problem(problem)
