"""Commands: what a client asks of the writer beside commits: status, sync, checkpoint, the clock set back."""

from __future__ import annotations

import os
from typing import Any

import msgpack

from inmem.config import SWEEP_LIMIT
from inmem.errors import InmemError, InvalidInputError, StoreFullError
from inmem.host.control import CLOCK, DURABLE, VERSION
from inmem.storage.environment import free_bytes
from inmem.storage.store import PublishError
from inmem.storage.wal.log import WalBrokenError
from inmem.wire import (
    APPLIED,
    CHECKPOINT,
    REFUSED,
    REPLY,
    REQUEST_HEADER,
    SET_BACK,
    STATUS,
    SYNC,
    answer,
    to_wire,
)
from inmem.writer.durability import end_process
from inmem.writer.journal import Journal
from inmem.writer.parts import Parts

journal = Journal()


class Commands:
    """Answers each at once, and a checkpoint when it is done."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def handle(self, peer: bytes, frame: bytes) -> None:
        """Answer one command; any other frame is dropped."""
        kind = frame[0]
        if kind not in (SYNC, STATUS, CHECKPOINT, SET_BACK) or len(frame) != REQUEST_HEADER.size:
            return
        number = REQUEST_HEADER.unpack(frame)[1]
        try:
            if kind == CHECKPOINT:
                self._want_checkpoint(peer, number)
                return
            if kind == SYNC:
                self._parts.log.sync()
                self._parts.control.words[DURABLE] = self._parts.log.durable_version
                result: Any = None
            elif kind == SET_BACK:
                result = self._set_back()
            else:
                result = self._status()
        except WalBrokenError:
            end_process()
        except InmemError as error:
            self._answer(peer, number, error)
        except (PublishError, OSError) as error:
            self._answer(peer, number, StoreFullError(f"there is no room: {error}"))
        else:
            self._answer(peer, number, result)

    def _answer(self, peer: bytes, number: int, result: Any) -> None:
        status, content = APPLIED, result
        if isinstance(result, InmemError):
            self._parts.refusals.add(result)
            status, content = REFUSED, to_wire(result)
        frame = answer(status, number, self._parts.committer.version, msgpack.packb(content), REPLY)
        self._parts.endpoint.mailbox.answer(peer, frame)

    def _want_checkpoint(self, peer: bytes, number: int) -> None:
        if self._parts.checkpoints is None:
            raise InvalidInputError(
                "a database with durability 'memory' has no log, so it has no checkpoints",
                hint="A backup copies it to the disk.",
            )
        self._parts.checkpoints.want(lambda result: self._answer(peer, number, result))

    def _set_back(self) -> dict[str, Any]:
        parts = self._parts
        committer, clock = parts.committer, parts.clock
        while committer.sweep(clock.now_us(), SWEEP_LIMIT):
            pass
        ahead_us = max(0, clock.ahead_us())
        expiries = committer.set_back(clock.now_us() - ahead_us, ahead_us) if ahead_us else 0
        parts.control.words[CLOCK] = clock.set_back()
        parts.control.words[VERSION] = committer.version
        journal.warning("clock_set_back", seconds=ahead_us / 1e6, expiries=expiries)
        return {"seconds": ahead_us / 1e6, "expiries": expiries}

    def _status(self) -> dict[str, Any]:
        parts = self._parts
        counters, store = parts.committer.counters, parts.generations.store
        store.measure()
        return {
            "writer_pid": os.getpid(),
            "epoch": parts.endpoint.epoch,
            "generation": parts.generations.number,
            "version": parts.committer.version,
            "durable_version": parts.log.durable_version,
            "durability": parts.settings.durability,
            "image_bytes": store.live_bytes,
            "image_file_bytes": store.file_bytes,
            "quota_bytes": store.quota_bytes,
            "wal_bytes": parts.log.bytes,
            "memory_free_bytes": free_bytes(store.path.parent),
            "clock_ahead_s": parts.clock.ahead_us() / 1e6,
            "clients": parts.greeter.clients(),
            "sessions": len(parts.committer.sessions),
            "oldest_snapshot_age_s": parts.generations.oldest_snapshot_age_s(),
            "commits": counters.commits,
            "conflicts": counters.conflicts,
            "failures": counters.failures,
            "batches": counters.batches,
            "repeated": counters.repeated,
            "expired": counters.expired,
            "groups": parts.sampler.groups,
            "group_s": parts.sampler.group_s,
            "hot": parts.sampler.hottest(),
        }
