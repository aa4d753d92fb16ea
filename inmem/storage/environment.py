"""The LMDB environment: its tables, its flags and its place in memory.

Invariant: every process opens the image with the same tables. A full memory is
an error and not a signal: who writes through the map has allocated all that it
maps. This module does not know what the tables hold.

An image is one directory named `<database>-<generation>.image` in a private
directory on shared memory, or in the data directory if that is too small.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path
from typing import Any, Final

import lmdb

from inmem.changes import Table as Table
from inmem.config import MAP_BYTES
from inmem.errors import LimitError, StoreFullError
from inmem.host.directory import DataDirectory, runtime_directory
from inmem.host.files import check_private_dir, make_private_dir, private_umask, remove_tree

TABLE_NAMES: Final = {table: table.name.lower().encode() for table in Table}
LOGGED: Final = (Table.DATA, Table.SESSIONS, Table.FENCES)
PAGE_BYTES: Final = 4096
_ORIGIN: Final = "origin"  # a file of an image: the path of its data directory
# Of LMDB's lock file. LMDB uses a file that is larger than it needs, for more readers.
_LOCK_HEADER_BYTES: Final = 128
_READER_SLOT_BYTES: Final = 64

_ALL_SIGNALS: Final = signal.valid_signals()


def open_for_writing(path: Path, max_readers: int, mapped: int = 0) -> tuple[Any, dict[Table, Any]]:
    """The environment and its tables, created as needed. For the writer only.

    With a number of bytes in `mapped`, of which all must be allocated, pages are written through the map.
    """
    with private_umask():
        path.mkdir(mode=0o700, exist_ok=True)
        _reserve_reader_slots(path / "lock.mdb", max_readers)
        env = _opened(
            str(path), map_size=mapped or MAP_BYTES, max_readers=max_readers, mode=0o600,
            writemap=mapped > 0, sync=False, metasync=False, lock=True, max_spare_txns=0,
        )
    return env, {table: env.open_db(name) for table, name in TABLE_NAMES.items()}


def _opened(path: str, map_size: int = MAP_BYTES, **options: Any) -> Any:
    """An environment of LMDB, whose map has room in this process.

    Raises:
        LimitError: there is a limit on address space, and it has none.
    """
    try:
        return lmdb.open(path, map_size=map_size, max_dbs=len(Table), **options)
    except lmdb.MemoryError as error:
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit == resource.RLIM_INFINITY:
            raise
        raise LimitError(
            f"the limit on address space (ulimit -v) has no room for the image, {MAP_BYTES} bytes of it",
            what="address space (ulimit -v)", size=MAP_BYTES, limit=limit,
            hint="Run it without that limit; a limit on memory itself (a cgroup) does no harm.",
        ) from error


def open_without_name() -> tuple[Any, dict[Table, Any]]:
    """A new, empty environment and its tables, in memory that has no name: it ends with this process.

    Without locks: one transaction at a time, or several that only read.

    Raises:
        OSError: there is no memory, or no file may be opened.
    """
    file = os.memfd_create("inmem-private", os.MFD_CLOEXEC)
    try:
        env = _opened(
            f"/proc/self/fd/{file}", subdir=False, writemap=False, sync=False, metasync=False, lock=False,
            max_spare_txns=0,
        )
    finally:
        os.close(file)  # LMDB has opened it
    return env, {table: env.open_db(name) for table, name in TABLE_NAMES.items()}


def _reserve_reader_slots(file: Path, max_readers: int) -> None:
    """Allocate the lock file's memory at once: otherwise using a slot in a full memory is a SIGBUS.

    Only before LMDB opens the file: closing another descriptor of it would drop LMDB's locks.
    """
    if file.exists():
        return  # the image is adopted; its file was made here
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, _LOCK_HEADER_BYTES + max_readers * _READER_SLOT_BYTES)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise StoreFullError(
            f"{file.parent} has no room for {max_readers} reader slots", used_bytes=0, quota_bytes=0
        ) from None
    finally:
        os.close(fd)


def open_for_reading(path: Path) -> tuple[Any, dict[Table, Any]]:
    """The environment and its tables, read-only.

    Raises:
        FileNotFoundError: a file of it is gone. LMDB would make a new lock
            file, in which the writer would not see this process read.
    """
    check_private_dir(path)
    os.stat(path / "data.mdb")
    lock_file = path / "lock.mdb"
    lock = os.stat(lock_file)
    env: Any = None
    # Opening calls Python code of py-lmdb, which crashes the process if a signal handler raises in there.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
            # One spare transaction halves the cost of a read; the image is closed before a fork.
            env = _opened(
                str(path), readonly=True, create=False, lock=True, max_spare_txns=1,
            )
        except lmdb.Error as error:
            if str(error).endswith(os.strerror(errno.ENOENT)):  # it was removed since we looked
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if not os.path.samestat(lock, os.stat(lock_file)):  # removed just now: LMDB has made another
            lock_file.unlink(missing_ok=True)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(lock_file))
        return env, {table: env.open_db(name, create=False) for table, name in TABLE_NAMES.items()}
    except BaseException:
        if env is not None:
            env.close()
        raise


def image_parent(directory: DataDirectory, wanted: str, quota_bytes: int) -> Path:
    """Where a new image is made: on shared memory if two generations of it fit.

    Raises:
        StoreFullError: `image_dir` was set and has less room than the quota.
    """
    if wanted:
        parent = Path(wanted)
        make_private_dir(parent)
        if free_bytes(parent) < quota_bytes:
            raise StoreFullError(
                f"{parent} has {free_bytes(parent)} bytes free, the quota is {quota_bytes}",
                used_bytes=free_bytes(parent), quota_bytes=quota_bytes,
                hint="Enlarge the memory behind image_dir, or create the store with a smaller quota.",
            )
        return parent
    runtime = runtime_directory()
    if str(runtime).startswith("/dev/shm") and free_bytes(runtime) >= 2 * quota_bytes:
        return runtime
    return directory.path


def remove_images(parent: Path, stem: str, keep: Path | None) -> None:
    """Remove the images of a stem but for `keep`: killed writers have left them."""
    for old in parent.glob(f"{stem}*.image"):
        if old != keep:
            remove_image(old)


def create_image(parent: Path, stem: str, generation: int, origin: Path) -> Path:
    """A new, empty image directory that names its data directory, `origin`."""
    path = parent / f"{stem}{generation}.image"
    remove_image(path)
    while True:
        try:
            os.mkdir(path, 0o700)
            (path / _ORIGIN).write_bytes(os.fsencode(origin))
            return path
        except FileNotFoundError:  # another database's writer just removed the empty parent
            make_private_dir(parent)


def origin_of(image: Path) -> Path | None:
    """The data directory that an image names; None if it names none."""
    try:
        return Path(os.fsdecode((image / _ORIGIN).read_bytes()))
    except FileNotFoundError:
        return None


def remove_image(path: Path) -> None:
    """Remove an image; processes that have it mapped keep reading it."""
    remove_tree(path)


def free_bytes(path: Path) -> int:
    """Free bytes of the file system of a path; 0 if the path is gone."""
    try:
        info = os.statvfs(path)
    except FileNotFoundError:
        return 0
    return info.f_bavail * info.f_frsize
