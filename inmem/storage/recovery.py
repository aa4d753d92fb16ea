"""Recovery: the store as it was, after whatever ended the last writer.

Invariant: what recovery hands out holds every acknowledged commit that its
mode promises, is made durable before anything of it is published or answered,
and never shows data of another database, another boot or another directory.
It replays writes and outcomes; it knows no procedures.

The image in memory is adopted only if

1. it says the same database, boot and data directory as ours, and
2. the record that led to its last version is found in the log by version and
   checksum (there is no log in `memory` mode).

Then only the end of the log is read. Damage before it costs nothing as long
as there is an image; `check` finds it, and the next checkpoint heals it.

Otherwise it is set aside; the newest checkpoint is loaded, and the log after
it replayed. The log has to go on from that checkpoint, or, without one, to
begin with the database: a segment that is missing at its front is damage.
Versions go on above everything that can have been published: readers and
callers may hold versions that a power cut took from the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from inmem.config import MAP_BYTES, MAX_BATCH
from inmem.errors import CorruptionError, InmemError, StoreFullError
from inmem.host.control import DURABLE, PID, VERSION, Control, boot_id
from inmem.host.directory import DataDirectory, Identity
from inmem.storage.checkpoint import CheckpointReader, Stand, newest_checkpoint
from inmem.storage.environment import create_image, image_parent, remove_image, remove_images
from inmem.storage.store import Position, PublishError, Store
from inmem.storage.wal.files import Position as WalPosition
from inmem.storage.wal.format import Record
from inmem.storage.wal.log import Wal
from inmem.storage.wal.scan import ScanResult, rewrite_tail, scan

_REPLAY_BYTES: Final = 8 * 1024 * 1024  # of the log in one store transaction: bounds dirty pages
_PRIVATE_READERS: Final = 8  # of a store that one process reads
POWER_CUT_GAP: Final = 1 << 32  # versions skipped when it is unknown what was published


@dataclass(frozen=True, slots=True)
class Report:
    """What recovery found and did; logged by the writer and shown by checks."""

    adopted: bool
    reason: str
    checkpoint: int  # the version that was loaded from one, 0 without
    replayed: int
    torn: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Recovered:
    """A store and a log that agree, and the numbers to go on from."""

    store: Store
    log: Wal | None
    generation: int
    epoch: int
    version: int
    clock_us: int
    owner: tuple[Any, ...]
    report: Report


def owner_of(directory: DataDirectory, identity: Identity) -> tuple[Any, ...]:
    """What an image must say of itself to be ours: database, boot, directory."""
    return (identity.database_id, boot_id(), *directory.inode())


def recover(
    directory: DataDirectory, identity: Identity, control: Control,
    reached: Callable[[str], None] = lambda step: None,
) -> Recovered:
    """Bring image and log together; the caller holds the writer's lock.

    Cost: milliseconds with an image in memory, and 1 µs for each record in the
    last segment; from a checkpoint 0.3 µs an entry, from the log 5 µs a write. Nothing durable is removed.

    Raises:
        CorruptionError: the log is damaged before its durable end.
        StoreFullError: the data does not fit the memory that there is.
    """
    began = time.monotonic()
    settings = identity.settings
    owner = owner_of(directory, identity)
    before = control.read()
    if before is None:  # a writer died while it changed the control file
        control.update()
        before = control.read()
        assert before is not None
    keeps_log = settings.durability != "memory"
    stem = directory.stem(identity)
    store, reason = _candidate(Path(before.image) if before.image else None, stem, owner, identity)
    logged = start = checkpoint = stand = None
    try:
        if keeps_log:
            if store is not None and store.position is not None:
                logged = scan(directory.wal, identity.database_id, since=store.position.version)
                start = logged.find(store.position.version, store.position.checksum)
                if start is None:
                    stands = store.position.version
                    reason = f"the image {store.path} stands at version {stands}, which the log does not hold"
                    store.close()
                    store = None
            if store is None:
                logged = scan(directory.wal, identity.database_id)
            assert logged is not None
            # Whose stand is read even if the image is adopted: the log cannot begin before it for nothing.
            checkpoint = newest_checkpoint(directory.checkpoints)
            stand = stand_of_ours(checkpoint, identity) if checkpoint is not None else None
            _check_durable_end(directory, control, logged, stand)
    except BaseException:
        if store is not None:
            store.close()
        raise
    adopted = store is not None
    generation = before.generation
    if store is None:
        generation += 1
        parent = image_parent(directory, settings.image_dir, settings.quota_bytes)
        remove_images(parent, stem, None)
        path = create_image(parent, stem, generation, directory.path)
        store = Store(path, max_readers=settings.max_readers, quota_bytes=settings.quota_bytes)
    try:
        replayed = 0
        log = None
        if logged is not None:
            if not adopted:
                start = _load(store, checkpoint, logged, owner)
                reached("loaded")
            # What will be served must be durable first: pages may look clean after a failed fsync.
            rewrite_tail(logged)
            reached("tail")
            replayed = replay(store, logged.iter_records(start), owner)
            reached("replayed")
        position = store.position
        version = epoch = clock_us = 0
        if position is not None:
            version, epoch, clock_us = position.version, position.epoch, position.clock_us
        epoch = max(epoch, before.epoch, logged.end.epoch if logged and logged.end else 0) + 1
        previous = position.checksum if position is not None else 0
        version = _next_base(version, control, adopted, before.boot == boot_id())
        if logged is not None:
            clock_us = max(clock_us, logged.clock_us, stand.clock_us if stand else 0)
            if logged.end is None:
                log = Wal.create(
                    directory.wal, identity.database_id, segment_bytes=settings.segment_bytes,
                    previous=previous, version=version, epoch=epoch,
                )
            else:
                log = Wal.open_at(
                    logged, segment_bytes=settings.segment_bytes, version=version, epoch=epoch
                )
    except BaseException:
        store.close()
        if not adopted:
            remove_image(store.path)
        raise
    torn = None
    if logged is not None and logged.torn is not None:
        cut = logged.torn
        torn = f"{cut.file} at {cut.offset}: {cut.reason}, {cut.dropped_bytes} bytes dropped"
    loaded = stand.version if stand is not None and not adopted else 0
    report = Report(adopted, reason, loaded, replayed, torn, time.monotonic() - began)
    return Recovered(store, log, generation, epoch, version, clock_us, owner, report)


def stand_of_ours(checkpoint: Path, identity: Identity) -> Stand:
    """What a checkpoint says that it stands for; it has to be this database's."""
    with CheckpointReader(checkpoint) as reader:
        stand = reader.stand
    if stand.database != identity.database_id:
        raise CorruptionError(
            f"{checkpoint} at 0: a checkpoint of another database, {stand.database.hex()}",
            file=str(checkpoint), offset=0,
        )
    return stand


def _load(
    store: Store, checkpoint: Path | None, logged: ScanResult, owner: tuple[Any, ...]
) -> WalPosition | None:
    """Fill an empty store from the checkpoint; where the log goes on, None for all of it.

    Raises:
        CorruptionError: the checkpoint is damaged, or the log does not follow on it.
        StoreFullError: it does not fit the memory that there is.
    """
    if checkpoint is None:
        return begin_of(logged, None, None)
    with CheckpointReader(checkpoint) as reader:
        start = begin_of(logged, checkpoint, reader.stand)
        fill(store, reader, owner)
    return start


def begin_of(logged: ScanResult, checkpoint: Path | None, stand: Stand | None) -> WalPosition | None:
    """Where the log goes on from its checkpoint; None for all of it, which is then as old as the database.

    Raises:
        CorruptionError: it does not go on from there.
    """
    if stand is None:
        if logged.segments and logged.find(0, 0) is None:
            raise _no_start(logged, "begins in the middle, and there is no checkpoint that it goes on from")
        return None
    start = logged.find(stand.version, stand.checksum)
    if start is None and logged.segments:
        raise _no_start(logged, f"does not go on from {checkpoint}, at version {stand.version}")
    return start


def fill(store: Store, reader: CheckpointReader, owner: tuple[Any, ...]) -> None:
    """Load an empty store from a file.

    Raises:
        CorruptionError: the file is damaged.
        StoreFullError: there is no room behind the store.
    """
    stand = reader.stand
    position = Position(stand.version, stand.checksum, stand.clock_us, stand.epoch, owner)
    try:
        store.load(reader.frames(), position)
    except PublishError as error:
        raise too_small(store, error) from error


@contextmanager
def private_store(scratch: Path) -> Iterator[Store]:
    """A new, empty store for one process, in a directory of the caller's; closed afterwards."""
    store = Store(scratch, max_readers=_PRIVATE_READERS, quota_bytes=MAP_BYTES)
    try:
        yield store
    finally:
        store.close()


def _no_start(logged: ScanResult, problem: str) -> CorruptionError:
    first = logged.segments[0].file
    return CorruptionError(f"{first} at 0: the log {problem}", file=str(first), offset=0)


def too_small(store: Store, error: PublishError) -> StoreFullError:
    """What a user is told if an image cannot take what was kept."""
    return StoreFullError(
        f"the data does not fit the memory for the image: {error}",
        used_bytes=store.file_bytes, quota_bytes=store.quota_bytes,
        hint="Free shared memory, or set image_dir to a larger place.",
    )


def _check_durable_end(
    directory: DataDirectory, control: Control, logged: ScanResult | None, stand: Stand | None
) -> None:
    """Refuse a log that ends before what the last writer knew to be durable.

    The control file learns of a version only after its fsync, so it never
    claims too much; and it sees what the log alone cannot show: a missing last
    segment, or damage in the last record.

    Raises:
        CorruptionError: names the file and where the log ends in it.
    """
    durable = control.words[DURABLE]
    end = end_version(logged, stand) if logged is not None else 0
    if logged is None or end >= durable:
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


def end_version(logged: ScanResult, stand: Stand | None) -> int:
    """The version that a log, and the checkpoint that it goes on from, lead to."""
    end = logged.end
    # All of the log was released, or it was not begun, or lost whole: the checkpoint alone may be enough.
    if stand is not None and not logged.records and (end is None or end.checksum == stand.checksum):
        return stand.version
    return end.version if end is not None else 0


def _next_base(recovered: int, control: Control, adopted: bool, same_boot: bool) -> int:
    """The version to go on from: above all that can have been published."""
    clean = control.words[PID] == 0
    published = control.words[VERSION]
    if adopted:
        return recovered
    if clean:
        return max(recovered, published)
    if same_boot:  # the control file is memory that outlived the writer: at most a group behind
        return max(recovered, published + MAX_BATCH + 1)
    return max(recovered, published) + POWER_CUT_GAP


def _candidate(
    image: Path | None, stem: str, owner: tuple[Any, ...], identity: Identity
) -> tuple[Store | None, str]:
    """The image of the last writer if it is this directory's and of this boot, else why not."""
    if image is None or not image.is_dir():
        return None, "no image in memory"
    if not image.name.startswith(stem):  # not even opened: its own writer may be at work
        return None, f"the image {image} belongs to another directory"
    settings = identity.settings
    if not (image / "lock.mdb").exists() and settings.durability != "memory":
        # Readers that still have it open would not be seen in a new one. Without a log there is no choice.
        return None, f"the image {image} has lost its lock file"
    try:
        store = Store(image, max_readers=settings.max_readers, quota_bytes=settings.quota_bytes)
    except (InmemError, OSError) as error:
        return None, f"the image {image} cannot be opened: {error}"
    if store.position is None:
        reason = "is empty"
    elif store.position.owner != owner:
        reason = "belongs to another database, boot or directory"
    else:
        return store, "adopted"
    store.close()
    return None, f"the image {image} {reason}"


@contextmanager
def replay_privately(
    directory: DataDirectory, identity: Identity, scratch: Path, control: Control | None = None
) -> Iterator[Store]:
    """A store rebuilt from checkpoint and log in a directory of the caller's; nothing else is touched.

    With the control file it is refused, as recovery does, if the log ends
    before what was durable.
    """
    with private_store(scratch) as store:
        # First: a writer removes of the log only what a checkpoint that is newer than this one holds.
        checkpoint = newest_checkpoint(directory.checkpoints)
        stand = stand_of_ours(checkpoint, identity) if checkpoint is not None else None
        logged = scan(directory.wal, identity.database_id)
        if control is not None:
            _check_durable_end(directory, control, logged, stand)
        owner = owner_of(directory, identity)
        start = _load(store, checkpoint, logged, owner)
        replay(store, logged.iter_records(start), owner)
        yield store


def replay(store: Store, records: Iterable[Record], owner: tuple[Any, ...]) -> int:
    """Apply records of the log, in their order; returns how many. Cost: about 5 µs a write.

    Raises:
        StoreFullError: there is no room behind the store.
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
