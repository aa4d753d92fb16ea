"""Backup and restore: one moment of a database as one file, and a new database from such a file.

Invariant: a backup takes its name only when it is durable and was read back,
a restored directory only when it is whole; neither ever replaces anything,
and what fails or is interrupted leaves nothing under these names. No writer
is started and none is disturbed.

A backup is a file in the checkpoint format, see `inmem.storage.checkpoint`.
Where a writer serves, it is copied from one snapshot of the live image, so a
`memory` database can be backed up too; else from a private replay of
checkpoint and log.

A restored database is a new timeline: what was committed after the backup
did not happen in it. So it has an id of its own, no sessions, and versions
that the old one has never used; everything else is as it was.

    python -m inmem.maintenance backup DIRECTORY FILE    one JSON document
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from inmem import failpoints
from inmem.config import Settings, check_stored
from inmem.control import Control
from inmem.directory import DataDirectory, Identity
from inmem.errors import (
    AlreadyExistsError,
    CorruptionError,
    InmemError,
    InvalidInputError,
    SnapshotTooOldError,
    WriterUnavailableError,
)
from inmem.files import make_private_dir, sync_directory
from inmem.maintenance.checkpoint import COPY_MAX_AGE_S, copy_moment, write_verified
from inmem.maintenance.process import (
    DiedOfDamage,
    Progress,
    answer,
    from_os_error,
    run_helper,
    silent,
    tell,
)
from inmem.reading.live_image import live_image, writer_of
from inmem.reading.moment import Item
from inmem.reading.source import replayed, shared
from inmem.storage.checkpoint import CheckpointReader, Stand, Written, checkpoint_path
from inmem.storage.environment import Table
from inmem.storage.recovery import POWER_CUT_GAP
from inmem.storage.wal import Wal

Tables = Iterable[tuple[Table, Iterable[Item]]]

_ATTEMPTS: Final = 3  # at a source that moves: a writer that leaves, or comes, meanwhile
_TELL_EVERY: Final = 100_000  # entries between two words of progress
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


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """A restored database: from which file, as of which version, and with which it goes on."""

    file: str
    path: str
    backup_version: int
    version: int
    durability: str
    entries: int
    seconds: float
    notes: list[str] = field(default_factory=list)


# --- backup -------------------------------------------------------------------------------------


def backup_in_process(path: Path, file: Path, progress: Progress = silent) -> BackupReport:
    """Back up from a fresh process, which a damaged image cannot take the caller with.

    Raises:
        InmemError: as `backup`; and if the process died of what it read.
    """
    try:
        return BackupReport(**run_helper([*_PROGRAM, str(path), str(file)], "backup", progress))
    except DiedOfDamage as signal_name:
        for left in _unfinished(file):
            left.unlink(missing_ok=True)
        raise CorruptionError(
            f"the backup died of {signal_name}: the image cannot be read",
            hint="Stop the writer, then check: the log may be whole.",
        ) from None


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
        with _appearing(file) as unfinished:
            source, stand, written = _copied(directory, identity, control, unfinished, progress)
    except OSError as error:
        raise from_os_error("the backup cannot be written", error) from error
    finally:
        control.close()
    seconds = time.monotonic() - began
    return BackupReport(
        str(directory.path), str(file), source, stand.version, written.entries, written.bytes, seconds
    )


def _unfinished(path: Path) -> list[Path]:
    """What killed processes, this one's number included, have left of something of this name."""
    found = []
    head, tail = f".{path.name}.", ".tmp"
    for left in path.parent.iterdir():
        if left.name.startswith(head) and left.name.endswith(tail):
            pid = left.name[len(head) : -len(tail)]
            if pid.isdigit() and (int(pid) == os.getpid() or not Path(f"/proc/{pid}").exists()):
                found.append(left)
    return found


@contextmanager
def _appearing(file: Path) -> Iterator[Path]:
    """A place for a file that gets its name, durably, if the block ends without an error."""
    for left in _unfinished(file):
        left.unlink(missing_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        yield unfinished
        failpoints.reached("backup_copied")
        try:
            os.link(unfinished, file)  # unlike a rename, it never replaces
        except FileExistsError:
            raise AlreadyExistsError(f"{file} was made meanwhile; nothing was replaced") from None
    finally:
        unfinished.unlink(missing_ok=True)
    sync_directory(file.parent)


def _copied(
    directory: DataDirectory, identity: Identity, control: Control, file: Path, progress: Progress
) -> tuple[str, Stand, Written]:
    for left in reversed(range(_ATTEMPTS)):
        before = writer_of(directory, control)
        try:
            if before[1] or identity.stored["durability"] == "memory":
                return "image", *_copied_live(directory, identity, control, file)
            return "replay", *_copied_replay(directory, identity, control, file, progress)
        except (CorruptionError, SnapshotTooOldError, WriterUnavailableError, FileNotFoundError):
            if not left or before == writer_of(directory, control):
                raise
            file.unlink(missing_ok=True)  # a writer came or left while it was copied
    raise AssertionError("the last attempt returns or raises")


def _copied_live(
    directory: DataDirectory, identity: Identity, control: Control, file: Path
) -> tuple[Stand, Written]:
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
    directory: DataDirectory, identity: Identity, control: Control, file: Path, progress: Progress
) -> tuple[Stand, Written]:
    progress("replaying the log")
    with replayed(directory, identity, "backup", control) as source, source.moment() as moment:
        return copy_moment(moment, identity, file, counted("copied", progress), may_be_empty=True)


def counted(done: str, progress: Progress) -> Callable[[Iterable[Item]], Iterator[Item]]:
    """Something that entries pass through, telling how many have passed."""
    total = 0

    def passing(items: Iterable[Item]) -> Iterator[Item]:
        nonlocal total
        for item in items:
            yield item
            total += 1
            if total % _TELL_EVERY == 0:
                progress(f"{done} {total:,} entries")

    return passing


def main(path: Path, file: Path) -> int:
    """Back up, and print the report as JSON."""
    return answer(lambda: asdict(backup(path, file, tell)), "backup")


# --- restore ------------------------------------------------------------------------------------


def restore(file: Path, path: Path, progress: Progress = silent) -> RestoreReport:
    """A new data directory from a backup. Cost: about 3 µs an entry and the disk's time.

    A backup of a `memory` database becomes a `buffered` one: without a log
    it could not be restored to anything that outlives this call.

    Raises:
        AlreadyExistsError: the directory exists and is not empty.
        CorruptionError, FormatVersionError: the file is not what was written;
            no directory was made.
        InvalidInputError: there is no such file, or its settings are of another release.
        StoreFullError: the disk has no room.
    """
    began = time.monotonic()
    path = Path(os.path.abspath(path))
    refuse_taken(path)
    notes: list[str] = []
    try:
        with CheckpointReader(file) as reader:
            stored = check_stored(reader.stand.settings, str(file))
            if stored["durability"] == "memory":
                stored["durability"] = "buffered"
                notes.append("the backup is of a database in memory only; this one is 'buffered'")
            passing = counted("restored", progress)
            frames = ((table, passing(items)) for table, items in reader.frames() if table != Table.SESSIONS)
            with appearing_directory(path) as unfinished:
                stand, written = make_database(
                    unfinished, Settings(**stored), reader.stand, frames
                )
            backup_version = reader.stand.version
    except FileNotFoundError as error:
        if error.filename != str(file):
            raise
        raise InvalidInputError(f"{file} does not exist", argument="file") from None
    except OSError as error:
        raise from_os_error(f"{path} cannot be written", error) from error
    return RestoreReport(
        str(file), str(path), backup_version, stand.version, stored["durability"], written.entries,
        time.monotonic() - began, notes,
    )


def refuse_taken(path: Path) -> None:
    """Refuse a place for a new directory that holds something.

    Raises:
        AlreadyExistsError: it does.
    """
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir() or any(path.iterdir()):
        raise AlreadyExistsError(
            f"{path} exists and is not an empty directory", hint="Name a new directory: nothing is replaced."
        )


@contextmanager
def appearing_directory(path: Path) -> Iterator[Path]:
    """A directory beside this one, which takes its name, whole, if the block ends without an error.

    Killed meanwhile, it stays under its other name, and is no database
    unless it is whole; the next attempt removes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in _unfinished(path):
        shutil.rmtree(left, ignore_errors=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    make_private_dir(unfinished)
    try:
        yield unfinished
        failpoints.reached("restore_built")
        try:
            os.rename(unfinished, path)  # onto an empty directory, or onto nothing
        except OSError as error:
            refuse_taken(path)
            raise InmemError(
                f"a new directory cannot take the name {path}: {error.strerror}",
                hint="If it is a file system of its own, name a directory inside of it.",
            ) from None
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    sync_directory(path.parent)


def make_database(
    place: Path, settings: Settings, stand: Stand, tables: Tables
) -> tuple[Stand, Written]:
    """A whole new database in an empty directory: one checkpoint and an empty log that goes on from it.

    The settings, which make it a database, come last.
    """
    directory = DataDirectory(place)
    stand = replace(
        stand, database=uuid.uuid4().bytes,
        # Above what the old one can have published since: no version ever means two things.
        version=stand.version + POWER_CUT_GAP,
        # A log that names 0 begins with its database: it would not miss the checkpoint.
        checksum=stand.checksum or 1,
        settings={name: getattr(settings, name) for name in stand.settings},
    )
    make_private_dir(directory.checkpoints)
    written = write_verified(checkpoint_path(directory.checkpoints, stand.version), stand, tables)
    log = Wal.create(
        directory.wal, stand.database, segment_bytes=settings.segment_bytes, previous=stand.checksum,
        version=stand.version, epoch=stand.epoch,
    )
    log.close()
    directory.create(settings, database_id=stand.database)
    return stand, written
