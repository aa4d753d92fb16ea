"""When to take a checkpoint, and what to do with one that is ready.

Invariant: a segment of the log goes only when a checkpoint that holds all of
it is durable under its name. The copying is done by a process of its own; the
renaming and releasing is done here, by the owner of the log.

The steps, in their order:

1. The segment in use is finished, so that the checkpoint makes all of it free.
2. A helper copies a snapshot into a file that has no name yet, durably, and
   reads it back.
3. The log is made durable up to that snapshot, so that it never ends before
   the checkpoint that it goes on from.
4. The file gets its name, durably.
5. Segments that it holds go, then older checkpoints.

Killed between any two, the old or the new checkpoint is there, with its log.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from inmem.config import Settings
from inmem.errors import InmemError, StoreFullError, from_wire
from inmem.host.directory import DataDirectory
from inmem.host.files import make_private_dir, python_environment, sync_directory
from inmem.storage.checkpoint import checkpoint_files, checkpoint_path
from inmem.storage.wal.log import Wal, WalBrokenError
from inmem.writer.journal import Journal

_EARLY: Final = 16  # after the interval, this part of the size that makes one due is enough
_RETRY_S: Final = 30.0  # after a failure: a full disk does not become free by asking at each tick
_TEMPORARY: Final = "unfinished"

log = Journal()


class Checkpointer:
    """One writer's checkpoints; one at a time."""

    def __init__(
        self, directory: DataDirectory, settings: Settings, wal: Wal, reached: Callable[[str], None]
    ) -> None:
        self._directory = directory
        self._settings = settings
        self._wal = wal
        self._reached = reached
        self._helper: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._not_before = 0.0
        self._last = time.monotonic()
        self._base = 0  # bytes of the log that the last checkpoint could not free
        make_private_dir(directory.checkpoints)
        self._temporary = directory.checkpoints / _TEMPORARY
        self._clear()

    def _clear(self) -> None:
        """Remove what a writer that was killed has left: a file without a name, older checkpoints."""
        self._temporary.unlink(missing_ok=True)
        for older in checkpoint_files(self._directory.checkpoints)[:-1]:
            older.unlink()

    @property
    def running(self) -> bool:
        """Whether a helper is at work."""
        return self._helper is not None

    def is_due(self, now: float, live_bytes: int) -> bool:
        """Whether the log has grown enough since the last one, or a part of that for long enough.

        The image's size counts, so that a large one is not copied for each
        little change: all copying together stays of the order of the log.
        """
        if self._helper is not None or now < self._not_before:
            return False
        grown = self._wal.bytes - self._base
        enough = max(self._settings.checkpoint_wal_bytes, live_bytes)
        waited = now - self._last >= self._settings.checkpoint_interval_s
        return grown >= (enough // _EARLY if waited else enough)

    def begin(self) -> None:
        """Start a helper.

        Raises:
            OSError: the log could not be rotated, or the helper not be started.
            WalBrokenError: the log cannot be trusted any more.
        """
        assert self._helper is None
        self._began = time.monotonic()
        self._not_before = self._began + _RETRY_S
        self._wal.rotate()
        self._temporary.unlink(missing_ok=True)
        self._helper = subprocess.Popen(
            [
                sys.executable, "-m", "inmem.maintenance", "checkpoint",
                str(self._directory.path), str(self._temporary), str(os.getpid()),
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=python_environment(),
        )

    def finish(self) -> dict[str, Any] | InmemError | None:
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
        self._clear()
        self._last = time.monotonic()
        self._not_before = 0.0
        self._base = self._wal.bytes
        report = {
            "version": version, "entries": copied["entries"], "bytes": copied["bytes"],
            "seconds": self._last - self._began, "released_segments": released,
            "wal_bytes": self._wal.bytes,
        }
        log.info("checkpoint", **report)
        return report

    def abandon(self) -> None:
        """End a helper that is at work, and remove what it has written."""
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.kill()
            helper.wait()
            if helper.stdout is not None:
                helper.stdout.close()
        self._temporary.unlink(missing_ok=True)
