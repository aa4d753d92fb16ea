"""Housekeeping: what the writer does on a timer, between two groups.

Each tick: publish the time, advance a checkpoint, free the reader slots of
dead processes. Each second: look for files that were
removed. Every five seconds: end idle sessions.
"""

from __future__ import annotations

import threading
from typing import Final

from inmem.host.clock import FAR_US
from inmem.host.control import CLOCK, DURABLE, EPOCH, GENERATION, boot_id, generation_of
from inmem.writer.journal import Journal
from inmem.writer.mailbox import TICK_S
from inmem.writer.parts import Parts
from inmem.writer.presence import GONE, Presence

SESSIONS_EVERY_S: Final = 5.0  # between two searches for idle sessions and dead processes
# Of a writer at rest: between two looks at what nothing tells it of, which are removed files, clients that
# were killed, and the wall clock. (inotify would tell of files; but a user has 128 instances of it in all.)
_RESTING_S: Final = 0.8
_FILES_EVERY_S: Final = _RESTING_S
_WARNING_EVERY_S: Final = 3600.0
_SETTLE_S: Final = SESSIONS_EVERY_S + 1.0  # after messages: what is done on a timer has been done once

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
        control = parts.control
        # By which sessions age: that of the writer before, if it was of this boot.
        self._offset = control.words[CLOCK] if control.boot() == boot_id() else parts.clock.offset
        self._rests_at = 0.0  # when all that follows from the last messages is done
        self._next_files = 0.0
        self._next_sessions = 0.0
        self._next_warning = 0.0  # of clocks that are far apart

    def tick(self, now: float, *, is_active: bool) -> float:
        """Do what is due; when the next tick is. Active is a writer that took messages since the last one."""
        parts = self._parts
        if is_active:
            self._rests_at = now + _SETTLE_S
        parts.endpoint.mailbox.look()
        parts.control.words[CLOCK] = parts.clock.follow_wall()
        self._age_by_boot_time()
        self._compare_clocks(now)
        parts.control.words[DURABLE] = parts.log.durable_version
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
        return now + self._pause_s(now)

    def _pause_s(self, now: float) -> float:
        """Short while there is work or something may follow from it; else long, up to when it would leave."""
        checkpoints, idle_since = self._parts.checkpoints, self._presence.idle_since
        if now < self._rests_at or (checkpoints is not None and checkpoints.is_under_way):
            return TICK_S
        if self._stays or idle_since is None:
            return _RESTING_S
        return min(_RESTING_S, max(0.0, idle_since + self._parts.settings.linger_s - now))

    def _age_by_boot_time(self) -> None:
        """Sessions are as old as they were before a leap of the clock."""
        offset = self._parts.clock.offset
        by_s = (offset - self._offset) // 1_000_000
        if by_s:  # below 0 it was set back, and they with it
            if by_s > 0:
                self._parts.committer.leap(by_s, self._parts.clock.now_us())
            self._offset = offset

    def _compare_clocks(self, now: float) -> None:
        """Say so, from time to time, if store time and wall clock are far apart."""
        ahead_us = self._parts.clock.ahead_us()
        if abs(ahead_us) < FAR_US or now < self._next_warning:
            return
        self._next_warning = now + _WARNING_EVERY_S
        if ahead_us > 0:
            problem = "the wall clock was set back; what is written is dated ahead of it. See: inmem clock"
            journal.warning("clock_ahead", seconds=ahead_us / 1e6, problem=problem)
        else:
            problem = "the wall clock has leapt ahead; it is followed if that lasts for a minute"
            journal.warning("clock_leap", seconds=-ahead_us / 1e6, problem=problem)

    def _check_files(self, now: float) -> None:
        """Replace what was removed under this writer; leave if the data directory itself was."""
        parts = self._parts
        control = parts.control
        if not self._presence.owns_directory() or not control.is_current():
            journal.critical("leaving", problem="the data directory was removed or replaced")
            # Clients that have the page mapped look for image and writer, and find out.
            generation, epoch = generation_of(control.words[GENERATION]) + 1, control.words[EPOCH] + 1
            control.update(image="", endpoint="", generation=generation, epoch=epoch)
            self._stopping.set()
            return
        self._presence.restore_locks()
        parts.waking.look()
        parts.generations.switch_if_removed(now)
        missing = parts.endpoint.missing()
        if missing:
            # Clients take the next epoch for another writer: they connect, and send what is unanswered.
            journal.warning("file_gone", path=missing[0], problem=GONE, action="opening anew")
            parts.committer.begin_epoch(parts.endpoint.epoch + 1, parts.clock.now_us())
            parts.endpoint.reopen(parts.control)
            parts.greeter.disconnect_all()
