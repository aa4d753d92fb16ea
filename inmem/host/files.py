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
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from inmem.errors import InmemError, LimitError, PermissionDeniedError, StoreFullError
from inmem.host.interrupts import let_through

PRIVATE_DIR = 0o700
PRIVATE_FILE = 0o600
_SPARE_FILES: Final = 32  # starting a writer, opening and connecting take 20; a few threads may do so at once
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP)  # the last: a symlink
_REPLACEABLE: Final = (stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR)  # a directory is refused by the system
_HINTS: Final = {
    errno.EROFS: "The file system is read-only: mount it writable, or name another place. "
    "Commands that only read a store can.",
    errno.ELOOP: "It is a symbolic link: name what it points to.",
    errno.EACCES: "This user may not: see the owner and the mode of it, and of the directories above it.",
    errno.EPERM: "This user may not: see the owner, the mode and the attributes of it.",
    errno.ENOENT: "Correct the path, or make what it lies in.",
    errno.ENOTDIR: "A part of the path is a file: correct the path.",
    errno.EISDIR: "It is a directory, where a file is wanted.",
    errno.EEXIST: "Name another one.",
    errno.ENOSPC: "Free space on the disk.",
    errno.EDQUOT: "Free space: the quota of this user is used up.",
    errno.EFBIG: "Raise the limit on the size of files: ulimit -f.",
    errno.EMFILE: "Raise the limit of open files: ulimit -n.",
    errno.ENFILE: "The machine has too many files open.",
    errno.ENOMEM: "Free memory, or raise the limit on it: ulimit -v.",
    errno.EAGAIN: "Raise the limit on processes (ulimit -u), or try again.",
    errno.EIO: "The disk cannot be read or written: see the system's log.",
    errno.ENAMETOOLONG: "Name a shorter path.",
}


def hint_of(error: OSError) -> str:
    """What to do about a failed system call."""
    return _HINTS.get(error.errno or 0, "See what the system says of it.")


def text_of(error: OSError) -> str:
    """A failed system call in words: the file and what is wrong, without a number."""
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)


def denied(path: Path, error: OSError) -> InmemError:
    """The error for a file or directory that the system does not let us have."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError(f"{path}: {error.strerror}", hint=hint_of(error))
    return PermissionDeniedError(f"{path}: {error.strerror}", path=str(path), hint=hint_of(error))


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
        raise denied(path, error) from None
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
            raise denied(path, error) from None
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
        raise denied(path, error) from None
    info = os.fstat(file.fileno())
    if info.st_uid != os.geteuid() or not stat.S_ISREG(info.st_mode):
        file.close()
        raise PermissionDeniedError(f"{path} is not a regular file of this user", path=str(path))
    return file


def leads_to(path: Path, info: os.stat_result) -> bool:
    """Whether a path leads to the file that this was told of."""
    try:
        return os.path.samestat(os.stat(path), info)
    except (FileNotFoundError, NotADirectoryError) as error:
        let_through(error)
        return False


def write_durably(path: Path, data: bytes) -> None:
    """Create or replace a file. A power cut leaves the old one or the new one."""
    with appearing(path) as file:
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]


@contextmanager
def appearing(path: Path, *, replaces: bool = True) -> Iterator[io.FileIO]:
    """A new file, 0600, which takes its name, durably, if the block ends without an error.

    Until then it has no name, and goes with its process; where a file system
    has no such files, it has a hidden one.

    Raises:
        FileExistsError: something has the name, and nothing `replaces` it; or it is no file: a device
            would be gone for all programs.
        IsADirectoryError: the path ends without a name, as `/` does.
    """
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if os.path.lexists(path) and stat.S_IFMT(os.lstat(path).st_mode) not in _REPLACEABLE:
        raise FileExistsError(errno.EEXIST, "a device, pipe or socket is not replaced", str(path))
    hidden = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(8).hex()}.tmp")
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    try:
        try:  # in one call, as in `open_private`
            file = next(map(io.FileIO, map(os.open, (path.parent,), (flags,), (PRIVATE_FILE,)), ("r+",)))
        except OSError as error:
            let_through(error)
            if error.errno in _FORBIDDEN:
                raise denied(path.parent, error) from None
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
            file = open_private(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        with file:
            yield file
            os.fsync(file.fileno())
            if not (replaces and hidden.exists()):
                # With a descriptor of a directory, and only then, Python follows the link.
                name = hidden if replaces else path
                os.link(f"/proc/self/fd/{file.fileno()}", name, src_dir_fd=file.fileno())
        if replaces:
            os.rename(hidden, path)
    finally:
        if os.path.lexists(hidden):
            hidden.unlink(missing_ok=True)
    sync_directory(path.parent)


@contextmanager
def output(path: Path) -> Iterator[BinaryIO]:
    """A file that a user has named for what is made: one that takes its name at the end.

    A regular file is replaced, a link is followed, and a device or a pipe is written to.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        with target.open("wb") as out:
            yield out
        return
    with (
        appearing(target) as unfinished,
        io.BufferedRandom(io.FileIO(unfinished.fileno(), "r+", closefd=False), 1 << 20) as out,
    ):
        yield out


def left_behind(path: Path) -> list[Path]:
    """What killed processes have left of something of this name; those that had our process number, too."""
    found = []
    head, tail = f".{path.name}.", ".tmp"
    for left in path.parent.iterdir():
        if left.name.startswith(head) and left.name.endswith(tail):
            pid = left.name[len(head) : -len(tail)].partition("-")[0]
            if pid.isdigit() and (int(pid) == os.getpid() or not Path(f"/proc/{pid}").exists()):
                found.append(left)
    return found


def remove_tree(path: Path, *, must_be_there: bool = False) -> None:
    """Remove a directory and all that is in it; what cannot be removed stays, unless it must be there."""
    import shutil  # here, as it loads compressors: each module is memory of every writer

    shutil.rmtree(path, ignore_errors=not must_be_there)


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
        # In a directory that is read-only a lock can be looked at, and held shared.
        can_make = os.access(path.parent, os.W_OK)
        self._file = open_private(path, os.O_RDWR | os.O_CREAT if can_make else os.O_RDONLY)

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


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock file exclusively."""
    if not path.exists():  # a lock would create it
        return False
    try:
        lock = FileLock(path)
    except FileNotFoundError:  # its directory was removed or renamed since
        return False
    try:
        return not lock.try_shared()
    finally:
        lock.close()


def python_program() -> str:
    """The Python interpreter to start a process of ours with.

    `sys.executable` is none in a program that embeds Python or was frozen:
    started with our arguments that would do something else.

    Raises:
        InmemError: none is known.
    """
    named = os.environ.get("INMEM_PYTHON")
    if named:
        return named
    places = [] if getattr(sys, "frozen", False) else [sys.executable, f"{sys.prefix}/bin/python3"]
    for place in filter(None, places):
        name = os.path.basename(place).lower()
        if ("python" in name or "pypy" in name) and os.access(place, os.X_OK):
            return place
    raise InmemError(
        f"no Python interpreter is known to start the writer or a helper with: this is {sys.executable!r}",
        hint="Name one that has inmem by the variable INMEM_PYTHON; or start the writer: inmem start -d DIR",
    )


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
