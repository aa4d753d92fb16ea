"""What a check and a backup tell, whichever engine was asked."""

from __future__ import annotations

from dataclasses import dataclass, field


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
