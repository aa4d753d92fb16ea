"""Private, durable and locked files.

Invariant: every file and directory that this module opens belongs to the
effective user, is closed to all others, and was not reached through a symlink.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from inmem.errors import LimitError, PermissionDeniedError
from inmem.host.interrupts import let_through

PRIVATE_DIR = 0o700
PRIVATE_FILE = 0o600
_SPARE_FILES: Final = 32  # starting a writer, opening and connecting take 20; a few threads may do so at once
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP)  # the last: a symlink


def check_private_dir(path: Path) -> os.stat_result:
    """The status of a directory that is this user's, has mode 0700 and is no symlink.

    Raises:
        FileNotFoundError: it does not exist.
        PermissionDeniedError: anything else is wrong; the message says what.
    """
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        let_through(error)
        raise PermissionDeniedError(f"{path}: {error.strerror}", path=str(path)) from None
    if not stat.S_ISDIR(info.st_mode):
        kind = "a symlink" if stat.S_ISLNK(info.st_mode) else "not a directory"
        raise PermissionDeniedError(f"{path}: {kind}", path=str(path))
    if info.st_uid != os.geteuid():
        raise PermissionDeniedError(
            f"{path} belongs to uid {info.st_uid}, not to this process's {os.geteuid()}", path=str(path)
        )
    if stat.S_IMODE(info.st_mode) & 0o077:
        raise PermissionDeniedError(
            f"{path} has mode {stat.S_IMODE(info.st_mode):04o}: others can enter it",
            path=str(path),
            hint=f"Run: chmod 700 {path}",
        )
    return info


def make_private_dir(path: Path) -> os.stat_result:
    """Create the directory (not its parents) if it is missing, then check it."""
    while True:
        try:
            os.mkdir(path, PRIVATE_DIR)
        except FileExistsError as error:
            let_through(error)
        except OSError as error:
            let_through(error)
            raise PermissionDeniedError(f"{path}: {error.strerror}", path=str(path)) from None
        try:
            return check_private_dir(path)
        except FileNotFoundError as error:
            let_through(error)
            continue  # another process removed it, empty, in between


def open_private(path: Path, flags: int) -> io.FileIO:
    """Open a file of ours, 0600 when created, never through a symlink. It closes when it is dropped."""
    mode = "r" if flags & os.O_ACCMODE == os.O_RDONLY else "r+" if flags & os.O_RDWR else "w"
    try:
        # One call for the interpreter: a signal handler that raises cannot come between the descriptor
        # and its owner.
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC
        file = next(map(io.FileIO, map(os.open, (path,), (flags,), (PRIVATE_FILE,)), (mode,)))
    except IsADirectoryError as error:
        let_through(error)
        if not isinstance(error.filename, int):
            raise
        os.close(error.filename)  # it was opened, and no file object takes it
        raise PermissionDeniedError(f"{path} is not a regular file of this user", path=str(path)) from None
    except OSError as error:
        let_through(error)
        if error.errno not in _FORBIDDEN:
            raise
        raise PermissionDeniedError(f"{path}: {error.strerror}", path=str(path)) from None
    info = os.fstat(file.fileno())
    if info.st_uid != os.geteuid() or not stat.S_ISREG(info.st_mode):
        file.close()
        raise PermissionDeniedError(f"{path} is not a regular file of this user", path=str(path))
    return file


def write_durably(path: Path, data: bytes) -> None:
    """Create or replace a file. A power cut leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make created, renamed and removed names in the directory durable."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    os.fsync(next(map(_Descriptor, map(os.open, (path,), (flags,)))))  # one call, as in `open_private`


class _Descriptor(int):
    """A descriptor that closes when it is dropped; for a directory, which no file object takes."""

    def __del__(self) -> None:
        os.close(self)


@contextmanager
def private_umask() -> Iterator[None]:
    """Inside, every new file or socket is closed to other users.

    The umask is the process's: use it only while no other thread creates files.
    """
    old = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(old)


class FileLock:
    """An advisory lock on a file of its own (`flock(2)`).

    The kernel drops it when the last copy of the descriptor is closed, also
    after SIGKILL. So it shows whether its holder lives. Descriptors are
    close-on-exec. A forked child must call `close`, never `release`, which
    would unlock the parent's too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_private(path, os.O_RDWR | os.O_CREAT)

    def try_exclusive(self) -> bool:
        """Take it exclusively; False if any process holds it."""
        return self._try(fcntl.LOCK_EX)

    def try_shared(self) -> bool:
        """Take it shared; False if another process holds it exclusively."""
        return self._try(fcntl.LOCK_SH)

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            let_through(error)
            return False
        return True

    def release(self) -> None:
        """Give it up and keep the file open."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def is_current(self) -> bool:
        """Whether the path still names the locked file."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path))
        except FileNotFoundError as error:
            let_through(error)
            return False

    def close(self) -> None:
        """Close the descriptor; the lock goes with its last copy."""
        self._file.close()


def check_spare_files() -> None:
    """Refuse to go on with hardly any open file left: what fails first then would say something else.

    Raises:
        LimitError: says how many files are open, and how many may be.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return
    try:
        count = sum(int(name) < limit for name in os.listdir("/proc/self/fd"))
    except OSError as error:
        let_through(error)
        count = limit  # not one is left to look with
    if count > limit - _SPARE_FILES:
        raise LimitError(
            f"{count} files are open in this process, the limit is {limit}", what="open files", size=count,
            limit=limit, hint=f"Raise the limit (ulimit -n) or close some; {_SPARE_FILES} must be free.",
        )


def python_environment() -> dict[str, str]:
    """The environment for a Python process that imports this package, whatever its working directory."""
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(paths)}
