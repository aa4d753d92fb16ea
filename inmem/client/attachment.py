"""The attachment: what one process holds of one database, shared by all its handles.

Invariant: one image, one control mapping and one client lock per process
and directory; one session per thread. A forked child
starts with none of its parent's sessions, sockets or LMDB objects.
"""

from __future__ import annotations

import atexit
import os
import resource
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from inmem.client.launcher import ensure_writer, expired, launch_lock, launching
from inmem.client.session import Session
from inmem.config import Configuration, Settings, load
from inmem.errors import ClosedError, InvalidInputError, LimitError, WriterUnavailableError
from inmem.host.board import Board
from inmem.host.control import ControlState
from inmem.host.directory import DataDirectory, runtime_directory
from inmem.host.files import FileLock
from inmem.storage.snapshot import Image

_POLL_S: Final = 0.003
_SPARE_FILES: Final = 32  # starting a writer, opening and connecting take 20; a few threads may do so at once


class Attachment:
    """Made by `attach`, released by `detach`."""

    def __init__(self, directory: DataDirectory, autostart: bool, deadline: float) -> None:
        self.directory = directory
        self.identity = directory.identity()
        self.settings: Settings = self.identity.settings
        self.autostart = autostart
        self.holders = 0
        self.incarnation = 0  # changes in a forked child: what belongs to the parent shows by it
        self.control = directory.control()
        self.closed = False
        self._board: Board | None = None
        self._lock = threading.Lock()
        self._local = threading.local()
        try:
            self.control.check_machine()
            self._client_lock = self._join(deadline)
            self.image = Image(self.control, directory.stem(self.identity), self.ensure_writer)
        except BaseException:
            self.control.close()
            raise

    def _join(self, deadline: float) -> FileLock:
        """Take the client lock, by which the writer sees that it is needed."""
        lock = FileLock(self.directory.clients_lock)
        while not lock.try_shared():  # held alone by a writer that counts its clients, or leaves
            if expired(deadline):
                lock.close()
                raise WriterUnavailableError(
                    "the writer holds the client lock for too long", path=str(self.directory.path)
                )
            time.sleep(_POLL_S)
        return lock

    def ensure_writer(self, deadline: float) -> ControlState:
        """The writer that serves now, started if need be.

        Raises:
            LimitError: too few open files are left to start it, and to connect to it.
        """
        _check_files()
        return ensure_writer(self.directory, self.control, deadline, autostart=self.autostart)

    def session(self) -> Session:
        """This thread's session."""
        if self.closed:  # by another thread, which closed the socket of this one too
            raise ClosedError("the database is closed")
        try:
            session: Session = self._local.session
        except AttributeError:
            session = self._local.session = Session(self)
        return session

    def board(self, path: str) -> Board:
        """The answer board of a writer, mapped once per process."""
        with self._lock:
            if self._board is None or str(self._board.path) != path:
                # An older one stays mapped while other threads' lines still look at it.
                self._board = Board(Path(path))
            return self._board

    def close(self) -> None:
        """Give everything back."""
        self.closed = True
        session = self._local.__dict__.pop("session", None)
        if session is not None:
            session.close()
        self.image.close()
        self._client_lock.close()

    def after_fork_in_child(self) -> None:
        """Leave the parent's sessions and sockets alone and start without any.

        The client lock is inherited on purpose: it is shared by both and
        falls when the last of them has closed it.
        """
        _INHERITED.append(self._local)
        self.incarnation += 1
        self._board = None
        self._lock = threading.Lock()
        self._local = threading.local()
        self.image.after_fork_in_child()


_INHERITED: list[Any] = []  # a parent's sockets: kept, never closed
_registry: dict[str, Attachment] = {}
_registry_lock = threading.RLock()


def attach(
    path: str | os.PathLike[str] | None, *, config: Any, arguments: Mapping[str, Any], autostart: bool,
) -> tuple[Attachment, Settings]:
    """The attachment for a path and the settings of this handle; creates the database if need be.

    Raises:
        ConfigMismatchError, PermissionDeniedError, WriterUnavailableError,
        FormatVersionError, CorruptionError, LimitError: see SPEC of `open`.
    """
    if path is not None:
        path = _checked(path)
    configuration = load(config, arguments)
    _check_files()
    deadline = time.monotonic() + configuration.settings.timeout_s
    ephemeral = path is None
    if path is None:
        path = tempfile.mkdtemp(prefix="inmem-")
        if configuration.origins["durability"] == "default":
            configuration = load(config, dict(arguments) | {"durability": "memory"})
    directory = DataDirectory(Path(path))
    with _registry_lock:
        attachment = _registry.get(str(directory.path))
        if attachment is not None and not directory.exists():
            attachment = None  # removed under us: what is there now, or will be, is another database
        if attachment is None:
            _create(directory, configuration, ephemeral, autostart, deadline)
            attachment = Attachment(directory, autostart, deadline)
        settings = _settings(configuration, attachment)
        if attachment.holders == 0:
            try:
                if autostart:
                    attachment.ensure_writer(deadline)
            except BaseException:
                attachment.close()
                raise
            _registry[str(directory.path)] = attachment
        attachment.holders += 1
        return attachment, settings


def _checked(path: object) -> str:
    name = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(name, str):
        raise InvalidInputError(f"path must be a str or a path, not {type(path).__name__}", argument="path")
    if not name or "\0" in name:
        raise InvalidInputError("path must not be empty, nor have NUL in it", argument="path")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise InvalidInputError("path has a character that no file name can have", argument="path") from None
    return name


def _check_files() -> None:
    """Refuse to go on with hardly any open file left: what fails first then would say something else.

    Raises:
        LimitError: says how many files are open, and how many may be.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return
    try:
        count = sum(int(name) < limit for name in os.listdir("/proc/self/fd"))
    except OSError:  # not one is left to look with
        count = limit
    if count > limit - _SPARE_FILES:
        raise LimitError(
            f"{count} files are open in this process, the limit is {limit}", what="open files", size=count,
            limit=limit, hint=f"Raise the limit (ulimit -n) or close some; {_SPARE_FILES} must be free.",
        )


def _settings(configuration: Configuration, attachment: Attachment) -> Settings:
    try:
        return configuration.with_stored(attachment.identity.stored).settings
    except BaseException:
        if attachment.holders == 0:
            attachment.close()
        raise


def _create(
    directory: DataDirectory, configuration: Configuration, ephemeral: bool, autostart: bool, deadline: float
) -> None:
    if directory.exists():
        return
    if not autostart:
        raise WriterUnavailableError(
            f"{directory.path} holds no database and autostart is off", path=str(directory.path)
        )
    runtime_directory()  # refused early if somebody else has taken the name
    directory.prepare()
    with launch_lock(directory, deadline):
        if not directory.exists():
            directory.create(configuration.settings, ephemeral=ephemeral)


def detach(attachment: Attachment) -> None:
    """Give an attachment back; the last holder closes it."""
    with _registry_lock:
        attachment.holders -= 1
        if attachment.holders == 0:
            key = str(attachment.directory.path)
            if _registry.get(key) is attachment:
                del _registry[key]
            attachment.close()


@atexit.register
def _close_all() -> None:
    """Say goodbye while there is an interpreter to do it with."""
    with _registry_lock:
        for attachment in list(_registry.values()):
            attachment.close()
        _registry.clear()


# Before a fork all locks that a child could inherit held are taken, in the
# order registry, launching, images; so each is free, and consistent, after it.


def _before_fork() -> None:
    _registry_lock.acquire()
    launching.acquire()
    for attachment in _registry.values():
        attachment.image.before_fork()


def _after_fork_in_parent() -> None:
    for attachment in _registry.values():
        attachment.image.after_fork_in_parent()
    launching.release()
    _registry_lock.release()


def _after_fork_in_child() -> None:
    global _registry_lock
    for attachment in _registry.values():
        attachment.after_fork_in_child()
    launching.release()
    _registry_lock = threading.RLock()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)

