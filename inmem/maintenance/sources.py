"""What checks and copies read: the live image where recovery would adopt it, else a private one.

Invariant: reading a database from here never starts a writer, never changes
what one has, and shows one committed version at a time. Whether an image is
ours is decided by what it says of itself, as recovery decides it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from inmem.errors import CorruptionError, InmemError
from inmem.host.control import Control, ControlState, boot_id
from inmem.host.directory import DataDirectory, Identity
from inmem.host.files import FileLock
from inmem.storage.environment import Table
from inmem.storage.rebuild import owner_of
from inmem.storage.snapshot import Image
from inmem.storage.store import POSITION_KEY, Position, Store, unpack_position

MAX_AGE_S: Final = 3600.0  # of one snapshot: bounds the check of one run, and a copy
FOREIGN: Final = "the image in memory belongs to another database, boot or directory"
_CONTROL_PATIENCE_S: Final = 1.0  # an update of the control file takes microseconds


class Moment:
    """All tables, at one moment."""

    def __init__(
        self, get: Callable[[bytes], bytes | None], rows: Callable[[Table], Iterator[tuple[bytes, bytes]]]
    ) -> None:
        self.get = get  # of the table DATA
        self._rows = rows

    def rows(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        """All of one table."""
        try:
            yield from self._rows(table)
        except InmemError:
            raise
        except Exception as error:  # whatever the engine says of a page that is none
            raise CorruptionError(f"the image cannot be read: {type(error).__name__}: {error}") from error

    def position(self) -> Position | None:
        """What the image says of itself."""
        return unpack_position(dict(self.rows(Table.META)).get(POSITION_KEY), Path("image"))


@contextmanager
def moment_of(image: Image) -> Iterator[Moment]:
    """The newest committed version of a shared image. What it pins stays in memory meanwhile."""
    snapshot = image.snapshot(MAX_AGE_S)
    try:
        yield Moment(snapshot.get, snapshot.table)
    finally:
        snapshot.close()


@contextmanager
def moment_in(store: Store) -> Iterator[Moment]:
    """A store that nobody else has, as it is."""
    txn = store.begin()
    try:
        yield Moment(txn.get, store.items)
    finally:
        txn.abort()


class Found(NamedTuple):
    """The image that recovery would adopt; or why there is none, and what is wrong with it."""

    image: Image | None
    reason: str = ""
    problem: str | None = None


def live_image(directory: DataDirectory, identity: Identity, control: Control) -> Found:
    """The image in memory if it is this directory's; an image that is found is for the caller to close."""
    state = control_state(control)
    if state is None:
        return Found(None, "a writer died while it changed the control file")
    stem = directory.stem(identity)
    path = Path(state.image)
    if not state.image or state.boot != boot_id() or not path.is_dir():
        return Found(None, "no image in memory")
    if not path.name.startswith(stem):
        return Found(None, FOREIGN)
    image = Image(control, stem)
    try:
        with moment_of(image) as moment:
            position = moment.position()
    except CorruptionError:
        return Found(image)  # met again where it is read
    except InmemError as error:
        image.close()
        unchanged = Path(state.image).is_dir() and control_state(control) == state
        problem = f"the image cannot be opened: {error}" if unchanged else None
        return Found(None, "the image is gone or cannot be opened", problem)
    if position is None or position.owner == owner_of(directory, identity) or is_served(directory):
        return Found(image)
    image.close()
    return Found(None, FOREIGN)


def control_state(control: Control) -> ControlState | None:
    """One reading of the control file; None if a writer died while it changed it."""
    deadline = time.monotonic() + _CONTROL_PATIENCE_S
    while (state := control.read()) is None and time.monotonic() < deadline:
        time.sleep(0.001)
    return state


def is_served(directory: DataDirectory) -> bool:
    """Whether a process holds the writer's lock."""
    if not directory.writer_lock.exists():  # a lock would create it
        return False
    lock = FileLock(directory.writer_lock)
    try:
        return not lock.try_shared()
    finally:
        lock.close()


@contextmanager
def private_place(parent: Path, purpose: str) -> Iterator[Path]:
    """A new directory for an image of one's own, removed afterwards; what killed ones have left goes too.

    Only in a directory that is ours alone: what it removes there it knows by name.
    """
    for old in parent.glob(f"{purpose}-*.scratch"):
        if not Path(f"/proc/{old.name[len(purpose) + 1 : -8]}").exists():
            shutil.rmtree(old, ignore_errors=True)
    path = parent / f"{purpose}-{os.getpid()}.scratch"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
