"""The report of a backup, and the backup as a process of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inmem.errors import CorruptionError
from inmem.host.files import left_behind
from inmem.maintenance.process import DiedOfDamage, Progress, run_helper, silent

_PROGRAM: Final = ["-m", "inmem.maintenance", "backup"]


@dataclass(frozen=True, slots=True)
class BackupReport:
    """A backup that is in place: its file, the version that it shows, how much it holds (bytes, entries).

    `source` is "image" if it was copied from the live one, else "replay".
    """

    path: str
    file: str
    source: str
    version: int
    entries: int
    bytes: int
    seconds: float


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
