"""The data directory: its file names, its identity and its stored settings.

Invariant: a directory is a database, with settings and control file durable,
or not yet one. Its creator holds the launch lock. This module knows which
files there are, not what is in them.

    settings.json   identity, format version and stored settings
    control         see `inmem.host.control`
    wal/            log segments
    checkpoints/    the checkpoint that the log continues, if there is one
    writer.lock     held exclusively by the writer for as long as it lives
    launch.lock     held by whoever creates the directory or starts a writer
    clients.lock    held shared by every client
    writer.log      the journal of the writer
    waits           see `inmem.host.waitfile`
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from inmem.config import CONTROL_VERSION, FORMAT_VERSION, STORED, Settings, check_stored
from inmem.errors import (
    CorruptionError,
    FormatVersionError,
    InvalidInputError,
    PermissionDeniedError,
)
from inmem.host.control import Control
from inmem.host.files import (
    FileLock,
    check_private_dir,
    denied,
    is_locked,
    left_behind,
    make_private_dir,
    open_private,
    remove_tree,
    write_durably,
)
from inmem.host.interrupts import let_through
from inmem.host.paths import check_parent

EPOCH_FILES: Final = ("sock", "answers", "bell")  # endings of the files of an epoch in the runtime directory
_PROBING_S: Final = 0.5  # who looks whether there are clients holds their lock for a moment
_POLL_S: Final = 0.003
_CHANGING: Final = ("overlay", "fuse", "9p", "virtiofs")  # kinds of file systems, as mountinfo names them


@dataclass(frozen=True, slots=True)
class Identity:
    """The content of `settings.json`: the database's id and its settings."""

    database_id: bytes
    ephemeral: bool
    stored: Mapping[str, Any]
    inode: int | None = None  # of the directory that it was created in; None if that is not known

    @property
    def settings(self) -> Settings:
        """The stored settings, with client settings at their defaults."""
        return Settings(**self.stored)

    @property
    def short_id(self) -> str:
        """The part of the id that is used in the names of files in memory."""
        return self.database_id.hex()[:16]


class DataDirectory:
    """Paths and identity of one database."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = _without_links(os.fspath(path))
        self.settings_file = self.path / "settings.json"
        self.control_file = self.path / "control"
        self.wal = self.path / "wal"
        self.checkpoints = self.path / "checkpoints"
        self.writer_lock = self.path / "writer.lock"
        self.launch_lock = self.path / "launch.lock"
        self.clients_lock = self.path / "clients.lock"
        self.log_file = self.path / "writer.log"
        self.wait_file = self.path / "waits"

    def __repr__(self) -> str:
        return f"DataDirectory({str(self.path)!r})"

    def exists(self) -> bool:
        """Whether a whole database is here.

        Raises:
            PermissionDeniedError: this user may not look.
        """
        try:
            return self.settings_file.exists()
        except PermissionError as error:
            let_through(error)
            raise denied(self.path, error) from None

    def prepare(self) -> None:
        """Make the directory, private and writable, so that its locks can be taken.

        An existing directory must be a database, or empty.

        Raises:
            PermissionDeniedError: owner, mode, symlink, or not writable.
            InvalidInputError: not empty and no database; or what it lies in is not there.
        """
        if not self.path.exists() and not self.path.is_symlink():
            check_parent(self.path)
        elif not self.path.is_symlink() and self.path.is_dir() and self.path.stat().st_uid == os.geteuid():
            entries = set(os.listdir(self.path))
            if not entries:
                try:
                    os.chmod(self.path, 0o700)
                except OSError as error:
                    let_through(error)
                    raise denied(self.path, error) from None
            elif not entries & {"settings.json", "launch.lock"}:
                raise InvalidInputError(
                    f"{self.path} is not empty and holds no inmem database", argument="path"
                )
        make_private_dir(self.path)
        for left in left_behind(self.path):  # of a restore that was killed
            remove_tree(left)
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise PermissionDeniedError(
                f"{self.path} is read-only", path=str(self.path),
                hint="A store needs a directory it can write to.",
            )

    def create(
        self, settings: Settings, *, ephemeral: bool = False, database_id: bytes | None = None
    ) -> None:
        """Write the control file, then the settings, which make it a database.

        The caller holds the launch lock, or no other process knows the directory.
        """
        import uuid  # brings `platform`: who opens what is there need not wait for that to load

        database_id = database_id or uuid.uuid4().bytes
        make_private_dir(self.wal)
        write_durably(self.control_file, Control.initial(database_id))
        document = {
            "format": FORMAT_VERSION,
            "database_id": database_id.hex(),
            "ephemeral": ephemeral,
            "inode": self.inode()[1],
            "settings": {name: getattr(settings, name) for name in STORED},
        }
        write_durably(self.settings_file, json.dumps(document, indent=2).encode() + b"\n")

    def identity(self) -> Identity:
        """What is stored in `settings.json`.

        Raises:
            FormatVersionError: another release wrote it.
            CorruptionError: it is not what `create` writes.
            PermissionDeniedError: another user owns the directory or file, or may enter it.
        """
        check_private_dir(self.path)
        with open_private(self.settings_file, os.O_RDONLY) as file:
            data = file.readall()
        try:
            document = json.loads(data)
            if document["format"] != FORMAT_VERSION:
                raise FormatVersionError(
                    f"{self.path} has format {document['format']}, this release reads {FORMAT_VERSION}",
                    found=document["format"], supported=FORMAT_VERSION,
                )
            database_id = bytes.fromhex(document["database_id"])
            if len(database_id) != 16:
                raise ValueError("database_id is not 16 bytes")
            stored = check_stored(document["settings"], str(self.settings_file))
            return Identity(database_id, bool(document["ephemeral"]), stored, document.get("inode"))
        except (ValueError, KeyError, TypeError) as error:
            let_through(error)
            raise CorruptionError(
                f"{self.settings_file}: {error}", file=str(self.settings_file), offset=0
            ) from None

    def check_own(self) -> Identity:
        """The identity of a database that was created in this directory; before anything is written to it.

        A copy is refused: its files may be those of the original (hard
        links), and two stores of one id and one past would follow. Where
        directories have other numbers after each mount, as in the overlay of
        a container, only hard links show it.

        Raises:
            InvalidInputError: it is a copy of another directory.
        """
        identity = self.identity()
        device, inode = self.inode()
        if identity.inode not in (None, inode) and (
            _has_lasting_inodes(device) or os.stat(self.control_file).st_nlink > 1
        ):
            raise InvalidInputError(
                f"{self.path} is a copy of another data directory: its files were not made in it",
                argument="path",
                hint="A copy is no store of its own. Make one of it: inmem backup COPY FILE, then "
                "inmem restore FILE NEW. To move a store to another file system, do the same.",
            )
        return identity

    def key(self) -> tuple[int, int, int] | None:
        """What identifies the database here, whatever path leads to it, while somebody has it open.

        Device and inode of the directory, and the inode of its control file,
        which is never replaced. None if there is no database.
        """
        try:
            return (*self.inode(), os.stat(self.control_file).st_ino)
        except (FileNotFoundError, NotADirectoryError) as error:
            let_through(error)
            return None

    def control(self, *, writable: bool = False) -> Control:
        """The mapped control file.

        Raises:
            FormatVersionError: it is of another release, and that one's writer serves.
        """
        control = Control(self.control_file, writable=writable)
        if control.is_of_before and is_locked(self.writer_lock):
            control.close()
            raise self._of_before("is served by")
        return control

    def take_over(self) -> None:
        """Make this release's what the one before has left; before a writer is started, or a client joins.

        Programs of two releases never have one directory open: neither finds
        in memory what the other one keeps there. A directory that cannot be
        written to stays as it is.

        Raises:
            FormatVersionError: programs of the other release have it open.
        """
        with closing(self.control()) as control:
            if not control.is_of_before or not os.access(self.path, os.W_OK):
                return
        deadline = time.monotonic() + _PROBING_S
        with closing(FileLock(self.clients_lock)) as clients, closing(self.control(writable=True)) as control:
            while control.is_of_before:
                if clients.try_exclusive():
                    control.take_over()
                elif time.monotonic() >= deadline:
                    raise self._of_before("is open in programs of")
                else:  # others probe it too
                    time.sleep(_POLL_S)

    def _of_before(self, how: str) -> FormatVersionError:
        return FormatVersionError(
            f"{self.path} {how} another release of inmem, with version {CONTROL_VERSION - 1} of the control "
            f"file; this release uses {CONTROL_VERSION}",
            found=CONTROL_VERSION - 1, supported=CONTROL_VERSION,
            hint="End the programs and the writer of that release (its `inmem stop`), or use that release.",
        )

    def remove_leftovers(self) -> None:
        """Remove what killed processes have left. The caller holds the writer's lock.

        That is: settings that never got their name, and private copies of the release before.
        """
        for left in self.path.glob(".*.tmp"):
            left.unlink(missing_ok=True)
        for left in self.path.glob("*-*.scratch"):
            if not Path("/proc", left.name[:-8].rpartition("-")[2]).exists():
                remove_tree(left)

    def inode(self) -> tuple[int, int]:
        """Device and inode, which identify the directory under any path."""
        info = os.stat(self.path)
        return info.st_dev, info.st_ino

    def stem(self, identity: Identity) -> str:
        """The beginning of the names of all files in memory: images, socket, board.

        Device and inode of the directory are in it. A copy of a data
        directory has the same database id, a snapshot of a file system the
        same inodes, and neither may touch the files of the original.
        """
        device, inode = self.inode()
        return f"{identity.short_id}-{device:x}.{inode:x}-"

    def stem_before(self, identity: Identity) -> str:
        """What `stem` was in the release before."""
        return f"{identity.short_id}-{self.inode()[1]:x}-"

    def remove(self) -> None:
        """Remove the directory and all that is in it."""
        remove_tree(self.path, must_be_there=True)


def _without_links(path: str) -> Path:
    """The path as the system resolves it; a link in the last place stays, and is refused later."""
    name = path.rstrip("/")
    parent, last = os.path.split(name)
    if last in ("", ".", ".."):
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(parent), last)


def _has_lasting_inodes(device: int) -> bool:
    """Whether a directory on this device has the same number after the next mount."""
    return not file_system(device).startswith(_CHANGING)


def file_system(device: int) -> str:
    """The kind of the file system on a device, as mountinfo names it; empty if that does not name it."""
    name = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        mount, _, system = line.partition(" - ")
        if mount.split()[2] == name:
            return system.partition(" ")[0]
    return ""


def runtime_place() -> Path:
    """Where the private directory for images and sockets is, or would be: nothing is made."""
    base = Path("/dev/shm")
    if not (base.is_dir() and os.access(base, os.W_OK | os.X_OK)):
        base = Path("/tmp")
    return base / f"inmem-{os.geteuid()}"


def runtime_directory() -> Path:
    """A private directory in memory for images and sockets, with a short path.

    Raises:
        PermissionDeniedError: another user has made a directory of this name.
    """
    path = runtime_place()
    make_private_dir(path)
    return path


def leave_runtime_directory() -> None:
    """Remove the runtime directory if nothing is left in it."""
    for base in ("/dev/shm", "/tmp"):
        try:
            os.rmdir(f"{base}/inmem-{os.geteuid()}")
        except OSError as error:
            let_through(error)
            continue  # not there, or in use by another database
