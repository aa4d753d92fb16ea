"""Is a data directory, and the writer that serves it, in good condition? Cheap looks, which change nothing.

`inmem check` reads everything; this reads names, sizes, a header and the end of a journal.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from inmem.config import FORMAT_VERSION, MIB
from inmem.errors import (
    CorruptionError,
    PermissionDeniedError,
    SnapshotTooOldError,
    StoreFullError,
    WriterUnavailableError,
)
from inmem.host.clock import FAR_US, boot_us, wall_us
from inmem.host.control import CLOCK, boot_id
from inmem.host.directory import DataDirectory, Identity, file_system, runtime_place
from inmem.host.files import hint_of
from inmem.maintenance.diagnosis import Diagnosis
from inmem.maintenance.machine import MORE_MEMORY, judge_room
from inmem.storage.checkpoint import CheckpointReader, newest_checkpoint
from inmem.storage.environment import free_bytes

_REMOTE: Final = ("nfs", "cifs", "smb", "fuse.sshfs", "ceph", "gluster", "lustre", "afs")
_FLEETING: Final = ("tmpfs", "ramfs")
_NEARLY: Final = 0.9  # of the quota
_LATE: Final = 4  # times the size at which a checkpoint is due
_JOURNAL_BYTES: Final = 65_536  # of its end


def look_at_directory(diagnosis: Diagnosis, directory: DataDirectory, identity: Identity) -> dict[str, Any]:
    """Where it lies, and what is in it, for programs."""
    path, stored = directory.path, identity.stored
    info = os.statvfs(path)
    kind, free = file_system(os.stat(path).st_dev), info.f_bavail * info.f_frsize
    if info.f_flag & os.ST_RDONLY:
        hint = hint_of(OSError(errno.EROFS, ""))
        diagnosis.problem("directory", f"{path} is on a read-only file system", hint)
    elif not os.access(path, os.W_OK | os.X_OK):
        diagnosis.problem("directory", f"{path} cannot be written to", hint_of(OSError(errno.EACCES, "")))
    _judge_file_system(diagnosis, kind, stored["durability"])
    with diagnosis.looking_at("directory"):
        directory.check_own()
    with diagnosis.looking_at("directory"):
        _judge_owners(diagnosis, directory)
    checkpoint = None
    with diagnosis.looking_at("checkpoint"):
        checkpoint = _checkpoint(diagnosis, directory, identity)
    room = (0 if checkpoint is None else checkpoint["bytes"]) + stored["segment_bytes"]
    if stored["durability"] != "memory" and free < room:
        diagnosis.problem(
            "disk", f"{free // MIB:,} MiB are free, a checkpoint and a part of the log need {room // MIB:,}",
            hint_of(OSError(errno.ENOSPC, "")),
        )
    return {
        "path": str(path), "filesystem": kind, "bytes": info.f_blocks * info.f_frsize, "free_bytes": free,
        "format": FORMAT_VERSION, "database_id": identity.database_id.hex(), "checkpoint": checkpoint,
    }


def _judge_file_system(diagnosis: Diagnosis, kind: str, durability: str) -> None:
    if kind.startswith(_REMOTE):
        diagnosis.note(
            "directory", f"it is on {kind}: other machines cannot use it, and a lock may not be kept there",
            "Keep a store on a local file system.",
        )
    elif kind.startswith(_FLEETING) and durability != "memory":
        diagnosis.note(
            "directory", f"it is on {kind}: nothing is left after a reboot, whatever its durability",
            "Keep it on a disk if it has to last.",
        )
    elif kind.startswith("overlay"):
        diagnosis.note(
            "directory", "it is in the file system of a container, and goes with that",
            "Mount a volume for it if it has to last.",
        )


def _judge_owners(diagnosis: Diagnosis, directory: DataDirectory) -> None:
    """A command that another user ran may have left files that this one's writer cannot use."""
    places = (directory.path, directory.wal, directory.checkpoints)
    files = [file for place in places if place.is_dir() for file in place.iterdir()]
    foreign = [file for file in files if file.lstat().st_uid != os.geteuid()]
    if foreign:
        diagnosis.problem(
            "directory", f"{len(foreign):,} files belong to another user, the first is {foreign[0]}",
            PermissionDeniedError.default_hint,
        )


def _checkpoint(diagnosis: Diagnosis, directory: DataDirectory, identity: Identity) -> dict[str, Any] | None:
    """The newest one: its header is read, and not what is in it."""
    file = newest_checkpoint(directory.checkpoints)
    if file is None:
        return None
    made = file.stat().st_mtime
    with CheckpointReader(file) as reader:
        header, size = reader.header, reader.bytes
    if header.database != identity.database_id:
        diagnosis.problem("checkpoint", f"{file} is of another database", CorruptionError.default_hint)
    return {
        "file": file.name, "version": header.version, "bytes": size,
        "age_s": round(max(0.0, time.time() - made), 1),
    }


def judge_status(
    diagnosis: Diagnosis, directory: DataDirectory, identity: Identity, status: dict[str, Any]
) -> None:
    """What the writer says of itself, or the directory without one: see `inmem status`."""
    stored = identity.stored
    if status["serving"]:
        _judge_writer(diagnosis, status, identity.settings.snapshot_max_age_s)
        ahead_s, held = status["clock_ahead_s"], status["image_bytes"]
    else:
        ahead_s = _clock_ahead_s(directory)
        held = 0
        if not status["in_memory"]:
            _judge_next_image(diagnosis, directory, stored)
        if stored["durability"] == "memory" and not status["in_memory"] and status["epoch"]:
            diagnosis.note("data", "there is none: it was in memory only", "Nothing brings it back.")
        elif status["epoch"] and status["left"] == "killed":
            diagnosis.note("writer", "the last one was killed", "The next one recovers by itself.")
    if ahead_s * 1e6 >= FAR_US:
        diagnosis.problem(
            "clock", f"store time is {ahead_s:,.0f} s ahead of the wall clock, and so is what is written",
            "Correct the wall clock, then: inmem clock --set-back -d DIR.",
        )
    due = max(stored["checkpoint_wal_bytes"], held)
    if status["wal_bytes"] > _LATE * due:
        diagnosis.problem(
            "log", f"it has {status['wal_bytes'] // MIB:,} MiB, a checkpoint was due at {due // MIB:,}",
            "See writer.log for why there was none, or try: inmem checkpoint -d DIR.",
        )


def _clock_ahead_s(directory: DataDirectory) -> float:
    """How far store time is ahead where no writer serves; what was so before a boot is not known."""
    control = directory.control()
    try:
        if control.boot() != boot_id():
            return 0.0
        return (boot_us() + control.words[CLOCK] - wall_us()) / 1e6
    finally:
        control.close()


def _judge_next_image(diagnosis: Diagnosis, directory: DataDirectory, stored: Mapping[str, Any]) -> None:
    """Whether the next writer has room for its image: see `storage.environment.image_parent`."""
    quota, wanted = stored["quota_bytes"], stored["image_dir"]
    if wanted:
        if Path(wanted).is_dir() and (free := free_bytes(Path(wanted))) < quota:
            diagnosis.problem(
                "memory", f"image_dir, {wanted}, has {free // MIB:,} MiB free, the quota is {quota // MIB:,}",
                MORE_MEMORY,
            )
        return
    place = runtime_place().parent
    judge_room(diagnosis, str(place), free_bytes(place), quota)
    if free_bytes(place) < 2 * quota and (free := free_bytes(directory.path)) < quota:
        diagnosis.problem(
            "disk", f"the image has no room there either: {free // MIB:,} MiB are free", MORE_MEMORY
        )


def _judge_writer(diagnosis: Diagnosis, status: dict[str, Any], snapshot_max_age_s: float) -> None:
    used = status["image_bytes"] / status["quota_bytes"]
    if used >= _NEARLY:
        diagnosis.problem("quota", f"{used:.0%} of it are used", StoreFullError.default_hint)
    free, held = status["memory_free_bytes"], status["image_file_bytes"]
    if free < held or free + held < status["quota_bytes"]:
        diagnosis.problem(
            "memory", f"{free // MIB:,} MiB are free beside the image, which has {held // MIB:,} of a quota "
            f"of {status['quota_bytes'] // MIB:,}: it cannot grow up to that, or a second one has no room",
            MORE_MEMORY,
        )  # fmt: skip
    oldest = status["oldest_snapshot_age_s"]
    if oldest is not None and oldest > 2 * snapshot_max_age_s:
        diagnosis.problem(
            "snapshots", f"one is {oldest:,.0f} s old, and keeps all that was replaced since",
            f"If a process was stopped, let it go on, or end it. {SnapshotTooOldError.default_hint}",
        )


def look_at_journal(diagnosis: Diagnosis, directory: DataDirectory, *, is_served: bool) -> list[str]:
    """The warnings since a writer last began to serve; if none serves, what ended it is a problem."""
    lines = _end_of(directory.log_file)
    start = max((n for n, line in enumerate(lines) if " event=serving " in line), default=-1)
    told = [line for line in lines[start + 1 :] if " level=warning " in line or " level=critical " in line]
    ended = [line for line in told if " level=critical " in line]
    if ended and not is_served:
        text = f"the last one ended by itself: {ended[-1].partition(' event=')[2]}"
        diagnosis.problem("writer", text, WriterUnavailableError.default_hint)
    return told[-5:]


def _end_of(file: Path) -> list[str]:
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, os.fstat(opened.fileno()).st_size - _JOURNAL_BYTES))
            return opened.read(_JOURNAL_BYTES).decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []
