"""What `buffered` mode does on a timer, and what the writer does when the log cannot be made durable.

Invariant: after a failed fsync the process ends at once, and answers nothing
more. The next writer recovers what is on the disk.
"""

from __future__ import annotations

import os
import threading
import time
from typing import NoReturn

from inmem.storage.wal.log import WalBrokenError
from inmem.writer.committer import Log
from inmem.writer.journal import Journal

journal = Journal()


def end_process() -> NoReturn:
    """End the process after a `WalBrokenError`; call it while that error is being handled."""
    journal.critical(
        "log_broken", trace=True,
        problem="the log cannot be made durable: stopping, what is unanswered stays so",
    )
    os._exit(os.EX_IOERR)


class IntervalSync:
    """The thread that syncs the log each interval, or as soon as a longer fsync has ended.

    It sleeps while there is nothing to sync. Who appends looks at `is_asleep`, and calls `look` then.
    """

    def __init__(self, log: Log, interval_s: float, stopping: threading.Event) -> None:
        self.is_asleep = False
        self._log = log
        self._interval_s = interval_s
        self._stopping = stopping
        self._wake = threading.Event()
        threading.Thread(target=self._run, name="fsync", daemon=True).start()

    def look(self) -> None:
        """Wake the thread if there is something to sync."""
        if self._log.version != self._log.durable_version or self._stopping.is_set():
            self._wake.set()

    def _run(self) -> None:
        pause_s = self._interval_s
        while not self._stopping.wait(pause_s):
            began = time.monotonic()
            try:
                self._log.sync()
                pause_s = max(0.0, self._interval_s - (time.monotonic() - began))
            except (WalBrokenError, ValueError):  # ValueError: the log was closed
                if self._stopping.is_set():
                    return
                end_process()
            self.is_asleep = True  # before the look: what is appended after it wakes this thread
            if self._log.version == self._log.durable_version:
                self._wake.wait()
            self.is_asleep = False
            self._wake.clear()
