"""Checkpoints: when one is taken, and how its file takes the place of the one before.

Invariant: a segment of the log is removed only when a checkpoint that holds
all of it is durable under its name. A process of its own copies the image;
this module, in the owner of the log, renames the file and removes segments.

The steps, in their order:

1. The segment in use is finished, so that the checkpoint makes all of it
   superfluous.
2. A helper copies a snapshot into a file without a name, makes it durable,
   and reads it back.
3. The log is made durable up to that snapshot. It must never end before the
   checkpoint that it continues.
4. The file gets its name, durably.
5. Segments that it holds are removed, then older checkpoints.

Killed between any two steps, the old or the new checkpoint is there, with the
log that continues it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from inmem.config import Settings
from inmem.errors import InmemError, StoreFullError
from inmem.host.directory import DataDirectory
from inmem.host.files import make_private_dir, python_environment, python_program, sync_directory
from inmem.storage.checkpoint import checkpoint_files, checkpoint_path
from inmem.storage.wal.log import Wal, WalBrokenError
from inmem.wire import from_wire
from inmem.writer.durability import end_process
from inmem.writer.journal import Journal

if TYPE_CHECKING:
    import subprocess

_EARLY: Final = 16  # after the interval, this part of the size that makes one due is enough
_RETRY_S: Final = 30.0  # after a failure: a full disk stays full for a while
_TEMPORARY: Final = "unfinished"

Result: TypeAlias = "dict[str, Any] | InmemError"  # what a checkpoint came to

journal = Journal()


class Checkpoints:
    """One writer's checkpoints, one at a time, and who waits for them."""

    def __init__(
        self, directory: DataDirectory, settings: Settings, wal: Wal, reached: Callable[[str], None]
    ) -> None:
        self._directory = directory
        self._settings = settings
        self._wal = wal
        self._reached = reached
        self._helper: subprocess.Popen[bytes] | None = None
        self._waiting: list[Callable[[Result], None]] = []  # for the checkpoint under way
        self._waiting_next: list[Callable[[Result], None]] = []  # asked since it began
        self._began = 0.0
        self._not_before = 0.0
        self._last = time.monotonic()
        self._base = 0  # bytes of the log that the last checkpoint could not free
        make_private_dir(directory.checkpoints)
        self._temporary = directory.checkpoints / _TEMPORARY
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Remove what a killed writer left: a file without a name, and older checkpoints."""
        self._temporary.unlink(missing_ok=True)
        for older in checkpoint_files(self._directory.checkpoints)[:-1]:
            older.unlink()

    def want(self, done: Callable[[Result], None]) -> None:
        """Take a checkpoint of all that is committed now; `done` is called with its result."""
        # One that is under way may have begun before commits that the caller wants in it.
        if self._helper is not None:
            self._waiting_next.append(done)
        else:
            self._waiting.append(done)
            self._begin()

    def advance(self, now: float, live_bytes: int) -> None:
        """Finish a checkpoint whose helper is done, and begin one that is due. At each tick."""
        try:
            result = self._finish()
        except WalBrokenError:
            end_process()
        if result is not None:
            self._end(result)
        if self._helper is None and (self._waiting or self._is_due(now, live_bytes)):
            self._begin()

    @property
    def is_under_way(self) -> bool:
        """Whether a helper is at work."""
        return self._helper is not None

    def abandon(self, *, is_ours: bool = True) -> None:
        """End a helper that is at work, and remove what it has written if the directory is still ours."""
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.kill()
            helper.wait()
            if helper.stdout is not None:
                helper.stdout.close()
        if is_ours:
            self._temporary.unlink(missing_ok=True)

    def _is_due(self, now: float, live_bytes: int) -> bool:
        """Whether the log has grown enough since the last one, or by a part of that for long enough.

        The size of the image counts, so that a large image is not copied for
        each small change: copying never writes more than the log has.
        """
        if now < self._not_before:
            return False
        grown = self._wal.bytes - self._base
        enough = max(self._settings.checkpoint_wal_bytes, live_bytes)
        waited = now - self._last >= self._settings.checkpoint_interval_s
        return grown >= (enough // _EARLY if waited else enough)

    def _begin(self) -> None:
        """Start a helper."""
        import subprocess  # here, as most writers never need it: each module is memory of every writer

        self._began = time.monotonic()
        self._not_before = self._began + _RETRY_S
        try:
            self._wal.rotate()
            self._temporary.unlink(missing_ok=True)
            self._helper = subprocess.Popen(
                [
                    python_program(), "-m", "inmem.maintenance", "checkpoint",
                    str(self._directory.path), str(self._temporary), str(os.getpid()),
                ],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=python_environment(),
            )
        except WalBrokenError:
            end_process()
        except OSError as error:
            self._end(StoreFullError(f"no checkpoint can be begun: {error}"))

    def _end(self, result: Result) -> None:
        if isinstance(result, InmemError):
            journal.warning("checkpoint_failed", error=result)
        for done in self._waiting:
            done(result)
        self._waiting, self._waiting_next = self._waiting_next, []

    def _finish(self) -> Result | None:
        """The report if the helper is done, its error if it failed, None while it is at work.

        Raises:
            WalBrokenError: the log cannot be made durable.
        """
        helper = self._helper
        if helper is None or helper.poll() is None:
            return None
        self._helper = None
        assert helper.stdout is not None
        with helper.stdout as stdout:
            text = stdout.read()
        try:
            document = json.loads(text)
        except ValueError:
            document = None
        if document is None or "error" in document:
            self._temporary.unlink(missing_ok=True)
            if document is None:
                return InmemError(f"the checkpoint's helper ended with status {helper.returncode}")
            return from_wire(document["error"])
        try:
            return self._put_in_place(document)
        except WalBrokenError:
            raise
        except OSError as error:
            return StoreFullError(
                f"the checkpoint cannot be put in place: {error}",
                hint="Free space on the disk that holds the data directory.",
            )

    def _put_in_place(self, copied: dict[str, Any]) -> dict[str, Any]:
        version = copied["version"]
        self._reached("checkpoint_copied")
        if self._wal.durable_version < version:
            self._wal.sync()
        os.rename(self._temporary, checkpoint_path(self._directory.checkpoints, version))
        self._reached("checkpoint_renamed")
        sync_directory(self._directory.checkpoints)
        self._reached("checkpoint_durable")
        released = self._wal.release(version)
        self._reached("checkpoint_released")
        self._remove_leftovers()
        self._last = time.monotonic()
        self._not_before = 0.0
        self._base = self._wal.bytes
        report = {
            "version": version, "entries": copied["entries"], "bytes": copied["bytes"],
            "seconds": self._last - self._began, "released_segments": released,
            "wal_bytes": self._wal.bytes,
        }
        journal.info("checkpoint", **report)
        return report
