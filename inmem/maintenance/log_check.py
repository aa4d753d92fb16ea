"""The check of what is on disk: the newest checkpoint, and the log from end to end.

The log grows while it is read, a write under way looks like a torn tail, and
a new checkpoint replaces both. So where a writer serves, what is wrong is
read again before it is believed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from inmem.errors import InmemError
from inmem.host.control import DURABLE, PID, Control
from inmem.host.directory import DataDirectory, Identity
from inmem.maintenance.findings import Findings
from inmem.reading.live_image import is_served
from inmem.storage.checkpoint import CheckpointHeader, newest_checkpoint, verify_checkpoint
from inmem.storage.environment import LOGGED
from inmem.storage.position import Position
from inmem.storage.rebuild import end_version, read_header, replay_start
from inmem.storage.wal.files import segment_files
from inmem.storage.wal.scan import ScanResult, scan

_READINGS: Final = 3  # of a live log before its problem is believed, and
_ALL_READINGS: Final = 50  # with those during which a checkpoint replaced it
_PAUSE_S: Final = 0.01  # between two of them


class LogCheck:
    """Checks checkpoint and log; with the position of the image, that the log holds it."""

    def __init__(
        self, directory: DataDirectory, identity: Identity, control: Control, findings: Findings
    ) -> None:
        self._directory = directory
        self._identity = identity
        self._control = control
        self._findings = findings
        self._whole: tuple[Path, CheckpointHeader] | None = None  # a checkpoint that was read to its end

    def run(self, position: Position | None) -> None:
        """Read until the log is whole, or what is wrong with it is certain."""
        counted = 0
        for _ in range(_ALL_READINGS):
            before = self._begin()
            problems, notes = self._read(position)
            if not problems or not is_served(self._directory):
                break
            # What a new checkpoint took away while it was read says nothing.
            counted += before == self._begin()
            if counted == _READINGS:
                break
            time.sleep(_PAUSE_S)
        else:
            notes = [f"checkpoints replaced the log faster than it could be read: {problems[0]}"]
            problems = []
        for problem in problems:
            self._findings.problem(problem)
        self._findings.notes += notes

    def _begin(self) -> tuple[Path | None, Path | None]:
        """Where what is kept begins: the newest checkpoint and the oldest segment."""
        segments = segment_files(self._directory.wal) if self._directory.wal.is_dir() else []
        return newest_checkpoint(self._directory.checkpoints), segments[0][1] if segments else None

    def _read(self, position: Position | None) -> tuple[list[str], list[str]]:
        """One reading: problems and notes."""
        # Before the log: what is durable now must be in what is read from here on.
        durable, is_clean = self._control.words[DURABLE], self._control.words[PID] == 0
        problems: list[str] = []
        counts = self._findings.counts
        counts["wal_records"] = counts["wal_bytes"] = counts["checkpoint"] = 0
        try:
            stand = self._checkpoint()
        except (InmemError, OSError) as error:
            problems.append(str(error))
            stand = None
        try:
            found = scan(self._directory.wal, self._identity.database_id)
            counts["wal_bytes"] = sum(segment.end for segment in found.segments)
            for record in found.iter_records():
                counts["wal_records"] += 1
                if any(op[1] not in LOGGED for op in record.ops):
                    problems.append(f"{record.file} at {record.offset}: writes to a table that has no log")
            if position is not None and not self._holds(found, position, stand):
                problems.append(f"the log lacks version {position.version}, at which the image stands")
            if not problems:
                replay_start(found, self._whole[0] if stand and self._whole else None, stand)
        except (InmemError, OSError) as error:
            return [*problems, str(error)], []
        end = end_version(found, stand)
        if end < durable:
            problems.append(f"the log ends at version {end}, but version {durable} was durable")
        return self._with_tail(found, is_clean, problems)

    def _holds(self, found: ScanResult, position: Position, stand: CheckpointHeader | None) -> bool:
        """Whether the log has the image's version, or a checkpoint has freed its record since."""
        if found.find(position.version, position.checksum) is not None:
            return True
        return stand is not None and position.version <= stand.version and is_served(self._directory)

    @staticmethod
    def _with_tail(
        found: ScanResult, is_clean: bool, problems: list[str]
    ) -> tuple[list[str], list[str]]:
        """A torn tail is a problem only after a clean stop, or beside other problems."""
        if found.torn is None:
            return problems, []
        torn = found.torn
        text = f"{torn.file} at {torn.offset}: torn tail of {torn.dropped_bytes} bytes, {torn.reason}"
        if is_clean:
            return [f"{text}, though its writer left cleanly", *problems], []
        if problems:
            return [text, *problems], []
        return [], [f"{text}; the next writer cuts it off"]

    def _checkpoint(self) -> CheckpointHeader | None:
        """What the newest checkpoint stands for, after reading all of it, once."""
        path = newest_checkpoint(self._directory.checkpoints)
        if path is None:
            return None
        if self._whole is None or self._whole[0] != path:
            read_header(path, self._identity)
            self._whole = path, verify_checkpoint(path)[0]
        stand = self._whole[1]
        self._findings.counts["checkpoint"] = stand.version
        return stand
