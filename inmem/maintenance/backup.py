"""Backup: one version of a database as one file.

A backup takes its name only when it is durable and was read back. It never
replaces anything, and what fails or is interrupted leaves nothing under its
name. No writer is started and none is disturbed.

The file has the checkpoint format, see `inmem.storage.checkpoint`. Where a
writer serves, it is copied from one moment of the live image, so a `memory`
database can be backed up too. Elsewhere it is copied from a private replay of
checkpoint and log.

    python -m inmem.maintenance backup DIRECTORY FILE    one JSON document
"""

from __future__ import annotations

import io
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

from inmem.errors import (
    AlreadyExistsError,
    CorruptionError,
    InvalidInputError,
    SnapshotTooOldError,
    WriterUnavailableError,
)
from inmem.host.control import Control
from inmem.host.directory import DataDirectory, Identity
from inmem.maintenance.appearing import appearing_file
from inmem.maintenance.checkpoint import COPY_MAX_AGE_S, copy_moment
from inmem.maintenance.process import (
    Progress,
    answer,
    counted,
    from_os_error,
    silent,
    tell,
)
from inmem.reading.live_image import live_image, writer_of
from inmem.reading.source import replayed, shared
from inmem.reports import BackupReport
from inmem.storage.checkpoint import CheckpointHeader, Written

_ATTEMPTS: Final = 3  # at a source that moves: a writer that leaves, or comes, meanwhile


def backup(path: Path, file: Path, progress: Progress = silent) -> BackupReport:
    """Copy a database, served or not, to one new file, mode 0600, durable and read back.

    Cost: about 2 µs an entry and the disk's time; where no writer serves,
    that of a recovery besides. Commits go on; a snapshot stays open meanwhile.
    Not in a process that has the database open: an image is opened once only.

    Raises:
        AlreadyExistsError: there is something of that name.
        InvalidInputError: no database, or one that was in memory only and is gone.
        CorruptionError: what is there is damaged.
        StoreFullError: the disk has no room.
    """
    began = time.monotonic()
    directory = DataDirectory(path)
    if not directory.exists():
        raise InvalidInputError(f"{directory.path} holds no inmem database", argument="path")
    file = Path(os.path.abspath(file))
    if os.path.lexists(file):
        raise AlreadyExistsError(f"{file} exists", hint="Name a new file: a backup replaces nothing.")
    if not file.parent.is_dir():
        raise InvalidInputError(f"{file.parent} is no directory", argument="file")
    identity = directory.identity()
    control = directory.control()
    try:
        control.check_machine()
        with appearing_file(file) as unfinished:
            source, stand, written = _copied(directory, identity, control, unfinished, progress)
    except OSError as error:
        raise from_os_error("the backup cannot be written", error) from error
    finally:
        control.close()
    seconds = time.monotonic() - began
    return BackupReport(
        str(directory.path), str(file), source, stand.version, written.entries, written.bytes, seconds
    )


def _copied(
    directory: DataDirectory, identity: Identity, control: Control, file: io.FileIO, progress: Progress
) -> tuple[str, CheckpointHeader, Written]:
    for left in reversed(range(_ATTEMPTS)):
        before = writer_of(directory, control)
        try:
            if before[1] or identity.stored["durability"] == "memory":
                return "image", *_copied_live(directory, identity, control, file)
            return "replay", *_copied_replay(directory, identity, control, file, progress)
        except (CorruptionError, SnapshotTooOldError, WriterUnavailableError, FileNotFoundError):
            if not left or before == writer_of(directory, control):
                raise
            file.truncate(0)  # a writer came or left while it was copied
    raise AssertionError("the last attempt returns or raises")


def _copied_live(
    directory: DataDirectory, identity: Identity, control: Control, file: io.FileIO
) -> tuple[CheckpointHeader, Written]:
    found = live_image(directory, identity, control)
    if found.image is None:
        raise WriterUnavailableError(
            f"{directory.path} cannot be backed up: {found.problem or found.reason}",
            path=str(directory.path),
            hint="A database with durability 'memory' can be backed up only while it lives.",
        )
    try:
        with shared(found.image, COPY_MAX_AGE_S).moment() as moment:
            return copy_moment(moment, identity, file)
    finally:
        found.image.close()


def _copied_replay(
    directory: DataDirectory, identity: Identity, control: Control, file: io.FileIO, progress: Progress
) -> tuple[CheckpointHeader, Written]:
    progress("replaying the log")
    with replayed(directory, identity, control) as source, source.moment() as moment:
        return copy_moment(moment, identity, file, counted("copied", progress), may_be_empty=True)


def main(path: Path, file: Path) -> int:
    """Back up, and print the report as JSON."""
    return answer(lambda: asdict(backup(path, file, tell)), "backup")
