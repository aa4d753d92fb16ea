"""The writer: the one process that changes a store.

Invariant: only the holder of the writer's lock touches store, log and control
file; messages are handled one group at a time; a message that does not parse
changes nothing. It knows procedures by name and no facades.

The loop: take what has arrived, bounded; decide and publish it as one group;
answer all. Under load groups form by themselves, so the cost of the log and
of publishing is shared (group commit).
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from inmem.host import failpoints
from inmem.host.clock import StoreClock
from inmem.host.control import ACTIVE, CLOCK, DURABLE, EPOCH, VERSION, boot_id, pid_namespace
from inmem.host.directory import DataDirectory, leave_runtime_directory, runtime_directory
from inmem.host.files import FileLock
from inmem.primitives.events.rules import CHAIN_IDS
from inmem.primitives.server import PROCEDURES
from inmem.storage.environment import Table, free_bytes, remove_image, remove_images
from inmem.storage.recovery import Recovered, recover
from inmem.storage.wal.log import WalBrokenError
from inmem.wire import COMMIT, COMMIT_HEADER, COMMITS, FLAG_SYNC, GOODBYE, HELLO, apart
from inmem.writer.bulk import BulkWork
from inmem.writer.checkpoints import Checkpoints
from inmem.writer.commands import Commands
from inmem.writer.committer import Answer, Committer, Log, NoLog, Request
from inmem.writer.durability import IntervalSync, end_process
from inmem.writer.endpoint import Endpoint
from inmem.writer.generations import Generations
from inmem.writer.greeting import Greeter
from inmem.writer.housekeeping import Housekeeping
from inmem.writer.journal import Journal
from inmem.writer.mailbox import TICK_S
from inmem.writer.orphans import remove_orphans
from inmem.writer.outcomes import Sessions
from inmem.writer.parts import Parts
from inmem.writer.presence import Presence
from inmem.writer.refusals import Refusals
from inmem.writer.sampler import Sampler
from inmem.writer.suspects import Suspects
from inmem.writer.waking import Waking

_GROUPS_PER_COUNT: Final = 8  # counting costs as much as decoding a put
_RECENT: Final = 32  # commits: the number of their sessions says how many commit now
_GROUPS_PER_MEASUREMENT: Final = 32  # of the image's file, which grows by 20 KiB a group at most
_SLOW_REPORT_S: Final = 1.0  # between two reports of slow groups

_COMMIT: Final = bytes([COMMIT])
_tuple: Final = tuple.__new__  # that of a NamedTuple is a function of Python, twice as slow

journal = Journal()


class Writer:
    """One incarnation of the writer. `start`, then `run`, then `stop`."""

    def __init__(self, directory: DataDirectory, lock: FileLock, *, stays: bool) -> None:
        """`lock` is the writer's, held; one that `stays` does not leave with its last client."""
        self.directory = directory
        self._presence = Presence(directory, lock)
        self._stays = stays
        self._stopping = threading.Event()
        self._recent: deque[bytes] = deque(maxlen=_RECENT)  # sessions of the last commits
        self._next_slow_report = 0.0
        self._syncer: IntervalSync | None = None  # in `buffered` mode

    def start(self) -> None:
        """Recover the store, open the endpoint, and publish both in the control file."""
        directory = self.directory
        self._identity = identity = directory.identity()
        settings = identity.settings
        self._slow_s = settings.slow_commit_ms / 1000
        control = directory.control(writable=True)
        old_offset = control.words[CLOCK] if (s := control.read()) and s.boot == boot_id() else None
        suspects = Suspects(control.page)
        suspects.take_over(control.words[EPOCH], same_boot=control.boot() == boot_id())
        recovered = recover(directory, identity, control, failpoints.reached)
        _report(recovered)
        store, epoch = recovered.store, recovered.epoch
        log: Log = recovered.log or NoLog()
        checkpoints = None
        if recovered.log is not None:
            recovered.log.watch(failpoints.reached)
            checkpoints = Checkpoints(directory, settings, recovered.log, failpoints.reached)
        clock = StoreClock(recovered.clock_us, offset=old_offset)
        sessions = Sessions(
            store.items(Table.SESSIONS), ttl_s=settings.session_ttl_s, max_in_flight=settings.max_in_flight,
        )
        waking = Waking(directory.wait_file)
        committer = Committer(
            store, log, sessions, version=recovered.version, epoch=epoch, owner=recovered.owner,
            chain=CHAIN_IDS[settings.chain], always_sync=settings.durability == "sync",
            procedures=PROCEDURES,
            reached=failpoints.hook, suspects=suspects, waking=waking,
        )
        suspects.begin(epoch)
        stem = directory.stem(identity)
        remove_images(store.path.parent, stem, store.path)
        remove_orphans(runtime_directory())
        directory.remove_leftovers()
        committer.begin_epoch(epoch, clock.now_us())
        endpoint, refusals = Endpoint(stem, epoch), Refusals()
        self._parts = parts = Parts(
            settings, control, clock, log, committer, endpoint,
            Generations(
                store, recovered.generation, stem=stem, origin=directory.path, control=control,
                committer=committer,
            ),
            Greeter(sessions, endpoint, refusals, identity.database_id), checkpoints, Sampler(), refusals,
            waking,
        )
        self._commands = Commands(parts)
        self._housekeeping = Housekeeping(
            parts, self._presence, stays=self._stays, stopping=self._stopping
        )
        store.announce = control.say_dead
        control.update(
            image=str(store.path), endpoint=endpoint.address, boot=boot_id(),
            generation=recovered.generation, epoch=epoch, clock=clock.offset, version=committer.version,
            durable=log.durable_version, pid=os.getpid(), namespace=pid_namespace(),
        )
        control.say_dead(bool(store.purges))  # readers of the image before go on to this one first
        control.flush()
        waking.everything()  # the writer before may have died in the middle of it
        free = free_bytes(store.path.parent)
        if free + store.file_bytes < 2 * settings.quota_bytes:
            journal.warning(
                "little_memory", path=store.path.parent, free_bytes=free, quota_bytes=settings.quota_bytes,
                problem="too few for two generations: a reader that is stuck may fill it",
            )
        if settings.durability == "buffered":
            self._syncer = IntervalSync(log, settings.fsync_interval_ms / 1000, self._stopping)
        journal.info("serving", endpoint=endpoint.address, durability=settings.durability)

    def request_stop(self) -> None:
        """End `run` within a second; safe in a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Serve until asked to stop, or until the last client has left for `linger_s`."""
        parts = self._parts
        limit, words, endpoint = parts.settings.batch_limit, parts.control.words, parts.endpoint
        bulk = BulkWork(parts)
        next_tick = 0.0
        groups = 0
        wait_s = TICK_S
        is_busy = False  # since the last slice of bulk work
        is_active = False  # since the last tick
        syncer, waking = self._syncer, parts.waking
        while not self._stopping.is_set():
            patience_s = min(wait_s, waking.pay()) if waking.owed or waking.handed_out else wait_s
            messages = endpoint.mailbox.take(limit, words[ACTIVE], patience_s)
            if messages:
                if parts.generations.store.purges:
                    bulk.make_room()
                self._handle(messages)
                groups += 1
                if groups % _GROUPS_PER_COUNT == 0:
                    words[ACTIVE] = len(set(self._recent))
                is_busy = is_active = True
                if groups % _GROUPS_PER_MEASUREMENT == 0:
                    parts.generations.switch_if_pinned(time.monotonic())
            now = time.monotonic()
            if now >= bulk.due:
                bulk.do_slice(is_busy=is_busy)
                is_busy = False
                wait_s = min(TICK_S, max(0.0, bulk.due - now))
            if now >= next_tick or (is_active and next_tick - now > TICK_S):
                next_tick = self._housekeeping.tick(now, is_active=is_active)
                is_active = False
                bulk.plan(now)
                wait_s = max(0.0, min(next_tick, bulk.due) - now)
            if syncer is not None and syncer.is_asleep:
                syncer.look()

    def stop(self) -> None:
        """Leave cleanly: everything durable, nothing in memory, no socket, no pid."""
        self._stopping.set()
        if self._syncer is not None:
            self._syncer.look()
        parts = self._parts
        if parts.checkpoints is not None:
            parts.checkpoints.abandon(is_ours=self._presence.owns_directory())
        parts.log.sync()
        parts.endpoint.close()
        parts.waking.pay(at_once=True)
        parts.control.update(
            pid=0, image="", endpoint="", version=parts.committer.version,
            durable=parts.log.durable_version,
        )
        parts.control.flush()
        parts.log.close()
        store = parts.generations.store
        store.close()
        remove_image(store.path)
        parts.refusals.report(parts.committer.counters)
        journal.info("stopped", version=parts.committer.version)
        if self._identity.ephemeral and self._presence.owns_directory():
            self.directory.remove()
        self._presence.close()
        leave_runtime_directory()

    def _handle(self, messages: list[tuple[bytes, bytes]]) -> None:
        """Decide the commits among the messages as one group; answer these, then all others."""
        parts = self._parts
        requests: list[Request] = []
        peers: list[bytes] = []
        others: list[tuple[bytes, bytes]] = []
        unpack, size = COMMIT_HEADER.unpack_from, COMMIT_HEADER.size
        for peer, frame in messages:
            if frame[0] == COMMIT and len(frame) > size:
                _, flags, session, sequence, answered_below = unpack(frame)
                requests.append(
                    _tuple(Request, (session, sequence, answered_below, frame[size:], flags & FLAG_SYNC != 0))
                )
                peers.append(peer)
            elif frame[0] == COMMITS:
                for each in apart(frame):
                    if each[:1] == _COMMIT and len(each) > size:
                        _, flags, session, sequence, answered_below = unpack(each)
                        requests.append(_tuple(
                            Request, (session, sequence, answered_below, each[size:], flags & FLAG_SYNC != 0)
                        ))
                        peers.append(peer)
            else:
                others.append((peer, frame))
        registered = [
            (peer, parts.greeter.register(frame, peer, parts.clock.now_us()))
            for peer, frame in others if frame[0] == HELLO
        ] if others else []
        if requests or parts.committer.sessions.must_write:
            began = time.monotonic()
            parts.endpoint.deliver(requests, peers, self._commit(requests))
            if requests:
                sampler, now = parts.sampler, time.monotonic()
                sampler.groups += 1
                sampler.group_s += now - began
                if now >= sampler.due or now - began >= self._slow_s:
                    self._observe(requests, now, now - began)
        for peer, outcome in registered:
            parts.greeter.welcome(peer, outcome)
        for peer, frame in others:
            if frame[0] == GOODBYE:
                parts.greeter.goodbye(peer, frame)
            else:
                self._commands.handle(peer, frame)

    def _commit(self, requests: Sequence[Request]) -> list[Answer]:
        parts = self._parts
        try:
            answers = parts.committer.commit(requests, parts.clock.now_us())
        except WalBrokenError:
            end_process()
        words = parts.control.words
        words[VERSION] = parts.committer.version
        words[DURABLE] = parts.log.durable_version
        for request in requests[-_RECENT:]:
            self._recent.append(request.session)
        if failpoints.hook is not None:
            failpoints.hook("answering")
        return answers

    def _observe(self, requests: Sequence[Request], now: float, took_s: float) -> None:
        """Take a sample of a group, and report one that was slow."""
        self._parts.sampler.look(requests, now)
        if took_s >= self._slow_s and now >= self._next_slow_report:
            self._next_slow_report = now + _SLOW_REPORT_S
            journal.warning(
                "slow", seconds=took_s, commits=len(requests), bytes=sum(len(r.body) for r in requests)
            )


def _report(recovered: Recovered) -> None:
    """Write what recovery found into the journal."""
    report = recovered.report
    journal.info(
        "recovered", adopted=report.adopted, reason=report.reason, checkpoint=report.checkpoint,
        replayed=report.replayed, seconds=report.seconds, version=recovered.version,
        epoch=recovered.epoch, generation=recovered.generation,
    )
    if report.torn:
        journal.warning("torn", problem=f"torn tail cut: {report.torn}")
