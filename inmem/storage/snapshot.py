"""Shared snapshots: how every process but the writer reads.

Invariant: a read sees one committed version, whole, without a message or a
lock, whether the writer lives or not. A process never touches an LMDB object
that it inherited through a fork. This module never writes.

LMDB (http://www.lmdb.tech/doc/) refuses to open one environment twice in a
process, and its objects do not survive a fork. If the child closed them, the
parent's reader slots would be free, and the parent would read pages that the
writer has reused. So the parent closes the image right before a fork, and
both processes open it again at their next read. If a snapshot is open at that
moment, the image stays open, and reads in the child are refused.

Threads read without a lock while another thread leaves the image, before a
fork or for the next generation. A read that finds its environment closed is
done again. A new snapshot registers itself and then checks whether the image
was left; the thread that leaves marks the image as left and then looks for
snapshots. So at least one of the two sees the other.

Of a large run that was deleted, dead records may be in the image. The word of
the generation says so before they can be seen. A single read asks it before,
and so is of a moment before that deletion if it asked too early. A snapshot
asks before and after it has begun: only if the word is the same, and that of
an image without dead records, it need not look for them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import lmdb

from inmem.errors import (
    BusyError,
    ClosedError,
    ForkError,
    InmemError,
    SnapshotTooOldError,
    WriterUnavailableError,
)
from inmem.host.clock import boot_us
from inmem.host.control import CLOCK, GENERATION, Control, generation_of, may_have_dead
from inmem.host.interrupts import let_through
from inmem.record import is_live
from inmem.storage.environment import Table
from inmem.storage.open_image import OpenImage
from inmem.storage.purges import Purges, is_dead, living, living_expiries, read_purges, scan_living
from inmem.storage.unusable import unusable

VERSION_KEY: Final = b"version"
_CHECK_EVERY_S: Final = 0.5  # between two looks at whether the directory is there
_ATTACH_PATIENCE_S: Final = 10.0  # a switch of image takes milliseconds, a recovery may take seconds
_RETRY_S: Final = 0.001
_READ_MAX_AGE_S: Final = 3600.0  # of a snapshot for one read: however long the process is stopped in it


class Image:
    """The image that the control file names, opened read-only once in a process."""

    def __init__(
        self, control: Control, stem: str, revive: Callable[[float], object] | None = None,
        check_there: Callable[[], None] = lambda: None,
    ) -> None:
        """`stem` begins the names of this directory's images; `revive(deadline)` starts a writer.

        `check_there` raises if the directory is not there any more.
        """
        self._check_there = check_there
        self._next_check = 0.0
        self._control = control
        self._stem = stem
        self._revive = revive
        self.lock = threading.RLock()
        self._is_moving = False  # a thread, the holder of the lock, opens or closes the image
        self._was_moving = False  # when a fork began: a signal handler may have done that
        self._opening: str | None = None  # the image that is being opened
        self._now: OpenImage | None = None
        self._before: OpenImage | None = None  # the generation before, while snapshots are open in it
        self.closed = False
        self.is_refused = False  # in a child that was forked inside a transaction

    def get(self, key: bytes) -> bytes | None:
        """The record under a key in the newest committed version. Cost: about 1 µs."""
        while True:
            now = self._now
            if now is None or self._control.words[GENERATION] != now.word:
                now = self._attached()
                if now.word < 0:
                    return self._get_living(key)
            try:
                record: bytes | None = now.env.begin(now.data).get(key)
                return record
            except lmdb.ReadersFullError as error:
                let_through(error)
                self._free_reader_slots(now.env)
            except lmdb.Error as error:
                let_through(error)
                if not now.is_left:
                    raise unusable(error, now.path) from error
                self._attach()  # it was closed for a fork or a switch: read again

    def _get_living(self, key: bytes) -> bytes | None:
        """The record under a key, while dead ones may be in the image."""
        snapshot = self.snapshot(_READ_MAX_AGE_S)
        try:
            return snapshot.get(key)
        finally:
            snapshot.close()

    def snapshot(self, max_age_s: float) -> ImageSnapshot:
        """A snapshot of the newest committed version, until it is closed or too old. Cost: about 3 µs."""
        if self._before is not None:
            with self.lock:
                self._leave_before()
        if time.monotonic() >= self._next_check:
            self._look()
        while True:
            now = self._now
            if now is None or now.is_left or self._control.words[GENERATION] != now.word:
                now = self._attached()
            word = now.word
            try:
                snapshot = ImageSnapshot(self, now, max_age_s)
                if self._control.words[GENERATION] != word:
                    snapshot.look_for_dead()
            except lmdb.ReadersFullError as error:
                let_through(error)
                self._free_reader_slots(now.env)
            except lmdb.Error as error:
                let_through(error)
                if not now.is_left:
                    raise unusable(error, now.path) from error
            else:
                if not now.is_left:
                    return snapshot
                snapshot.close()

    def _attached(self) -> OpenImage:
        """The image of now, with the word of its generation noted, or -1 if it may have dead records."""
        word = self._control.words[GENERATION]
        now = self._now
        if now is None or now.is_left or generation_of(word) != now.generation:
            now = self._attach()
            word = self._control.words[GENERATION]
        if generation_of(word) == now.generation:
            now.word = -1 if may_have_dead(word) else word
        return now

    def now_us(self) -> int:
        """Store time, microseconds."""
        return boot_us() + self._control.words[CLOCK]

    def _free_reader_slots(self, env: Any) -> None:
        # Dead processes' slots are freed here too: a full table must not wait for the writer's timer.
        if env.reader_check() == 0:
            raise BusyError(
                f"all {env.max_readers()} reader slots of the image are in use",
                what="reader slots", limit=env.max_readers(),
                hint="Close snapshots, use fewer threads, or create the store with a larger max_readers.",
            )

    def _attach(self) -> OpenImage:
        """Open the image that the control file names now; without one, start a writer and wait."""
        deadline = time.monotonic() + _ATTACH_PATIENCE_S
        while True:
            self._look()
            with self.lock:
                if self._is_moving:
                    raise BusyError(
                        "this thread is in the middle of opening or closing the image",
                        what="calls at once", limit=1,
                        hint="A signal handler or finalizer came in the middle of it: read again later.",
                    )
                self._is_moving = True
                try:
                    opened = self._try_attach()
                finally:
                    self._is_moving = False
            if opened is not None:
                return opened
            if time.monotonic() > deadline:
                raise WriterUnavailableError(
                    f"{self._control.path.parent} has no image in memory",
                    path=str(self._control.path.parent),
                )
            if self._revive is not None:
                self._revive(deadline)  # without the lock: it may take a while, and a fork waits for it
            time.sleep(_RETRY_S)

    def _look(self) -> None:
        if not self.closed:
            self._check_there()
            self._next_check = time.monotonic() + _CHECK_EVERY_S

    def doubt(self) -> None:
        """No read takes the image for that of now before it has seen that the directory is there."""
        now = self._now
        if now is not None:
            now.generation, now.word = 0, -1

    def _try_attach(self) -> OpenImage | None:
        """The image that the control file names, opened; None if there is none at this moment."""
        if self.closed:
            raise ClosedError("the database is closed")
        state = self._control.read()
        if state is None:
            return None
        now = self._now
        if now is not None and state.generation == now.generation and not now.is_left:
            return now
        path = Path(state.image)
        # A copied directory names its original's image, which is none of its business.
        if not state.generation or not path.name.startswith(self._stem):
            return None
        if self.is_refused or state.image in _STRANDED:
            raise ForkError("the process forked while a snapshot or transaction was open")
        self._leave()
        if self._before is not None and self._before.path == state.image:
            self._leave_before(at_once=True)  # LMDB would not open it twice
        pid, self._opening = os.getpid(), state.image
        try:
            opened = OpenImage(path, state.generation)
        except FileNotFoundError as error:
            let_through(error)
            return None  # replaced or removed just now; the control file will say
        except lmdb.Error as error:
            let_through(error)
            if not path.is_dir() or generation_of(self._control.words[GENERATION]) != state.generation:
                return None
            raise unusable(error, path) from error
        finally:
            self._opening = None
        self._now = opened  # with nothing called in between: a traceback would hold what nobody closes
        if pid != os.getpid():  # a signal handler forked: what was opened is the parent's
            self._now = None
            _INHERITED.append(opened)
            _STRANDED.add(opened.path)
            raise ForkError("the process forked while the image was opened")
        if self.closed:  # by a call in the middle of this one
            self._leave()
            raise ClosedError("the database is closed")
        return opened

    def _leave(self) -> None:
        """Close the image, or leave that to the snapshots that are open in it."""
        left = self._now
        if left is None:
            return
        self._leave_before(at_once=True)  # of more than two the memory would not be bounded
        left.is_left = True
        if left.is_needed():
            self._before, self._now = left, None
        else:
            left.close()
            self._now = None  # only now: who is interrupted before leaves it to the next read to close it

    def _leave_before(self, at_once: bool = False) -> None:
        """Close the generation before if it is not needed; with `at_once`, in any case."""
        before = self._before
        if before is not None and (at_once or not before.is_needed()):
            before.close()
            self._before = None

    def leave(self) -> None:
        """Close the image for now, so that it can be opened elsewhere in this process."""
        with self.lock:
            if not self._is_moving:
                self._leave_before(at_once=True)
                if self._now is not None:
                    self._now.close()
                    self._now = None

    def close(self) -> None:
        """Close the image; open snapshots of it end."""
        with self.lock:
            self.closed = True
            self._check_there = lambda: None
            self._revive = None  # it refers to who has this image
            if not self._is_moving:
                self._leave()
                self._leave_before(at_once=True)

    # Around a fork. Between before_fork and after_fork_* the lock is held, so
    # that no other thread opens the image again inside the window.

    def before_fork(self) -> None:
        """Close the image unless a snapshot is open on it. The caller has taken the lock."""
        self._was_moving, self._is_moving = self._is_moving, True
        now = self._now
        if now is not None and not now.has_snapshots():
            now.close()
            self._now = None

    def after_fork_in_parent(self) -> None:
        """Go on; the next read opens the image again."""
        self._is_moving = self._was_moving
        self.lock.release()

    def after_fork_in_child(self) -> bool:
        """Start afresh, or refuse what the parent had snapshots open in: whether that is so."""
        is_open = False
        self.lock = threading.RLock()
        self._is_moving = self._was_moving
        if self._opening is not None:  # by another thread, which is not in here, or below this call
            _STRANDED.add(self._opening)
        for opened in (self._now, self._before):
            if opened is not None:
                _INHERITED.append((opened, [noted() for noted in opened.live]))
                _STRANDED.add(opened.path)
                is_open = is_open or opened.has_snapshots()
                opened.is_inherited = True
                opened.live = {}  # a snapshot that is dropped here must not touch its transaction
        self._now = self._before = None
        return is_open


# Objects of a parent's LMDB environment are kept alive in the child, never closed.
_INHERITED: list[Any] = []
# Their paths: LMDB takes them for open in this process, and would refuse, whoever opens them.
_STRANDED: set[str] = set()


class ImageSnapshot:
    """One committed version of the image, for one thread at a time."""

    __slots__ = ("_born", "_ended_by", "_home", "_image", "_max_age_s", "_noted", "_purges", "_txn", "now_us")

    def __init__(self, image: Image, home: OpenImage, max_age_s: float) -> None:
        self._image = image
        self._home = home
        self._txn: Any
        self._txn, self._noted = home.begin(max_age_s)
        self._born = time.monotonic()
        self._max_age_s = max_age_s
        self._ended_by: str | None = None
        self._purges: Purges | None = None  # by which records are dead
        self.now_us = image.now_us()

    def look_for_dead(self) -> None:
        """Find out which records are left of deleted runs."""
        self._purges = read_purges(self._txn, self._home.tables[Table.META]) or None

    def _open(self) -> Any:
        txn = self._txn
        if txn is None:
            if self._ended_by is not None:
                raise SnapshotTooOldError(self._ended_by)  # as often as it is asked: why does not change
            raise ClosedError("the snapshot is closed")
        if self._noted not in self._home.live:
            if self._home.is_inherited:
                raise _of_the_parent()
            self._txn = None
            if self._image.closed:
                raise ClosedError("the database is closed")
            self._ended_by = "the image of this snapshot was replaced"
            raise SnapshotTooOldError(self._ended_by)
        age = time.monotonic() - self._born
        if age > self._max_age_s:
            self.close()
            self._ended_by = f"the snapshot is {age:.1f} s old, the limit is {self._max_age_s} s"
            raise SnapshotTooOldError(self._ended_by, age_s=age, max_age_s=self._max_age_s)
        return txn

    @property
    def version(self) -> int:
        """The commit version that this snapshot shows."""
        txn = self._open()
        try:
            data = txn.get(VERSION_KEY, db=self._home.tables[Table.META])
        except lmdb.Error as error:
            let_through(error)
            raise self._ended(error) from error
        return int.from_bytes(data, "big") if data else 0

    def get(self, key: bytes) -> bytes | None:
        """The record under a key. Cost: about 1 µs."""
        txn = self._open()
        try:
            record: bytes | None = txn.get(key)
        except lmdb.Error as error:
            let_through(error)
            raise self._ended(error) from error
        if self._purges is not None and record is not None and is_dead(self._purges, key, record):
            return None
        return record

    def fence(self, digest: bytes) -> bytes | None:
        """What the table of fences has under a run's digest: its deletion, or the mark of its import."""
        txn = self._open()
        try:
            found: bytes | None = txn.get(digest, db=self._home.tables[Table.FENCES])
        except lmdb.Error as error:
            let_through(error)
            raise self._ended(error) from error
        return found

    def _ended(self, error: lmdb.Error) -> InmemError:
        if self._noted in self._home.live:
            return unusable(error, self._home.path)
        if self._home.is_inherited:
            return _of_the_parent()
        if self._image.closed:
            return ClosedError("the database is closed")
        if self._txn is None:
            return ClosedError("the snapshot is closed")  # by another thread
        return SnapshotTooOldError("the image of this snapshot was replaced")

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The records under some keys, as far as there are any."""
        return {key: record for key in keys if (record := self.get(key)) is not None}

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Keys and records of `[start, end)` in order. Cost: about 1 µs a record.

        `limit` is about how many will be taken, of which nothing depends here.
        """
        txn = self._open()
        try:
            if self._purges is None:
                yield from scan(txn.cursor(), start, end, reverse)
            else:
                yield from scan_living(txn.cursor(), self._purges, start, end, reverse)
        except lmdb.Error as error:
            let_through(error)
            raise self._ended(error) from error

    def count(self, start: bytes, end: bytes) -> int:
        """How many records of `[start, end)` are live. Cost: about 1 µs a record."""
        now_us = self.now_us
        return sum(is_live(record, now_us) for _, record in self.scan(start, end))

    def table(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        """All entries of one table, for checks and copies."""
        txn = self._open()
        try:
            items = iter(txn.cursor(self._home.tables[table]))
            if self._purges is not None and table == Table.DATA:
                items = living(self._purges, items)
            elif self._purges is not None and table == Table.EXPIRY:
                items = living_expiries(self._purges, items, txn, self._home.data)
            yield from items
        except lmdb.Error as error:
            let_through(error)
            raise self._ended(error) from error

    def leave(self) -> None:
        """Let no other read begin: it ends with the one that is under way in another thread."""
        self._txn = None

    def close(self) -> None:
        """End the snapshot; the memory that it pinned can be used again."""
        txn, self._txn = self._txn, None
        if txn is not None:
            self._home.end(txn, self._noted)


def scan(cursor: Any, start: bytes, end: bytes, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
    """Walk `[start, end)` of a cursor, forwards or backwards."""
    if reverse:
        positioned = cursor.set_range(end)
        positioned = cursor.prev() if positioned else cursor.last()
        if positioned:
            for item in cursor.iterprev():
                if item[0] < start:
                    return
                yield item
        return
    if cursor.set_range(start):
        for item in cursor:
            if item[0] >= end:
                return
            yield item


def _of_the_parent() -> ForkError:
    return ForkError("this snapshot belongs to the parent process")
