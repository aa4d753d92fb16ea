"""The attachment: what one process holds of one database, shared by all its handles.

Invariant: one image, one control mapping and one client lock per process
and directory; a session for each call, of its thread's free ones. A forked
child starts with none of its parent's sessions, sockets or LMDB objects.
"""

from __future__ import annotations

import atexit
import os
import signal
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from inmem.client import launcher
from inmem.client.launcher import create_directory, ensure_writer, expired, running_writer
from inmem.client.thread_sessions import ThreadSessions
from inmem.client.waiting import Waiting
from inmem.config import Configuration, Settings, load
from inmem.errors import (
    BusyError,
    ClosedError,
    DatabaseGoneError,
    ForkError,
    InmemError,
    InvalidInputError,
    WriterUnavailableError,
)
from inmem.host.abandoned import remove_if_abandoned
from inmem.host.board import Board
from inmem.host.control import PID, VERSION, ControlState
from inmem.host.directory import DataDirectory
from inmem.host.files import FileLock, check_spare_files
from inmem.host.interrupts import Exclusive, Living, let_through
from inmem.host.paths import check_path
from inmem.storage.snapshot import Image

T = TypeVar("T")
Key = tuple[int, int, int]  # of a directory: see `DataDirectory.key`

_POLL_S: Final = 0.003
_FORK_RETRY_S: Final = 0.001
_MANY: Final = 64  # noted transactions and pipelines, at which those that are over are dropped


class Inherited(Protocol):
    """What a process has begun, and its forked children find begun."""

    @property
    def is_over(self) -> bool: ...

    def after_fork_in_child(self) -> bool:
        """Leave it to the parent; whether the child may not use the database at all."""


class Place(Exclusive):
    """The opening and closing of one directory in this process: one at a time.

    A path has a turn of its own, to make the directory that it leads to; after it comes that directory's.

    Whoever gives a share back does not wait: what is under way at that moment
    takes it in when it has ended. So a finalizer can do it, wherever it runs.
    """

    def __init__(self, key: Key | str) -> None:
        super().__init__()
        self._key = key
        self._given_back: deque[Hold] = deque()

    def what(self) -> str:
        """See `Exclusive`."""
        return "opening or closing this directory"

    def use(self, deadline: float, call: Callable[..., T], *arguments: Any) -> T:
        """Make the call when no other one is under way here. Raises as `Exclusive.alone`."""
        try:
            return self.alone(deadline, call, *arguments)
        finally:
            self._take_back()

    def give_back(self, hold: Hold) -> None:
        """A handle gives up its share."""
        try:
            self._given_back.append(hold)
        finally:
            self._take_back()

    def _take_back(self) -> None:
        try:
            self._end_all()
        finally:
            self._end_all()  # for what an interrupt has ended in the middle

    def _end_all(self) -> None:
        while self._given_back:
            try:
                self.alone(0.0, self._end)
            except BusyError as error:
                let_through(error)
                return  # the call under way looks here when it has ended

    def _end(self) -> None:
        while self._given_back:
            hold = self._given_back[0]  # it stays until all is done
            attachment = hold.attachment
            if attachment.holds == {hold.share}:
                _forget(attachment)
                attachment.close()
            attachment.holds.discard(hold.share)
            self._given_back.popleft()


class Hold:
    """One handle's share of an attachment, which the last one closes.

    It goes with `release`, or when the handle is dropped: an `open` that was
    interrupted has nobody to close it.
    """

    def __init__(self, attachment: Attachment) -> None:
        self.share = object()
        self.attachment = attachment
        attachment.holds.add(self.share)

    def release(self) -> None:
        """Give the share back. May be called twice, and goes on where an interrupt ended it."""
        attachment = self.attachment
        if self.share in attachment.holds:
            _place(attachment.key).give_back(self)

    def __del__(self) -> None:
        if "attachment" in self.__dict__ and not self.attachment.closed:  # as it is when Python ends
            self.release()


class Attachment:
    """Made by `attach`, closed with its last `Hold`."""

    def __init__(self, directory: DataDirectory, key: Key, autostart: bool, deadline: float) -> None:
        self.directory = directory
        self.path = str(directory.path)
        self.identity = directory.identity()
        self.database_id = self.identity.database_id
        self.settings: Settings = self.identity.settings
        self.autostart = autostart
        self.holds: set[object] = set()  # of the handles
        self.incarnation = 0  # changes in a forked child: what belongs to the parent shows by it
        self.control = directory.control()
        self.key = key
        self.closed = False
        self._is_stranded = False  # forked inside a snapshot or transaction of the parent
        self._noted: list[weakref.ref[Inherited]] = []
        self._board: Board | None = None
        self._sessions: ThreadSessions | None = ThreadSessions(self)
        self.image = Image(
            self.control, directory.stem(self.identity), self.ensure_writer, self.check_there
        )
        self.waiting = self._new_waiting()
        self._client_lock = FileLock(directory.clients_lock)
        _alive.add(self)
        try:
            self.control.check_machine()
            self._join(deadline)
        except BaseException:
            self._client_lock.close()
            self.control.close()
            raise

    def _new_waiting(self) -> Waiting:
        image = self.image
        return Waiting(
            self.directory.wait_file, lambda: image.snapshot(self.settings.snapshot_max_age_s),
            self._has_image, lambda: self.control.words[VERSION], image.now_us,
        )

    def _has_image(self) -> bool:
        """Whether there is an image: a writer that leaves removes it. A directory that is gone is told of."""
        if self.control.words[PID]:
            return True
        self.check_there()
        return False

    def _join(self, deadline: float) -> None:
        """Take the client lock, by which the writer sees that it is needed."""
        while not self._client_lock.try_shared():  # held alone by a writer that counts its clients, or leaves
            if expired(deadline):
                raise WriterUnavailableError("the writer holds the client lock for too long", path=self.path)
            time.sleep(_POLL_S)

    def check_there(self) -> None:
        """Raise DatabaseGoneError if the directory was removed, moved or made anew."""
        if not self.is_there():
            self.image.doubt()
            if self._sessions is not None:
                self._sessions = ThreadSessions(self)  # none is linked to a writer that may not have noticed
            raise _absent(self.directory, self.database_id)

    def is_there(self) -> bool:
        """Whether the path still leads to the directory that it led to."""
        return self.directory.key() == self.key

    def ensure_writer(self, deadline: float) -> ControlState:
        """The writer that serves now, started if need be.

        Raises:
            DatabaseGoneError: see `check_there`.
            LimitError: too few open files are left to start it, and to connect to it.
        """
        check_spare_files()
        self.check_there()
        return ensure_writer(self.directory, self.control, deadline, autostart=self.autostart)

    def session(self) -> ThreadSessions:
        """This thread's sessions."""
        sessions = self._sessions
        if sessions is None:
            if self._is_stranded:
                raise _forked_inside()
            raise ClosedError("the database is closed")
        return sessions

    def note(self, one: Inherited) -> None:
        """Something began that a forked child must not take for its own."""
        self._noted.append(weakref.ref(one))
        if len(self._noted) > _MANY:
            alive = [(each, found) for each in self._noted if (found := each()) is not None]
            self._noted = [each for each, found in alive if not found.is_over]

    def board(self, path: str) -> Board:
        """The answer board of a writer, mapped once per process."""
        board = self._board
        if board is None or str(board.path) != path:
            # An older one stays mapped while other threads' links still look at it. Two threads that come
            # here at once map it twice, which costs nothing.
            board = self._board = Board(Path(path))
        return board

    def close(self) -> None:
        """Give everything back, and let go of what refers to this: then all of it goes at once."""
        self.closed = True
        self.waiting.close()
        if self._sessions is not None:
            self._sessions.close()
            self._sessions = None
        self.image.close()
        self._client_lock.close()
        is_mine = self.identity.ephemeral and self.is_there()
        if is_mine and running_writer(self.directory, self.control) is None:
            remove_if_abandoned(self.directory)  # its writer was killed: else that removes it

    def after_fork_in_child(self) -> None:
        """Leave the parent's sessions and sockets alone and start without any.

        The client lock is inherited on purpose: it is shared by both and
        falls when the last of them has closed it. Inside a snapshot or a
        transaction of the parent, nothing goes on here.
        """
        _INHERITED.append(self._sessions)
        self.incarnation += 1
        self._board = None
        self.waiting = self._new_waiting()
        is_open = self.image.after_fork_in_child()
        for each in self._noted:
            if (one := each()) is not None and not one.is_over:
                is_open = one.after_fork_in_child() or is_open
        self._noted = []
        self._is_stranded = self._is_stranded or is_open
        self._sessions = None if self._is_stranded else ThreadSessions(self)
        if is_open:
            self.image.is_refused = True
            _stranded.add(self.key)


_INHERITED: list[Any] = []  # a parent's sockets: kept, never closed
_stranded: set[Key] = set()  # stores that this process may not use
_registry: dict[Key, Attachment] = {}  # what is open
_places: dict[Key | str, Place] = {}
_alive: Living[Attachment] = Living()  # also those that are being opened or closed


def _place(key: Key | str) -> Place:
    return _places.setdefault(key, Place(key))


def _forget(attachment: Attachment) -> None:
    if _registry.get(attachment.key) is attachment:
        _registry.pop(attachment.key, None)


def attach(
    path: str | os.PathLike[str] | None, *, config: Any, arguments: Mapping[str, Any], autostart: bool,
    create: bool, known: bytes | None,
) -> tuple[Hold, Settings]:
    """A share of the attachment of a path, and the handle's settings; creates the database if it may.

    `known` is the id of the database that it must be, for a handle from elsewhere.

    Raises:
        ConfigMismatchError, PermissionDeniedError, WriterUnavailableError,
        FormatVersionError, CorruptionError, LimitError: see SPEC of `open`.
        DatabaseGoneError: the known one is not there.
    """
    if known is None and path is not None:
        path = check_path(path)
    if path is None and not create:
        raise InvalidInputError("a store without a path is always created", argument="create")
    configuration = load(config, arguments)
    check_spare_files()
    deadline = time.monotonic() + configuration.settings.timeout_s
    ephemeral = path is None
    if path is None:
        path = tempfile.mkdtemp(prefix="inmem-")
        if configuration.origins["durability"] == "default":
            configuration = load(config, dict(arguments) | {"durability": "memory"})
    directory = DataDirectory(Path(path))
    key = _place(str(directory.path)).use(
        deadline, _prepare, directory, configuration, ephemeral, autostart, create, known, deadline
    )
    # Not inside it: with a turn held nobody waits for another one, which may be that of a call below.
    return _place(key).use(deadline, _share, key, directory, configuration, autostart, deadline)


def _prepare(
    directory: DataDirectory, configuration: Configuration, ephemeral: bool, autostart: bool, create: bool,
    known: bytes | None, deadline: float,
) -> Key:
    if create:
        _create(directory, configuration, ephemeral, autostart, deadline)
    elif not directory.exists():
        raise _absent(directory, known)
    database_id = directory.check_own().database_id
    if database_id != (known or database_id):
        raise _absent(directory, known)
    directory.take_over()  # and opens the control file: in an overlay the inodes may be others before
    key = directory.key()
    if key is None:
        raise _absent(directory, database_id)  # removed just now
    return key


def _share(
    key: Key, directory: DataDirectory, configuration: Configuration, autostart: bool, deadline: float
) -> tuple[Hold, Settings]:
    if key in _stranded:
        raise _forked_inside()
    attachment = _registry.get(key)
    try:
        if attachment is not None and not attachment.is_there():
            _registry.pop(key, None)  # moved: its handles say so, and leave the image to those opened here
            attachment.image.leave()
            attachment = None
        if attachment is None:
            attachment = Attachment(directory, key, autostart, deadline)
        settings = configuration.with_stored(attachment.identity.stored).settings
        if not attachment.holds:
            if autostart:
                attachment.ensure_writer(deadline)
            _registry[key] = attachment
        return Hold(attachment), settings
    finally:
        if attachment is not None and not attachment.holds:
            _forget(attachment)
            attachment.close()


def _forked_inside() -> ForkError:
    return ForkError("the process forked while a snapshot or transaction was open")


def _absent(directory: DataDirectory, known: bytes | None) -> InmemError:
    """What is to be said of a database that is not there, and must not be created."""
    path = str(directory.path)
    if known is None:
        return InvalidInputError(
            f"{path} holds no inmem database, and create is off", argument="path",
            hint="Correct the path, or open it with create=True.",
        )
    if directory.exists():
        return DatabaseGoneError(f"{path} holds another database than it did: it was made anew", path=path)
    return DatabaseGoneError(f"{path} holds no database any more: it was removed or moved", path=path)


def _create(
    directory: DataDirectory, configuration: Configuration, ephemeral: bool, autostart: bool, deadline: float
) -> None:
    if not autostart and not directory.exists():
        raise WriterUnavailableError(
            f"{directory.path} holds no database and autostart is off", path=str(directory.path)
        )
    create_directory(directory, configuration.settings, deadline, ephemeral=ephemeral)


def attached(directory: DataDirectory) -> Attachment | None:
    """What this process has open of a directory, None if it has no handle of it."""
    attachment = _registry.get(directory.key() or (0, 0, 0))
    return None if attachment is None or attachment.closed or not attachment.is_there() else attachment


@atexit.register
def _close_all() -> None:
    """Say goodbye while there is an interpreter to do it with."""
    for attachment in [*_registry.values()]:
        attachment.close()
    _registry.clear()


# Before a fork all locks are taken that a child could inherit held; so each is free, and what it guards is
# consistent, after it. Who holds one of them does not wait for another one for ever: all or none is taken.
_taken_for_fork: list[Attachment] = []
# Python drops what a handler raises in these functions, so signals are held back meanwhile.
_mask: set[Any] = set()


def _before_fork() -> None:
    global _mask
    _mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while not _take_all():
        time.sleep(_FORK_RETRY_S)
    for attachment in _taken_for_fork:
        attachment.image.before_fork()


def _take_all() -> bool:
    if not launcher.starting.acquire(blocking=False):
        return False
    for attachment in _alive:
        if not attachment.image.lock.acquire(blocking=False):
            break
        _taken_for_fork.append(attachment)
    else:
        return True
    for attachment in _taken_for_fork:
        attachment.image.lock.release()
    _taken_for_fork.clear()
    launcher.starting.release()
    return False


def _after_fork_in_parent() -> None:
    while _taken_for_fork:
        _taken_for_fork.pop().image.after_fork_in_parent()
    launcher.starting.release()
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask)


def _after_fork_in_child() -> None:
    launcher.starting.release()
    launcher.after_fork_in_child()
    _places.clear()
    for attachment in _alive:  # also what another thread has opened since the locks were taken
        attachment.after_fork_in_child()
    _taken_for_fork.clear()
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask)


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
