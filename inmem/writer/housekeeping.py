"""Housekeeping: what the writer does on a timer, between two groups.

Each tick: publish the time, remove expired records, advance a checkpoint,
free the reader slots of dead processes. Each second: look for files that were
removed. Every five seconds: end idle sessions.
"""

from __future__ import annotations

import threading
from typing import Final

from inmem.config import SWEEP_LIMIT
from inmem.host.control import CLOCK, DURABLE, EPOCH, GENERATION, VERSION
from inmem.storage.store import PublishError
from inmem.storage.wal.log import WalBrokenError
from inmem.writer.durability import end_process
from inmem.writer.journal import Journal
from inmem.writer.parts import Parts
from inmem.writer.presence import GONE, Presence

SESSIONS_EVERY_S: Final = 5.0  # between two searches for idle sessions and dead processes
_FILES_EVERY_S: Final = 0.8  # between two looks at the writer's own files

journal = Journal()


class Housekeeping:
    """The timers of one writer."""

    def __init__(
        self, parts: Parts, presence: Presence, *, stays: bool, stopping: threading.Event
    ) -> None:
        """A writer that `stays` does not leave with its last client; `stopping` is set to leave."""
        self._parts = parts
        self._presence = presence
        self._stays = stays
        self._stopping = stopping
        self._next_files = 0.0
        self._next_sessions = 0.0

    def tick(self, now: float) -> None:
        """Do what is due."""
        parts = self._parts
        parts.control.words[CLOCK] = parts.clock.follow_wall()
        parts.control.words[DURABLE] = parts.log.durable_version
        self._sweep()
        if parts.checkpoints is not None:
            parts.checkpoints.advance(now, parts.generations.store.live_bytes)
        parts.generations.switch_if_pinned(now)
        if now >= self._next_files:
            self._next_files = now + _FILES_EVERY_S
            self._check_files(now)
        parts.generations.note_tick(now)
        if now >= self._next_sessions:
            self._next_sessions = now + SESSIONS_EVERY_S
            parts.committer.sessions.expire(parts.clock.now_us())
            parts.sampler.forget()
            parts.refusals.report(parts.committer.counters)
            parts.greeter.end_dead()
        parts.generations.store.free_dead_readers()
        if not self._stays and self._presence.is_deserted(now, parts.settings.linger_s):
            journal.info("last_client_left")
            self._stopping.set()

    def _sweep(self) -> None:
        """Remove expired records; what fails for want of room is tried again at the next tick."""
        try:
            swept = self._parts.committer.sweep(self._parts.clock.now_us(), SWEEP_LIMIT)
        except WalBrokenError:
            end_process()
        except (PublishError, OSError) as error:
            journal.warning("sweep_failed", error=error)
        else:
            if swept:
                self._parts.control.words[VERSION] = self._parts.committer.version

    def _check_files(self, now: float) -> None:
        """Replace what was removed under this writer; leave if the data directory itself was."""
        parts = self._parts
        control = parts.control
        if not self._presence.owns_directory() or not control.is_current():
            journal.critical("leaving", problem="the data directory was removed or replaced")
            # Clients that have the page mapped look for image and writer, and find out.
            generation, epoch = control.words[GENERATION] + 1, control.words[EPOCH] + 1
            control.update(image="", endpoint="", generation=generation, epoch=epoch)
            self._stopping.set()
            return
        self._presence.restore_locks()
        parts.generations.switch_if_removed(now)
        missing = parts.endpoint.missing()
        if missing:
            # Clients take the next epoch for another writer: they connect, and send what is unanswered.
            journal.warning("file_gone", path=missing[0], problem=GONE, action="opening anew")
            parts.committer.begin_epoch(parts.endpoint.epoch + 1, parts.clock.now_us())
            parts.endpoint.reopen(parts.control)
            parts.greeter.disconnect_all()
