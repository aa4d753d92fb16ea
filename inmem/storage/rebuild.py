"""Rebuilding a store from its checkpoint and the log after it.

Invariant: a store is rebuilt whole, or the files that do not allow it are
refused by name. The log must continue the checkpoint, or begin with the
database if there is none: a segment that is missing at its front is damage.
Writes and outcomes are replayed; procedures do not run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from inmem.config import MAP_BYTES
from inmem.errors import CorruptionError, StoreFullError
from inmem.host.control import DURABLE, Control, boot_id
from inmem.host.directory import DataDirectory, Identity
from inmem.storage.checkpoint import CheckpointHeader, CheckpointReader, newest_checkpoint
from inmem.storage.position import Position
from inmem.storage.store import PublishError, Store
from inmem.storage.wal.files import LogPosition
from inmem.storage.wal.format import LogRecord
from inmem.storage.wal.scan import ScanResult, scan

_REPLAY_BYTES: Final = 8 * 1024 * 1024  # of the log in one store transaction: bounds dirty pages


def owner_of(directory: DataDirectory, identity: Identity) -> tuple[Any, ...]:
    """What an image must say of itself to belong here: database, boot, data directory."""
    return (identity.database_id, boot_id(), *directory.inode())


def read_header(checkpoint: Path, identity: Identity) -> CheckpointHeader:
    """The header of a checkpoint of this database.

    Raises:
        CorruptionError: it is damaged, or of another database.
    """
    with CheckpointReader(checkpoint) as reader:
        header = reader.header
    if header.database != identity.database_id:
        raise CorruptionError(
            f"{checkpoint} at 0: a checkpoint of another database, {header.database.hex()}",
            file=str(checkpoint), offset=0,
        )
    return header


def newest_header(directory: DataDirectory, identity: Identity) -> tuple[Path, CheckpointHeader] | None:
    """The newest checkpoint and its header, None without a checkpoint.

    Raises:
        CorruptionError: it is damaged, or of another database.
    """
    checkpoint = newest_checkpoint(directory.checkpoints)
    return None if checkpoint is None else (checkpoint, read_header(checkpoint, identity))


def load(
    store: Store, checkpoint: Path | None, logged: ScanResult, owner: tuple[Any, ...]
) -> LogPosition | None:
    """Fill an empty store from the checkpoint; returns where the log continues it, None for all of it.

    Raises:
        CorruptionError: the checkpoint is damaged, or the log does not continue it.
        StoreFullError: the data does not fit the memory.
    """
    if checkpoint is None:
        return replay_start(logged, None, None)
    with CheckpointReader(checkpoint) as reader:
        start = replay_start(logged, checkpoint, reader.header)
        fill(store, reader, owner)
    return start


def replay_start(
    logged: ScanResult, checkpoint: Path | None, header: CheckpointHeader | None
) -> LogPosition | None:
    """Where the log continues its checkpoint; None for all of a log that begins with the database.

    Raises:
        CorruptionError: it does not continue it.
    """
    if header is None:
        if logged.segments and logged.find(0, 0) is None:
            raise _no_start(logged, "begins in the middle, and there is no checkpoint that it goes on from")
        return None
    start = logged.find(header.version, header.checksum)
    if start is None and logged.segments:
        raise _no_start(logged, f"does not go on from {checkpoint}, at version {header.version}")
    return start


def _no_start(logged: ScanResult, problem: str) -> CorruptionError:
    first = logged.segments[0].file
    return CorruptionError(f"{first} at 0: the log {problem}", file=str(first), offset=0)


def fill(store: Store, reader: CheckpointReader, owner: tuple[Any, ...]) -> None:
    """Load an empty store from a file.

    Raises:
        CorruptionError: the file is damaged.
        StoreFullError: the data does not fit the memory.
    """
    header = reader.header
    position = Position(header.version, header.checksum, header.clock_us, header.epoch, owner)
    try:
        store.load(reader.frames(), position)
    except PublishError as error:
        raise too_small(store, error) from error


def replay(store: Store, records: Iterable[LogRecord], owner: tuple[Any, ...]) -> int:
    """Apply records of the log, in their order; returns how many. Cost: about 5 µs a write.

    Raises:
        StoreFullError: the data does not fit the memory.
    """
    count = held = 0
    txn = None
    last = None
    try:
        for record in records:
            txn = txn or store.begin()
            txn.apply(record.ops)
            last = Position(record.version, record.checksum, record.clock_us, record.epoch, owner)
            count += 1
            held += record.end - record.offset
            if held >= _REPLAY_BYTES:
                txn.publish(last)
                txn, held = None, 0
        if txn is not None and last is not None:
            txn.publish(last)
    except PublishError as error:
        raise too_small(store, error) from error
    return count


def too_small(store: Store, error: PublishError) -> StoreFullError:
    """The error for data that does not fit the memory behind an image."""
    return StoreFullError(
        f"the data does not fit the memory for the image: {error}",
        used_bytes=store.file_bytes, quota_bytes=store.quota_bytes,
        hint="Free shared memory, or set image_dir to a larger place.",
    )


def end_version(logged: ScanResult, header: CheckpointHeader | None) -> int:
    """The last version of a log and the checkpoint that it continues."""
    end = logged.end
    # A log without records that follows on the checkpoint, or no log at all: the checkpoint is all there is.
    if header is not None and not logged.records and (end is None or end.checksum == header.checksum):
        return header.version
    return end.version if end is not None else 0


def check_durable_end(
    directory: DataDirectory, control: Control, logged: ScanResult, header: CheckpointHeader | None
) -> None:
    """Refuse a log that ends before the version that the last writer knew to be durable.

    The control file learns of a version only after its fsync, so it never
    names too high a version. It shows what the log alone cannot: that the
    last segment is missing, or the last record is damaged.

    Raises:
        CorruptionError: names the file, and where the log ends in it.
    """
    durable = control.words[DURABLE]
    end = end_version(logged, header)
    if end >= durable:
        return
    file, offset, reason = directory.wal, 0, "the log has no segment"
    if logged.torn is not None:
        file, offset, reason = logged.torn.file, logged.torn.offset, logged.torn.reason
    elif logged.segments:
        file, offset, reason = logged.segments[-1].file, logged.segments[-1].end, "the log ends here"
    raise CorruptionError(
        f"{file} at {offset}: {reason}, at version {end}, but version {durable} was durable",
        file=str(file), offset=offset,
    )


@contextmanager
def private_store() -> Iterator[Store]:
    """A new, empty store for this process alone; closed afterwards. It has no name: nothing can be left."""
    store = Store(None, max_readers=0, quota_bytes=MAP_BYTES)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def replay_privately(
    directory: DataDirectory, identity: Identity, control: Control | None = None
) -> Iterator[Store]:
    """A store rebuilt from checkpoint and log in memory that has no name; nothing is changed.

    With the control file, a log that ends before what was durable is refused,
    as it is by recovery.
    """
    with private_store() as store:
        # The checkpoint first: of the log a writer removes only what a newer checkpoint holds.
        newest = newest_header(directory, identity)
        checkpoint, header = newest or (None, None)
        logged = scan(directory.wal, identity.database_id)
        if control is not None:
            check_durable_end(directory, control, logged, header)
        owner = owner_of(directory, identity)
        start = load(store, checkpoint, logged, owner)
        replay(store, logged.iter_records(start), owner)
        yield store
