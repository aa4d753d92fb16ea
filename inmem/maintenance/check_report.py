"""The result of a check, and the check as a process of its own.

A damaged store cannot take the caller with it: the check runs in a fresh
process, and dying there is a problem of the store.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from inmem.maintenance.process import DiedOfDamage, run_helper

_PROGRAM: Final = ["-m", "inmem.maintenance", "check"]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found; an empty `problems` is a pass.

    `records` of the image, `events` in `logs`, `wal_records` in the log, the
    version of the `checkpoint` that the log goes on from (0 without one) and
    the last commit `version` that was looked at. `notes` are no problems: what
    could not be looked at, and what the next writer will put right.
    """

    problems: list[str] = field(default_factory=list)
    version: int = 0
    records: int = 0
    logs: int = 0
    events: int = 0
    wal_records: int = 0
    wal_bytes: int = 0
    checkpoint: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


def check_in_process(path: Path) -> CheckReport:
    """Check a database, or a backup, from a fresh process and return what it found.

    Raises:
        InmemError: the check could not be done.
    """
    try:
        return CheckReport(**run_helper([*_PROGRAM, str(path)], "check"))
    except DiedOfDamage as signal_name:
        return CheckReport(problems=[f"the check died of {signal_name}: the image cannot be read"])
