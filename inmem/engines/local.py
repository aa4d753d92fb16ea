"""The engine of one machine: reads from shared memory, writes to the one writer process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from inmem.client.applied import Applied
from inmem.client.attachment import Attachment, Hold, attach
from inmem.client.direct import DirectSink
from inmem.client.pipeline import PipelinedWrites
from inmem.client.thread_sessions import ThreadSessions
from inmem.client.transaction import OptimisticTransaction
from inmem.client.views import LatestView, SnapshotView, closed
from inmem.client.waiting import WalksAll, Watched, leave
from inmem.config import Settings
from inmem.engines.base import WHOLE_RUN_S, Engine
from inmem.errors import InvalidInputError
from inmem.keys import MAX_KEY_BYTES
from inmem.maintenance.backup_report import backup_in_process
from inmem.maintenance.check_report import check_in_process
from inmem.primitives.events.rules import CHAIN_IDS
from inmem.reports import BackupReport, CheckReport
from inmem.stepping import Leaves
from inmem.storage.snapshot import ImageSnapshot


def open_local(
    path: str | os.PathLike[str] | None, *, config: Any, arguments: Mapping[str, Any], autostart: bool,
    create: bool = True, known: bytes | None = None, default: Callable[[Any], Any] | None = None,
) -> LocalEngine:
    """The engine for a data directory. See `attach`; raises as `inmem.open` does."""
    hold, settings = attach(
        path, config=config, arguments=arguments, autostart=autostart, create=create, known=known
    )
    return LocalEngine(hold, settings, default)


def attachment_of(engine: Engine) -> Attachment:
    """What this process shares of the store behind an engine.

    Raises:
        InvalidInputError: the engine is not of this machine.
    """
    if not isinstance(engine, LocalEngine):
        raise InvalidInputError("this needs a store of this machine", argument="database")
    return engine.attachment


class LocalEngine(WalksAll):
    """What this process shares of one store, with the settings of one handle."""

    def __init__(
        self, hold: Hold, settings: Settings, default: Callable[[Any], Any] | None = None
    ) -> None:
        self._default = default
        attachment = self.attachment = hold.attachment
        self._hold = hold
        self.settings = settings
        self.path: Path = attachment.directory.path
        self.name = str(self.path)
        self.database_id = attachment.database_id
        self._now_us = attachment.image.now_us
        self._chain = CHAIN_IDS[attachment.settings.chain]
        self._is_closed = False
        self.leaving: set[Leaves] = set()
        self._latest = LatestView(attachment.image.get, self.snapshot, self._now_us)
        self._direct = DirectSink(attachment.session, settings.timeout_s, default)

    def _begin(self) -> ImageSnapshot:
        if self._is_closed:
            closed()
        return self.attachment.image.snapshot(self.settings.snapshot_max_age_s)

    def _commit(self, body: bytes, *, sync: bool, timeout_s: float) -> Applied:
        if self._is_closed:
            closed()
        return self.attachment.session().commit(body, sync=sync, timeout_s=timeout_s)

    @property
    def durability(self) -> str:
        """How durable commits are, as the store was created."""
        return self.attachment.settings.durability

    def latest(self) -> LatestView:
        """The newest version at each call."""
        return self._latest

    def direct(self) -> DirectSink:
        """A commit for each write."""
        return self._direct

    def snapshot(self) -> SnapshotView:
        """One version, as of now."""
        return SnapshotView(self._begin(), self._now_us)

    def transaction(self, *, timeout_s: float | None, sync: bool) -> OptimisticTransaction:
        """A transaction that reads from now on."""
        draft = OptimisticTransaction(
            self._begin, self._commit, self._now_us, self.attachment, self, chain=self._chain,
            timeout_s=self.settings.timeout_s if timeout_s is None else timeout_s, sync=sync,
        )
        if self._default is not None:
            draft.default = self._default
        self.attachment.note(draft)
        return draft

    def wait(self, watched: Watched, deadline: float) -> None:
        """Sleep until something that a transaction has read has changed. See `Waiting.wait`."""
        self.attachment.waiting.wait(watched, deadline, lambda: self._is_closed)

    def pipeline(self, *, sync: bool) -> PipelinedWrites:
        """Writes without waiting for each."""
        pipeline = PipelinedWrites(self.attachment.session(), self.settings, sync=sync)
        pipeline.default = self._default
        self.attachment.note(pipeline)
        return pipeline

    def session(self) -> ThreadSessions:
        """Where commits go that somebody has put together himself."""
        return self.attachment.session()

    def stored(self) -> ImageSnapshot:
        """One version to read whole runs of."""
        return self.attachment.image.snapshot(WHOLE_RUN_S)

    def request(self, kind: int, timeout_s: float) -> tuple[int, Mapping[str, Any]]:
        """A question about the store as a whole: see `wire`."""
        answer: tuple[int, Mapping[str, Any]] = self.attachment.session().request(kind, timeout_s)
        return answer

    def pass_on(self, name: bytes) -> None:
        """Wake one more of those who wait by `View.for_one`."""
        self.attachment.waiting.sleeper.pass_on(name)

    def prefixes(self) -> Iterator[bytes]:
        """Every prefix that has records, in order: one look for each, whatever it holds."""
        start = b""
        snapshot = self._begin()
        try:
            while item := next(snapshot.scan(start, b"\xff" * MAX_KEY_BYTES), None):
                prefix = item[0][: item[0].index(0)]
                yield prefix
                start = prefix + b"\1"
        finally:
            snapshot.close()

    def check_there(self) -> None:
        """Raise DatabaseGoneError if what is at `path` is not this store any more."""
        self.attachment.check_there()

    def check(self) -> CheckReport:
        """Verify image, log, chains and indices in a process of its own."""
        self.check_there()
        return check_in_process(self.path)

    def backup(self, file: Path) -> BackupReport:
        """Copy one moment of the store to a new file, in a process of its own."""
        self.check_there()
        return backup_in_process(self.path, file)

    def is_same_store(self, other: Engine) -> bool:
        """Whether both serve one and the same store."""
        return isinstance(other, LocalEngine) and other.attachment is self.attachment

    def close(self) -> None:
        """Give it back; the last one in a process closes everything."""
        self._is_closed = True
        self.attachment.waiting.sleeper.wake()
        self._latest.close()
        self._direct.close()
        try:
            leave(self.leaving, self.attachment.session)
        finally:
            self._hold.release()
