"""A store as the commands see it that only look: read directly, and left as it is.

Invariant: looking starts no writer, keeps none alive, and pins memory for no
longer than one chunk takes. Where a writer serves, or a killed one has left
its image, that is read; else checkpoint and log are replayed into a private
image, which goes with the command.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Protocol, Self

from inmem.cli.common import database_at
from inmem.errors import CorruptionError, InmemError, SnapshotTooOldError, WriterUnavailableError
from inmem.host.clock import wall_us
from inmem.host.control import EPOCH, GENERATION, VERSION
from inmem.keys import Namespace, check_run_id
from inmem.maintenance.sources import control_state, is_served, live_image, private_place
from inmem.record import is_live
from inmem.storage.rebuild import replay_privately
from inmem.storage.snapshot import Image
from inmem.storage.store import Store

Item = tuple[bytes, bytes]

_MAX_AGE_S: Final = 60.0  # of one moment; a listing takes a new one for each chunk
_CHUNK: Final = 256  # records of one moment while listing, and
_CHUNK_BYTES: Final = 4 * 1024 * 1024  # bytes: what bounds memory where values are large
_ATTEMPTS: Final = 5  # at a store whose writer comes or leaves meanwhile
_STARTING_S: Final = 10.0  # how long a writer may recover before the log is read instead
_POLL_S: Final = 0.01
_LOOK_S: Final = 1.0  # between two looks at whether the directory is still there


class Stored(Protocol):
    """What a snapshot of the shared image and a transaction of a private one have in common."""

    def get(self, key: bytes, /) -> bytes | None: ...

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Item]: ...


class Moment:
    """One committed version; what facades call a reader."""

    def __init__(self, stored: Stored, version: int, now_us: int) -> None:
        self._stored = stored
        self.version = version
        self._now_us = now_us

    def now_us(self) -> int:
        """Store time."""
        return self._now_us

    def read(self, key: bytes) -> bytes | None:
        """The live record under a key."""
        record = self._stored.get(key)
        return record if record is not None and is_live(record, self._now_us) else None

    def stream(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Item]:
        """The live records of a range, one by one."""
        for item in self._stored.scan(start, end, reverse=reverse):
            if is_live(item[1], self._now_us):
                yield item

    def scan(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> list[Item]:
        """The live records of a range."""
        found: list[Item] = []
        for item in self.stream(start, end, reverse=reverse):
            if len(found) == limit:
                break
            found.append(item)
        return found

    def count(self, start: bytes, end: bytes) -> int:
        """How many live records a range has."""
        return sum(1 for _ in self.stream(start, end))

    @contextmanager
    def view(self) -> Iterator[Moment]:
        """Itself: all reads here are of one version."""
        yield self


class View:
    """A database, as a namespace sees it. Use it as a context manager."""

    def __init__(self, path: Path, namespace: Namespace) -> None:
        self.directory = database_at(path)
        self.namespace = namespace
        self.identity = self.directory.identity()
        self._inode = self.directory.inode()
        self._looked = time.monotonic()
        self._closing = ExitStack()
        self._held: Moment | None = None  # of a block whose reads are all of one version
        self._image: Image | None = None
        self._store: Store | None = None
        self._now_us: Callable[[], int] = wall_us
        self._control = self.directory.control()
        self._closing.callback(self._control.close)
        try:
            self._control.check_machine()
            self._source = self._closing.enter_context(ExitStack())
            self._attach()
        except BaseException:
            self._closing.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    @property
    def is_private(self) -> bool:
        """Whether this is a replay of the log, and not what a writer has in memory."""
        return self._store is not None

    # --- where the data is ----------------------------------------------------------------

    def _attach(self) -> None:
        """Find the image in memory, or make a private one."""
        for left in reversed(range(_ATTEMPTS)):
            before, served = control_state(self._control), is_served(self.directory)
            if self._attach_live(_STARTING_S if served else 0.0):
                return
            try:
                self._replay()
                return
            except (CorruptionError, SnapshotTooOldError, FileNotFoundError, WriterUnavailableError):
                # A writer that came or left meanwhile has changed the files that were read.
                same = before == control_state(self._control) and served == is_served(self.directory)
                if not left or same:
                    raise

    def _attach_live(self, patience_s: float) -> bool:
        deadline = time.monotonic() + patience_s
        while True:
            found = live_image(self.directory, self.identity, self._control)
            if found.image is not None:
                self._source.close()
                self._source.callback(found.image.close)
                self._image, self._store, self._now_us = found.image, None, found.image.now_us
                return True
            if found.problem is not None:
                raise CorruptionError(found.problem, hint=f"See: inmem check {self.directory.path}")
            if time.monotonic() >= deadline or not is_served(self.directory):
                return False
            time.sleep(_POLL_S)

    def _replay(self) -> None:
        if self.identity.stored["durability"] == "memory":
            raise WriterUnavailableError(
                f"{self.directory.path} was in memory only, and no writer has it",
                path=str(self.directory.path), hint="What it held is gone with its writer.",
            )
        with ExitStack() as building:
            scratch = building.enter_context(private_place(self.directory.path, "look"))
            store = building.enter_context(
                replay_privately(self.directory, self.identity, scratch, self._control)
            )
            clock_us = store.position.clock_us if store.position else 0
            self._image, self._store = None, store
            self._now_us = lambda: max(wall_us(), clock_us)
            self._source.close()
            self._source.push(building.pop_all())

    def mark(self) -> tuple[int, ...]:
        """What changes whenever something was committed, or a writer came. Cost: three reads of memory."""
        words = self._control.words
        return words[VERSION], words[GENERATION], words[EPOCH]

    def follow(self) -> None:
        """Go over to the image of a writer that has come since; a shared image does so by itself.

        Raises:
            WriterUnavailableError: the directory is gone, or another one by now.
        """
        now = time.monotonic()
        if now - self._looked >= _LOOK_S:
            self._looked = now
            try:
                same = self.directory.inode() == self._inode
            except FileNotFoundError:
                same = False
            if not same:
                raise WriterUnavailableError(
                    f"{self.directory.path} was removed or replaced", path=str(self.directory.path),
                    hint="Start the command anew.",
                )
        if self._store is not None and is_served(self.directory):
            self._attach_live(0.0)

    # --- reading ------------------------------------------------------------------------

    @contextmanager
    def one_moment(self) -> Iterator[Moment]:
        """Every read inside the block is of one version, as `moment` says; not for long ones."""
        with self.moment() as moment:
            self._held = moment
            try:
                yield moment
            finally:
                self._held = None

    @contextmanager
    def moment(self) -> Iterator[Moment]:
        """The newest committed version; what it pins stays in memory until the end of the block."""
        if self._held is not None:
            yield self._held
            return
        if self._image is not None:
            snapshot = self._image.snapshot(_MAX_AGE_S)
            try:
                yield Moment(snapshot, snapshot.version, snapshot.now_us)
            finally:
                snapshot.close()
            return
        assert self._store is not None, "a view has one of the two"
        txn = self._store.begin()
        try:
            position = self._store.position
            yield Moment(txn, position.version if position else 0, self._now_us())
        finally:
            txn.abort()

    def read(self, key: bytes) -> bytes | None:
        """The newest live record under a key."""
        with self.moment() as moment:
            return moment.read(key)

    def now_us(self) -> int:
        """Store time."""
        return self._now_us()

    def walk(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Item]:
        """The live records of a range, in bounded memory, each chunk as of another moment.

        Whoever reads slowly holds nothing of the store meanwhile.
        """
        while start < end:
            try:
                with self.moment() as moment:
                    chunk, whole = taken(moment.stream(start, end, reverse=reverse))
            except SnapshotTooOldError:
                if self._held is not None:
                    raise
                continue  # the image was replaced under it: the next moment is of the new one
            yield from chunk
            if whole:
                return
            start, end = (start, chunk[-1][0]) if reverse else (chunk[-1][0] + b"\0", end)

    def prefix(self, run: str) -> bytes:
        """The prefix of a run, or of `@agent`, `@app` or `@tenant`, which runs share."""
        if run.startswith("@"):
            return self.namespace.shared_prefix(run[1:])
        return self.namespace.run_prefix(check_run_id(run))


def taken(items: Iterator[Item]) -> tuple[list[Item], bool]:
    """As many of the items as one moment should be held for; whether that is all."""
    chunk: list[Item] = []
    held = 0
    for item in items:
        chunk.append(item)
        held += len(item[1])
        if len(chunk) >= _CHUNK or held >= _CHUNK_BYTES:
            return chunk, False
    return chunk, True


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Around the decoding of what is stored: damage is an error of its own.

    Raises:
        CorruptionError: it could not be decoded.
    """
    try:
        yield
    except InmemError:
        raise
    except (ValueError, TypeError, LookupError) as error:
        raise CorruptionError(
            f"{what} cannot be read: {type(error).__name__}: {error!s:.200}",
            hint="See all that is wrong: inmem check PATH",
        ) from error
