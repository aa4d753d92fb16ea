"""Recovery: the store as it was, after whatever ended the last writer.

Invariant: a recovered store holds every acknowledged commit that its mode
promises. All of it is durable before anything is published or answered. Data
of another database, another boot or another directory is never shown.

The image in memory is adopted only if

1. it names this database, this boot and this data directory, and
2. the log holds the record that led to its last version, by version and
   checksum (in `memory` mode there is no log).

Then only the end of the log is read. Damage before that does no harm while
there is an image: `check` reports it, and the next checkpoint removes it.

Otherwise the image is set aside, and the store is rebuilt from checkpoint and
log (see `rebuild`). Versions then continue above everything that can have
been published: readers and callers may hold versions that a power cut took
from the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from inmem.config import MAX_BATCH
from inmem.errors import InmemError
from inmem.host.control import PID, VERSION, Control, ControlState, boot_id
from inmem.host.directory import DataDirectory, Identity, runtime_directory
from inmem.storage.environment import (
    create_image,
    image_parent,
    origin_of,
    remove_image,
    remove_images,
)
from inmem.storage.rebuild import check_durable_end, load, newest_header, owner_of, replay
from inmem.storage.store import Store
from inmem.storage.wal.log import Wal
from inmem.storage.wal.scan import ScanResult, rewrite_tail, scan

POWER_CUT_GAP: Final = 1 << 32  # versions skipped when it is unknown what was published


@dataclass(frozen=True, slots=True)
class Report:
    """What recovery found and did, for the writer's journal."""

    adopted: bool
    reason: str
    checkpoint: int  # the version of the checkpoint that was loaded, 0 without one
    replayed: int
    torn: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Recovered:
    """A store and a log that agree, and the numbers to continue with."""

    store: Store
    log: Wal | None
    generation: int
    epoch: int
    version: int
    clock_us: int
    owner: tuple[Any, ...]
    report: Report


def recover(
    directory: DataDirectory, identity: Identity, control: Control,
    reached: Callable[[str], None] = lambda step: None,
) -> Recovered:
    """Bring image and log together; the caller holds the writer's lock.

    Cost: milliseconds with an image in memory, and 1 µs for each record in
    the last segment. Without one, 0.3 µs for each entry of the checkpoint and
    5 µs for each write in the log. Nothing durable is removed.

    Raises:
        CorruptionError: the log is damaged before its durable end.
        StoreFullError: the data does not fit the memory.
    """
    began = time.monotonic()
    settings = identity.settings
    owner = owner_of(directory, identity)
    stem = directory.stem(identity)
    _rename(directory, identity, control)
    before = _last_state(control)
    store, reason = _candidate(Path(before.image) if before.image else None, stem, owner, identity)
    logged = start = checkpoint = header = None
    try:
        if settings.durability != "memory":
            if store is not None and store.position is not None:
                version, checksum = store.position.version, store.position.checksum
                logged = scan(directory.wal, identity.database_id, since=version)
                start = logged.find(version, checksum)
                if start is None:
                    reason = (
                        f"the image {store.path} stands at version {version}, which the log does not hold"
                    )
                    store.close()
                    store = None
            if store is None:
                logged = scan(directory.wal, identity.database_id)
            assert logged is not None
            # Also with an adopted image: the checkpoint's version tells where the log may begin.
            newest = newest_header(directory, identity)
            checkpoint, header = newest or (None, None)
            check_durable_end(directory, control, logged, header)
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
                start = load(store, checkpoint, logged, owner)
                reached("loaded")
            # Before anything is served: pages may look clean after a failed fsync.
            rewrite_tail(logged)
            reached("tail")
            replayed = replay(store, logged.iter_records(start), owner)
            reached("replayed")
        position = store.position
        version = epoch = clock_us = previous = 0
        if position is not None:
            version, previous, clock_us, epoch, _ = position
        epoch = max(epoch, before.epoch, logged.end.epoch if logged and logged.end else 0) + 1
        version = _next_base(version, control, adopted, before.boot == boot_id())
        if logged is not None:
            clock_us = clock_us or logged.clock_us  # the image stands at the end of the log now
            if logged.end is None:
                log = Wal.create(
                    directory.wal, identity.database_id, segment_bytes=settings.segment_bytes,
                    previous=previous, version=version, epoch=epoch,
                )
            else:
                log = Wal.open_at(
                    logged, segment_bytes=settings.segment_bytes, version=version, epoch=epoch
                )
        store.write_through_map()
    except BaseException:
        store.close()
        if not adopted:
            remove_image(store.path)
        raise
    loaded = header.version if header is not None and not adopted else 0
    report = Report(adopted, reason, loaded, replayed, _torn(logged), time.monotonic() - began)
    return Recovered(store, log, generation, epoch, version, clock_us, owner, report)


def _last_state(control: Control) -> ControlState:
    """What the control file says of the last writer; repairs an update that it died in."""
    state = control.read()
    if state is None:
        control.update()
        state = control.read()
        assert state is not None
    return state


def _rename(directory: DataDirectory, identity: Identity, control: Control) -> None:
    """Give the image that a killed writer of the release before has left the name of this release."""
    state = _last_state(control)
    if not state.image:
        return
    before, stem = directory.stem_before(identity), directory.stem(identity)
    image = Path(state.image)
    if image.name.startswith(before):
        image = image.with_name(stem + image.name.removeprefix(before))
        control.update(image=str(image))
        for left in (f"{before}{state.epoch}.sock", f"{before}{state.epoch}.answers"):
            (runtime_directory() / left).unlink(missing_ok=True)
    old = image.with_name(before + image.name.removeprefix(stem))
    if old.is_dir() and not image.is_dir() and origin_of(old) == directory.path:
        old.rename(image)


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
        # A new lock file would not show readers that have the old one open. Without a log there is no choice.
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


def _next_base(recovered: int, control: Control, adopted: bool, same_boot: bool) -> int:
    """The version to continue from: above all that can have been published."""
    clean = control.words[PID] == 0
    published = control.words[VERSION]
    if adopted:
        return recovered
    if clean:
        return max(recovered, published)
    if same_boot:  # the control file is memory that outlived the writer: at most a group behind
        return max(recovered, published + MAX_BATCH + 1)
    return max(recovered, published) + POWER_CUT_GAP


def _torn(logged: ScanResult | None) -> str | None:
    if logged is None or logged.torn is None:
        return None
    cut = logged.torn
    return f"{cut.file} at {cut.offset}: {cut.reason}, {cut.dropped_bytes} bytes dropped"
