"""A source that stays with one database while writers come and go.

It reads the image in memory where a writer serves or a killed one has left
it. Elsewhere checkpoint and log are replayed into a private copy, which goes
when the source is closed. It starts no writer and keeps none alive.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Final, Self

from inmem.errors import CorruptionError, SnapshotTooOldError, WriterUnavailableError
from inmem.host.directory import DataDirectory
from inmem.host.waitfile import Armed, Sleeper, place_of
from inmem.keys import Namespace, bucket_of
from inmem.reading.live_image import is_served, live_image, writer_of
from inmem.reading.named_source import NamedSource
from inmem.reading.source import Source, replayed, shared

_MAX_AGE_S: Final = 60.0  # of one moment; a listing takes a new one for each page
_ATTEMPTS: Final = 5  # at a database whose writer comes or leaves meanwhile
_STARTING_S: Final = 10.0  # how long a writer may recover before the log is read instead
_POLL_S: Final = 0.01
_SLEEP_S: Final = 1.0  # of somebody who follows
_INODE_S: Final = 1.0  # between two looks at whether the directory is still there


class DatabaseSource(NamedSource):
    """A database by its directory, and the namespace that is looked at. Use it as a context manager."""

    def __init__(self, directory: DataDirectory, namespace: Namespace) -> None:
        self.directory = directory
        self.namespace = namespace
        self.identity = directory.identity()
        self._inode = directory.inode()
        self._looked = time.monotonic()
        self._sleeper = Sleeper(directory.wait_file)
        self._closing = ExitStack()
        self._control = directory.control()
        self._closing.callback(self._control.close)
        try:
            self._control.check_machine()
            self._resources = self._closing.enter_context(ExitStack())  # of what is read now
            self._attach()
        except BaseException:
            self._closing.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _read_from(self, source: Source, resources: ExitStack) -> None:
        self._resources.close()
        self._resources.push(resources)
        super().__init__(source.name, source.begin, source.now_us, self.namespace)

    def _attach(self) -> None:
        """Find the image in memory, or make a private copy."""
        for left in reversed(range(_ATTEMPTS)):
            before = writer_of(self.directory, self._control)
            if self._attach_image(_STARTING_S if before[1] else 0.0):
                return
            try:
                self._replay()
                return
            except (CorruptionError, SnapshotTooOldError, FileNotFoundError, WriterUnavailableError):
                # A writer that came or left meanwhile has changed the files that were read.
                if not left or before == writer_of(self.directory, self._control):
                    raise

    def _attach_image(self, patience_s: float) -> bool:
        deadline = time.monotonic() + patience_s
        while True:
            found = live_image(self.directory, self.identity, self._control)
            if found.image is not None:
                resources = ExitStack()
                resources.callback(found.image.close)
                self._read_from(shared(found.image, _MAX_AGE_S), resources)
                return True
            if found.problem is not None:
                raise CorruptionError(found.problem, hint=f"See: inmem check -d {self.directory.path}")
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
            source = building.enter_context(
                replayed(self.directory, self.identity, self._control)
            )
            self._read_from(source, building.pop_all())

    def arm(self, *starts: bytes) -> Armed:
        """Before a look at what begins so, for which somebody will `sleep` until it changes."""
        return self._sleeper.arm([place_of(bucket_of(start)) for start in starts])

    def sleep(self, armed: Armed) -> None:
        """Sleep until it has changed, or for a second: the image may be another one by then."""
        self._sleeper.sleep(armed, _SLEEP_S)

    def follow(self) -> None:
        """Go over to the image of a writer that has come since; a shared image does so by itself.

        Raises:
            WriterUnavailableError: the directory is gone, or another one by now.
        """
        now = time.monotonic()
        if now - self._looked >= _INODE_S:
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
        if self.name == "replay" and is_served(self.directory):
            self._attach_image(0.0)
