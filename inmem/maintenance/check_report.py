"""The check as a process of its own.

A damaged store cannot take the caller with it: the check runs in a fresh
process, and dying there is a problem of the store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from inmem.maintenance.process import DiedOfDamage, run_helper
from inmem.reports import CheckReport

_PROGRAM: Final = ["-m", "inmem.maintenance", "check"]


def check_in_process(path: Path) -> CheckReport:
    """Check a database, or a backup, from a fresh process and return what it found.

    Raises:
        InmemError: the check could not be done.
    """
    try:
        return CheckReport(**run_helper([*_PROGRAM, str(path)], "check"))
    except DiedOfDamage as signal_name:
        return CheckReport(problems=[f"the check died of {signal_name}: the image cannot be read"])
