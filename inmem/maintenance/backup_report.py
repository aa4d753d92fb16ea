"""The backup as a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from inmem.errors import CorruptionError
from inmem.host.files import left_behind
from inmem.maintenance.process import DiedOfDamage, Progress, run_helper, silent
from inmem.reports import BackupReport

_PROGRAM: Final = ["-m", "inmem.maintenance", "backup"]


def backup_in_process(path: Path, file: Path, progress: Progress = silent) -> BackupReport:
    """Back up from a fresh process, which a damaged image cannot take the caller with.

    Raises:
        InmemError: as `backup`; and if the process died of what it read.
    """
    try:
        return BackupReport(**run_helper([*_PROGRAM, str(path), str(file)], "backup", progress))
    except DiedOfDamage as signal_name:
        for left in left_behind(file):
            left.unlink(missing_ok=True)
        raise CorruptionError(
            f"the backup died of {signal_name}: the image cannot be read",
            hint="Stop the writer, then check: the log may be whole.",
        ) from None
