"""What an export reads: one moment at a time, of the shared image or of a private one.

Invariant: reading starts no writer, changes nothing of one, and each moment
is of one commit version. While it lasts, what commits replace stays in
memory: so there is one for each run, and none between runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Protocol

from inmem.client.attachment import _registry
from inmem.database import Database
from inmem.errors import CorruptionError, InvalidInputError
from inmem.host.control import Control
from inmem.host.directory import DataDirectory, Identity
from inmem.host.files import FileLock
from inmem.keys import Namespace, TypeTag, range_of
from inmem.maintenance.sources import live_image, private_place
from inmem.model import importing
from inmem.record import is_live
from inmem.storage.environment import Table
from inmem.storage.rebuild import replay_privately
from inmem.storage.snapshot import Image, Snapshot
from inmem.storage.store import Store

MAX_AGE_S: Final = 3600.0  # of the snapshot of one run: tens of millions of records
_RUN: Final = TypeTag.RUN


class Moment(Protocol):
    """One version of everything."""

    now_us: int

    def get(self, key: bytes) -> bytes | None: ...

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]: ...

    def table(self, table: Table) -> Iterator[tuple[bytes, bytes]]: ...


class _StoreMoment:
    """A store that nobody else has, as it is."""

    def __init__(self, store: Store, now_us: int) -> None:
        self._txn = store.begin()
        self.get = self._txn.get
        self.scan = self._txn.scan
        self.table = store.items
        self.now_us = now_us

    def close(self) -> None:
        self._txn.abort()


class Source:
    """Where runs are read from."""

    def __init__(self, moment: Callable[[], Snapshot | _StoreMoment], name: str) -> None:
        self._moment = moment
        self.name = name  # "image" or "replay"

    @contextmanager
    def moment(self) -> Iterator[Moment]:
        """What is stored now."""
        moment = self._moment()
        try:
            yield moment
        finally:
            moment.close()


def source_of(database: Database) -> Source:
    """An open database: its image, opened once for the process."""
    image = database._attachment.image
    return Source(lambda: image.snapshot(MAX_AGE_S), "image")


@contextmanager
def source_at(path: Path) -> Iterator[Source]:
    """A database by its path. No writer is started; one that serves stays meanwhile.

    Where there is no image in memory, checkpoint and log are replayed into a
    private one, which takes about the time of a restart, and its memory.

    Raises:
        InvalidInputError: there is no database, or none of whose data anything is left.
        InmemError: it cannot be used.
    """
    directory = DataDirectory(path)
    if not directory.exists():
        raise InvalidInputError(f"{directory.path} holds no inmem database", argument="path")
    identity = directory.identity()
    held = _registry.get(str(directory.path))
    if held is not None and not held.closed:  # LMDB opens an image once in a process
        mine = held.image
        yield Source(lambda: mine.snapshot(MAX_AGE_S), "image")
        return
    with ExitStack() as stack:
        control = directory.control()
        stack.callback(control.close)
        control.check_machine()
        # As a client, so that a writer that serves does not leave in the middle.
        lock = FileLock(directory.clients_lock)
        stack.callback(lock.close)
        lock.try_shared()
        found = live_image(directory, identity, control)
        if found.problem is not None:
            raise CorruptionError(found.problem, file=str(directory.path), offset=0)
        if found.image is not None:
            image: Image = found.image
            stack.callback(image.close)
            yield Source(lambda: image.snapshot(MAX_AGE_S), "image")
        else:
            yield stack.enter_context(_replayed(directory, identity, control, found.reason))


@contextmanager
def _replayed(
    directory: DataDirectory, identity: Identity, control: Control, reason: str
) -> Iterator[Source]:
    if identity.stored["durability"] == "memory":
        raise InvalidInputError(
            f"{directory.path}: {reason}, and a memory database keeps no log: nothing is left of it",
            argument="path",
        )
    with private_place(directory.path, "export") as scratch, replay_privately(
        directory, identity, scratch
    ) as store:
        # The store's clock rests; what has expired since by the wall clock is gone as it would be.
        began_us = store.position.clock_us if store.position is not None else 0
        now_us = max(began_us, time.time_ns() // 1000)
        yield Source(lambda: _StoreMoment(store, now_us), "replay")


# --- runs -----------------------------------------------------------------------------------------


def unfinished(moment: Moment, namespace: Namespace) -> list[str]:
    """The runs whose import is not finished, in order. Cost: linear in the runs that were ever deleted."""
    head = namespace.prefix() + b"/"
    prefixes = (importing.unpack(v).prefix for _, v in moment.table(Table.FENCES) if importing.is_mark(v))
    return sorted(prefix[len(head) :].decode() for prefix in prefixes if prefix.startswith(head))


def run_after(moment: Moment, namespace: Namespace, run_id: str) -> str | None:
    """The first run after one, of all that have a record or data; None at the end. Cost: about 5 µs.

    Whatever a run stores is passed over: one look at its data, one at the records.
    """
    found = []
    start, end = range_of(namespace.prefix(), _RUN)
    for key, record in moment.scan(start + run_id.encode() + b"\0", end):
        if is_live(record, moment.now_us):
            found.append(key[len(start) :].decode())
            break
    head = namespace.prefix() + b"/"
    at = head + run_id.encode() + b"\1" if run_id else head
    while True:
        entry = next(moment.scan(at, namespace.prefix() + b"0"), None)  # `0` comes after `/`
        if entry is None:
            break
        name = entry[0][: entry[0].index(0)]
        if not name.endswith(b"@"):  # what runs share is no run
            found.append(name[len(head) :].decode())
            break
        at = name + b"\1"
    return min(found, default=None)


def has_data(moment: Moment, namespace: Namespace, run_id: str) -> bool:
    """Whether anything is stored in a run, apart from its record."""
    prefix = namespace.run_prefix(run_id)
    entries = moment.scan(prefix + b"\0", prefix + b"\1")
    return any(is_live(record, moment.now_us) for _, record in entries)

