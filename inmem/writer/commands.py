"""Commands: what a client asks of the writer beside commits: status, sync and checkpoint."""

from __future__ import annotations

import os
from typing import Any

import msgpack

from inmem.commit.committer import Committer, Log
from inmem.config import Settings
from inmem.errors import InmemError, InvalidInputError, to_wire
from inmem.host.control import DURABLE, Control
from inmem.storage.environment import free_bytes
from inmem.storage.wal.log import WalBrokenError
from inmem.wire import APPLIED, CHECKPOINT, REFUSED, REPLY, REQUEST_HEADER, STATUS, SYNC, answer
from inmem.writer.checkpoints import Checkpoints
from inmem.writer.durability import end_process
from inmem.writer.endpoint import Endpoint
from inmem.writer.generations import Generations
from inmem.writer.greeting import Greeter
from inmem.writer.refusals import Refusals
from inmem.writer.sampler import Sampler


class Commands:
    """Answers each at once, and a checkpoint when it is done."""

    def __init__(
        self, settings: Settings, control: Control, log: Log, committer: Committer, endpoint: Endpoint,
        generations: Generations, greeter: Greeter, sampler: Sampler, refusals: Refusals,
        checkpoints: Checkpoints | None,
    ) -> None:
        self._settings = settings
        self._control = control
        self._log = log
        self._committer = committer
        self._endpoint = endpoint
        self._generations = generations
        self._greeter = greeter
        self._sampler = sampler
        self._refusals = refusals
        self._checkpoints = checkpoints

    def handle(self, peer: bytes, frame: bytes) -> None:
        """Answer one command; any other frame is dropped."""
        kind = frame[0]
        if kind not in (SYNC, STATUS, CHECKPOINT) or len(frame) != REQUEST_HEADER.size:
            return
        number = REQUEST_HEADER.unpack(frame)[1]
        try:
            if kind == CHECKPOINT:
                self._want_checkpoint(peer, number)
                return
            if kind == SYNC:
                self._log.sync()
                self._control.words[DURABLE] = self._log.durable_version
                result: Any = None
            else:
                result = self._status()
        except WalBrokenError:
            end_process()
        except InmemError as error:
            self._answer(peer, number, error)
        else:
            self._answer(peer, number, result)

    def _answer(self, peer: bytes, number: int, result: Any) -> None:
        status, content = APPLIED, result
        if isinstance(result, InmemError):
            self._refusals.add(result)
            status, content = REFUSED, to_wire(result)
        frame = answer(status, number, self._committer.version, msgpack.packb(content), REPLY)
        self._endpoint.mailbox.answer(peer, frame)

    def _want_checkpoint(self, peer: bytes, number: int) -> None:
        if self._checkpoints is None:
            raise InvalidInputError(
                "a database with durability 'memory' has no log, so it has no checkpoints",
                hint="A backup copies it to the disk.",
            )
        self._checkpoints.want(lambda result: self._answer(peer, number, result))

    def _status(self) -> dict[str, Any]:
        counters = self._committer.counters
        store = self._generations.store
        store.measure()
        return {
            "writer_pid": os.getpid(),
            "epoch": self._endpoint.epoch,
            "generation": self._generations.number,
            "version": self._committer.version,
            "durable_version": self._log.durable_version,
            "durability": self._settings.durability,
            "image_bytes": store.live_bytes,
            "image_file_bytes": store.file_bytes,
            "quota_bytes": store.quota_bytes,
            "wal_bytes": self._log.bytes,
            "memory_free_bytes": free_bytes(store.path.parent),
            "clients": self._greeter.clients(),
            "sessions": len(self._committer.sessions),
            "oldest_snapshot_age_s": self._generations.oldest_snapshot_age_s(),
            "commits": counters.commits,
            "conflicts": counters.conflicts,
            "failures": counters.failures,
            "batches": counters.batches,
            "repeated": counters.repeated,
            "expired": counters.expired,
            "groups": self._sampler.groups,
            "group_s": self._sampler.group_s,
            "hot": self._sampler.hottest(),
        }
