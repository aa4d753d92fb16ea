"""Housekeeping: what the writer does on a timer, between two groups.

Each tick: publish the time, remove expired records, advance a checkpoint,
free the reader slots of dead processes. Each second: look for files that were
removed. Every five seconds: end idle sessions.
"""

from __future__ import annotations

import threading
from typing import Final

from inmem.commit.committer import Committer, Log
from inmem.config import SWEEP_LIMIT
from inmem.host.clock import StoreClock
from inmem.host.control import CLOCK, DURABLE, VERSION, Control
from inmem.storage.store import PublishError
from inmem.storage.wal.log import WalBrokenError
from inmem.writer.checkpoints import Checkpoints
from inmem.writer.durability import end_process
from inmem.writer.endpoint import Endpoint
from inmem.writer.generations import Generations
from inmem.writer.greeting import Greeter
from inmem.writer.journal import Journal
from inmem.writer.presence import GONE, Presence
from inmem.writer.refusals import Refusals
from inmem.writer.sampler import Sampler

SESSIONS_EVERY_S: Final = 5.0  # between two searches for idle sessions and dead processes
_FILES_EVERY_S: Final = 1.0  # between two looks at the writer's own files

journal = Journal()


class Housekeeping:
    """The timers of one writer."""

    def __init__(
        self, *, control: Control, clock: StoreClock, log: Log, committer: Committer, endpoint: Endpoint,
        generations: Generations, greeter: Greeter, checkpoints: Checkpoints | None, sampler: Sampler,
        refusals: Refusals, presence: Presence, linger_s: float | None, stopping: threading.Event,
    ) -> None:
        """`linger_s` is how long to stay without clients, None for ever; `stopping` is set to leave."""
        self._control = control
        self._clock = clock
        self._log = log
        self._committer = committer
        self._endpoint = endpoint
        self._generations = generations
        self._greeter = greeter
        self._checkpoints = checkpoints
        self._sampler = sampler
        self._refusals = refusals
        self._presence = presence
        self._linger_s = linger_s
        self._stopping = stopping
        self._next_files = 0.0
        self._next_sessions = 0.0

    def tick(self, now: float) -> None:
        """Do what is due. Cost: about 50 µs if nothing is."""
        self._control.words[CLOCK] = self._clock.follow_wall()
        self._control.words[DURABLE] = self._log.durable_version
        self._sweep()
        if self._checkpoints is not None:
            self._checkpoints.advance(now, self._generations.store.live_bytes)
        self._generations.switch_if_pinned(now)
        if now >= self._next_files:
            self._next_files = now + _FILES_EVERY_S
            self._check_files(now)
        self._generations.note_tick(now)
        if now >= self._next_sessions:
            self._next_sessions = now + SESSIONS_EVERY_S
            self._committer.sessions.expire(self._clock.now_us())
            self._sampler.forget()
            self._refusals.report(self._committer.counters)
            self._greeter.end_dead()
        self._generations.store.free_dead_readers()
        if self._linger_s is not None and self._presence.is_deserted(now, self._linger_s):
            journal.info("last_client_left")
            self._stopping.set()

    def _sweep(self) -> None:
        """Remove expired records; what fails for want of room is tried again at the next tick."""
        try:
            swept = self._committer.sweep(self._clock.now_us(), SWEEP_LIMIT)
        except PublishError as error:
            journal.warning("sweep_failed", error=error)
        except WalBrokenError:
            end_process()
        except OSError as error:
            journal.warning("sweep_failed", error=error)
        else:
            if swept:
                self._control.words[VERSION] = self._committer.version

    def _check_files(self, now: float) -> None:
        """Replace what was removed under this writer; leave if the data directory itself was."""
        if not self._presence.owns_directory():
            journal.critical("leaving", problem="the data directory was removed or replaced")
            self._stopping.set()
            return
        self._presence.restore_locks()
        self._generations.switch_if_removed(now)
        missing = self._endpoint.missing()
        if missing:
            # Clients take the next epoch for another writer: they connect, and send what is unanswered.
            journal.warning("file_gone", path=missing[0], problem=GONE, action="opening anew")
            self._committer.begin_epoch(self._endpoint.epoch + 1, self._clock.now_us())
            self._endpoint.reopen(self._control)
            self._greeter.disconnect_all()
