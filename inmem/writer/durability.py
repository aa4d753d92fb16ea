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


def sync_at_intervals(log: Log, interval_s: float, stopping: threading.Event) -> None:
    """Start the thread that syncs the log each interval, or as soon as a longer fsync has ended."""

    def run() -> None:
        pause_s = interval_s
        while not stopping.wait(pause_s):
            began = time.monotonic()
            try:
                log.sync()
                pause_s = max(0.0, interval_s - (time.monotonic() - began))
            except (WalBrokenError, ValueError):  # ValueError: the log was closed
                if stopping.is_set():
                    return
                end_process()

    threading.Thread(target=run, name="fsync", daemon=True).start()
