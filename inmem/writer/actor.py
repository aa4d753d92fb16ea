"""The writer: one process that owns the store and the log, and its mailbox.

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
from collections import Counter, deque
from pathlib import Path
from typing import Any, Final

import msgpack

from inmem import failpoints
from inmem.board import RESULT_BYTES, RING
from inmem.clock import StoreClock
from inmem.commit.committer import Answer, Committer, Log, NoLog, Request
from inmem.commit.outcomes import Sessions
from inmem.commit.procedures import PROCEDURES
from inmem.config import (
    FORMAT_VERSION,
    MIB,
    PROTOCOL_VERSION,
    SWEEP_LIMIT,
)
from inmem.control import ACTIVE, CLOCK, DURABLE, VERSION, boot_id, pid_namespace
from inmem.directory import DataDirectory, leave_runtime_directory, runtime_directory
from inmem.errors import (
    BusyError,
    FormatVersionError,
    InmemError,
    InvalidInputError,
    StoreFullError,
    to_wire,
)
from inmem.files import FileLock, make_private_dir
from inmem.model.event_log import CHAIN_IDS
from inmem.storage.environment import Table, create_image, free_bytes, remove_image, remove_images
from inmem.storage.recovery import recover
from inmem.storage.store import PublishError
from inmem.storage.wal import WalBrokenError
from inmem.wire import (
    APPLIED,
    CHECKPOINT,
    COMMIT,
    COMMIT_HEADER,
    FAILED,
    FLAG_SYNC,
    GOODBYE,
    GOODBYE_HEADER,
    HELLO,
    REFUSED,
    REPLY,
    REQUEST_HEADER,
    STATUS,
    SYNC,
    answer,
    parse_hello,
    welcome,
)
from inmem.writer.checkpointer import Checkpointer
from inmem.writer.journal import Journal
from inmem.writer.mailbox import TICK_S, Mailbox
from inmem.writer.orphans import remove_orphans
from inmem.writer.presence import GONE, Presence
from inmem.writer.sampler import Sampler
from inmem.writer.slots import Slots, make_board
from inmem.writer.watch import Watch

_SLOW_TICK_S: Final = 5.0  # dead readers, idle sessions, stale files
_WATCH_S: Final = 1.0  # between two looks at the writer's own files
_ACTIVE_AMONG: Final = 32  # commits: how many sessions they are of tells clients whether to spin
_RELIEVE_EVERY: Final = 32  # groups between two looks at the size of the image: 20 KiB each at most
_SWITCH_RETRY_S: Final = 5.0  # after a switch that found no memory
_TELL_SLOW_S: Final = 1.0  # between two lines about slow groups
_NOT_DURABLE: Final = "the log cannot be made durable: stopping, what is unanswered stays so"
_TICKS: Final = 18_000  # an hour of ticks: the longest that a snapshot may be open

log = Journal()


class Writer:
    """One incarnation of the writer. `start`, then `run`, then `stop`."""

    def __init__(self, directory: DataDirectory, lock: FileLock, *, foreground: bool) -> None:
        self.directory = directory
        self._presence = Presence(directory, lock)
        self._foreground = foreground
        self._stopping = threading.Event()
        self._sampler = Sampler()
        self._committed_last: deque[bytes] = deque(maxlen=_ACTIVE_AMONG)  # sessions of the last commits
        self._peers: dict[bytes, int] = {}  # peer -> pid, for the status
        self._next_slow = 0.0
        self._next_watch = 0.0
        self._no_switch_before = 0.0
        self._tell_slow_after = 0.0
        self._refused: Counter[str] = Counter()  # requests by code, since they were told
        self._told: Counter[str] = Counter()  # commits, as they were counted then
        self._next_timer = 0.0
        self._ticks: deque[tuple[int, float]] = deque(maxlen=_TICKS)  # last transaction at each tick

    def start(self) -> None:
        """Recover, bind, and tell everybody through the control file."""
        directory = self.directory
        self._identity = identity = directory.identity()
        self._settings = settings = identity.settings
        self._slow_s = settings.slow_commit_ms / 1000
        self._control = control = directory.control(writable=True)
        old_offset = control.words[CLOCK] if (s := control.read()) and s.boot == boot_id() else None
        recovered = recover(directory, identity, control, failpoints.reached)
        report = recovered.report
        log.info(
            "recovered", adopted=report.adopted, reason=report.reason, checkpoint=report.checkpoint,
            replayed=report.replayed, seconds=report.seconds, version=recovered.version,
            epoch=recovered.epoch, generation=recovered.generation,
        )
        if report.torn:
            log.warning("torn", problem=f"torn tail cut: {report.torn}")
        self._store = recovered.store
        self._log: Log = recovered.log or NoLog()
        self._checkpointer: Checkpointer | None = None
        self._wanted: list[tuple[bytes, int]] = []  # who waits for the checkpoint under way
        self._wanted_next: list[tuple[bytes, int]] = []  # who asked since it began
        if recovered.log is not None:
            recovered.log.watch(failpoints.reached)
            self._checkpointer = Checkpointer(directory, settings, recovered.log, failpoints.reached)
        self._clock = StoreClock(recovered.clock_us, offset=old_offset)
        sessions = Sessions(
            self._store.items(Table.SESSIONS), ttl_s=settings.session_ttl_s,
            max_in_flight=settings.max_in_flight,
        )
        self._committer = Committer(
            self._store, self._log, sessions, version=recovered.version, epoch=recovered.epoch,
            owner=recovered.owner, chain=CHAIN_IDS[settings.chain],
            always_sync=settings.durability == "sync", procedures=PROCEDURES, reached=failpoints.reached,
        )
        self._generation = recovered.generation
        self._stem = directory.stem(identity)
        remove_images(self._store.path.parent, self._stem, self._store.path)
        remove_orphans(runtime_directory())
        self._open_doors(recovered.epoch)
        control.update(
            image=str(self._store.path), endpoint=self._mailbox.endpoint, boot=boot_id(),
            generation=self._generation, epoch=self._epoch, clock=self._clock.offset,
            version=self._committer.version, durable=self._log.durable_version,
            pid=os.getpid(), namespace=pid_namespace(),
        )
        control.flush()
        self._image_files = Watch(self._store.files)
        free = free_bytes(self._store.path.parent)
        if free + self._store.file_bytes < 2 * settings.quota_bytes:
            log.warning(
                "little_memory", path=self._store.path.parent, free_bytes=free,
                quota_bytes=settings.quota_bytes,
                problem="too few for two generations: a reader that is stuck may fill it",
            )
        if settings.durability == "buffered":
            threading.Thread(target=self._sync_forever, name="fsync", daemon=True).start()
        log.info("serving", endpoint=self._mailbox.endpoint, durability=settings.durability)

    def _open_doors(self, epoch: int) -> None:
        """Socket and answer board of an epoch; the log and the image say that it began."""
        self._epoch = epoch
        self._committer.begin_epoch(epoch, self._clock.now_us())
        runtime = runtime_directory()
        for ending in ("sock", "answers"):
            for stale in runtime.glob(f"{self._stem}*.{ending}"):
                stale.unlink(missing_ok=True)
        self._mailbox = Mailbox(runtime / f"{self._stem}{epoch}.sock")
        self._board = make_board(runtime / f"{self._stem}{epoch}.answers")
        self._slots = Slots(self._board)
        self._mailbox.watch_lanes(self._slots)
        self._door_files = Watch(
            door.path for door in (self._mailbox, self._board) if door is not None
        )

    def request_stop(self) -> None:
        """End `run` within a tick; safe in a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Serve until asked to stop, or until the last client has left for `linger_s`."""
        limit = self._settings.batch_limit
        groups = 0
        while not self._stopping.is_set():
            messages = self._mailbox.take(limit, self._control.words[ACTIVE])
            if messages:
                self._handle(messages)
                groups += 1
                if groups % _RELIEVE_EVERY == 0:
                    self._relieve(time.monotonic())
            now = time.monotonic()
            if now >= self._next_timer:
                self._next_timer = now + TICK_S
                self._on_timer(now)

    def stop(self) -> None:
        """Leave cleanly: everything durable, nothing in memory, no socket, no pid."""
        self._stopping.set()
        if self._checkpointer is not None:
            self._checkpointer.abandon()
        self._log.sync()
        self._mailbox.close()
        if self._board is not None:
            self._board.path.unlink(missing_ok=True)
            self._board.close()
        self._control.update(
            pid=0, image="", endpoint="", version=self._committer.version,
            durable=self._log.durable_version,
        )
        self._control.flush()
        self._log.close()
        self._store.close()
        remove_image(self._store.path)
        self._tell_refusals()
        log.info("stopped", version=self._committer.version)
        if self._identity.ephemeral and self._presence.owns_directory():
            self.directory.remove()
        leave_runtime_directory()

    # --- messages -------------------------------------------------------------------

    def _handle(self, messages: list[tuple[bytes, bytes]]) -> None:
        requests: list[Request] = []
        peers: list[bytes] = []
        later: list[tuple[bytes, bytes]] = []  # frames that wait for the group
        unpack, size = COMMIT_HEADER.unpack_from, COMMIT_HEADER.size
        for peer, frame in messages:
            if frame[0] == COMMIT and len(frame) > size:
                _, flags, session, sequence, answered_below = unpack(frame)
                requests.append(
                    Request(session, sequence, answered_below, frame[size:], flags & FLAG_SYNC != 0)
                )
                peers.append(peer)
            else:
                later.append((peer, frame))
        greeted = [(peer, self._greet(peer, frame)) for peer, frame in later if frame[0] == HELLO]
        if requests or self._committer.sessions.must_write:
            began = time.monotonic()
            self._answer(requests, peers, self._commit(requests))
            if requests:
                sampler, now = self._sampler, time.monotonic()
                sampler.groups += 1
                sampler.group_s += now - began
                if now >= sampler.due or now - began >= self._slow_s:
                    self._look_at(requests, now, now - began)
        for peer, greeting in greeted:
            self._welcome(peer, greeting)
        for peer, frame in later:
            self._reply(peer, frame)

    def _look_at(self, requests: list[Request], now: float, took_s: float) -> None:
        """Of a group that was slow, tell; of any other, take a sample."""
        self._sampler.look(requests, now)
        if took_s >= self._slow_s and now >= self._tell_slow_after:
            self._tell_slow_after = now + _TELL_SLOW_S
            log.warning(
                "slow", seconds=took_s, commits=len(requests), bytes=sum(len(r.body) for r in requests)
            )

    def _answer(self, requests: list[Request], peers: list[bytes], answers: list[Answer]) -> None:
        """Small answers go onto the board, others through the socket; then everybody is woken."""
        slots = self._slots
        board = self._board
        posted = []
        for request, peer, (status, sequence, version, result) in zip(requests, peers, answers, strict=True):
            slot = slots.get(request.session)
            if slot < 0 or board is None:
                self._mailbox.answer(peer, answer(status, sequence, version, result))
                continue
            posted.append(slot)
            if (
                status <= FAILED and len(result) <= RESULT_BYTES
                and sequence - request.answered_below < RING
            ):
                board.post(slot, sequence, status, version, result)
            else:
                self._mailbox.answer(peer, answer(status, sequence, version, result))
                board.announce(slot)
        if board is not None:
            board.wake(posted)

    def _commit(self, requests: list[Request]) -> list[Answer]:
        try:
            answers = self._committer.commit(requests, self._clock.now_us())
        except WalBrokenError:
            log.critical("log_broken", trace=True, problem=_NOT_DURABLE)
            os._exit(os.EX_IOERR)
        words = self._control.words
        words[VERSION] = self._committer.version
        words[DURABLE] = self._log.durable_version
        self._committed_last.extend(request.session for request in requests[-_ACTIVE_AMONG:])
        words[ACTIVE] = len(set(self._committed_last))
        failpoints.reached("answering")
        return answers

    def _greet(self, peer: bytes, frame: bytes) -> tuple[bytes, bool] | InmemError | None:
        """Register the session of a HELLO: (session, resumed). Its WELCOME waits for the group."""
        try:
            fields = parse_hello(frame)
        except ValueError:
            return None
        session: bytes = fields["session"]
        try:
            self._check_hello(fields)
            if session not in self._committer.sessions and not fields["resume"]:
                self._committer.sessions.register(session, self._clock.now_us())
        except InmemError as error:
            self._refused[error.code] += 1
            return error
        self._peers[peer] = fields["pid"]
        return session, fields["resume"]

    def _welcome(self, peer: bytes, greeting: tuple[bytes, bool] | InmemError | None) -> None:
        sessions = self._committer.sessions
        if greeting is None:
            return
        if isinstance(greeting, InmemError):
            frame = welcome(error=to_wire(greeting))
        elif greeting[0] not in sessions and not greeting[1]:
            problem = StoreFullError("the session could not be registered: image or log are full")
            frame = welcome(error=to_wire(problem))
        else:
            session = greeting[0]
            known = session in sessions
            slot = self._slots.give(session, self._peers[peer], peer) if known else -1
            frame = welcome(
                epoch=self._epoch, known=known,
                last=sessions.last_sequence(session) if known else 0,
                slot=slot, board=str(self._board.path) if self._board is not None else "",
            )
        self._mailbox.answer(peer, frame)

    def _check_hello(self, fields: dict[str, Any]) -> None:
        for name, ours in (("protocol", PROTOCOL_VERSION), ("format", FORMAT_VERSION)):
            if fields[name] != ours:
                raise FormatVersionError(
                    f"the client speaks {name} version {fields[name]}, the writer {ours}",
                    found=fields[name], supported=ours,
                    hint="Use one release of inmem in all programs that share a store.",
                )
        if fields["database"] != self._identity.database_id:
            raise BusyError("this socket serves another database", what="database")

    def _reply(self, peer: bytes, frame: bytes) -> None:
        kind = frame[0]
        if kind == GOODBYE and len(frame) == GOODBYE_HEADER.size:
            session = GOODBYE_HEADER.unpack(frame)[1]
            self._committer.sessions.drop(session)
            self._slots.take(session)
            self._peers.pop(peer, None)
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
            log.critical("log_broken", trace=True, problem=_NOT_DURABLE)
            os._exit(os.EX_IOERR)
        except InmemError as error:
            self._tell(peer, number, error)
        else:
            self._tell(peer, number, result)

    def _tell(self, peer: bytes, number: int, result: Any) -> None:
        """Answer a request that is no commit: with its result, or an error."""
        status, content = APPLIED, result
        if isinstance(result, InmemError):
            self._refused[result.code] += 1
            status, content = REFUSED, to_wire(result)
        frame = answer(status, number, self._committer.version, msgpack.packb(content), REPLY)
        self._mailbox.answer(peer, frame)

    # --- checkpoints ----------------------------------------------------------------

    def _want_checkpoint(self, peer: bytes, number: int) -> None:
        if self._checkpointer is None:
            raise InvalidInputError(
                "a database with durability 'memory' has no log, so it has no checkpoints",
                hint="A backup copies it to the disk.",
            )
        # One that is under way may have begun before what the caller wants to see in it.
        if self._checkpointer.running:
            self._wanted_next.append((peer, number))
        else:
            self._wanted.append((peer, number))
            self._begin_checkpoint(self._checkpointer)

    def _begin_checkpoint(self, checkpointer: Checkpointer) -> None:
        try:
            checkpointer.begin()
        except WalBrokenError:
            log.critical("log_broken", trace=True, problem=_NOT_DURABLE)
            os._exit(os.EX_IOERR)
        except OSError as error:
            self._end_checkpoint(StoreFullError(f"no checkpoint can be begun: {error}"))

    def _end_checkpoint(self, result: dict[str, Any] | InmemError) -> None:
        if isinstance(result, InmemError):
            log.warning("checkpoint_failed", error=result)
        for peer, number in self._wanted:
            self._tell(peer, number, result)
        self._wanted, self._wanted_next = self._wanted_next, []

    def _drive_checkpoint(self, now: float) -> None:
        checkpointer = self._checkpointer
        if checkpointer is None:
            return
        try:
            result = checkpointer.finish()
        except WalBrokenError:
            log.critical("log_broken", trace=True, problem=_NOT_DURABLE)
            os._exit(os.EX_IOERR)
        if result is not None:
            self._end_checkpoint(result)
        if not checkpointer.running and (self._wanted or checkpointer.is_due(now, self._store.live_bytes)):
            self._begin_checkpoint(checkpointer)

    def _status(self) -> dict[str, Any]:
        counters = self._committer.counters
        alive = {pid for pid in self._peers.values() if Path(f"/proc/{pid}").exists()}
        self._store.measure()
        return {
            "writer_pid": os.getpid(),
            "epoch": self._epoch,
            "generation": self._generation,
            "version": self._committer.version,
            "durable_version": self._log.durable_version,
            "durability": self._settings.durability,
            "image_bytes": self._store.live_bytes,
            "image_file_bytes": self._store.file_bytes,
            "quota_bytes": self._store.quota_bytes,
            "wal_bytes": self._log.bytes,
            "memory_free_bytes": free_bytes(self._store.path.parent),
            "clients": len(alive),
            "sessions": len(self._committer.sessions),
            "oldest_snapshot_age_s": self._oldest_snapshot_age_s(),
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

    # --- generations, and files that vanish --------------------------------------------

    def _relieve(self, now: float) -> None:
        """Leave the image to a reader that has pinned too much of it, and go on in a copy."""
        if now >= self._no_switch_before and self._store.is_held_up():
            self._switch(f"an old snapshot pins {self._store.file_bytes - self._store.live_bytes} bytes", now)

    def _switch(self, why: str, now: float) -> None:
        """Go on in a copy of the image, the next generation; readers follow at their next read.

        Commits wait meanwhile, about a second a gigabyte. A reader that is in
        the old image keeps what it sees, and its memory, until it goes on.
        """
        old = self._store
        parent = old.path.parent
        path = parent / f"{self._stem}{self._generation + 1}.image"
        began = time.monotonic()
        try:
            make_private_dir(parent)
            free = free_bytes(parent)
            if free < old.live_bytes + old.live_bytes // 4 + MIB:
                raise StoreFullError(f"{parent} has {free} bytes free")
            create_image(parent, self._stem, self._generation + 1, self.directory.path)
            store = old.copy_to(path)
        except (PublishError, InmemError, OSError) as error:
            remove_image(path)
            log.warning("no_switch", problem=f"no switch of generation: {error}", why=why)
            self._no_switch_before = now + _SWITCH_RETRY_S
            return
        failpoints.reached("generation_copied")
        self._committer.move_to(store)
        self._store = store
        self._generation += 1
        self._control.update(image=str(path), generation=self._generation)
        failpoints.reached("generation_marked")
        self._image_files = Watch(store.files)
        self._ticks.clear()  # they count transactions of the old image
        old.close()
        remove_image(old.path)
        log.warning(
            "generation", generation=self._generation, bytes=store.file_bytes,
            seconds=time.monotonic() - began, why=why,
        )

    def _look_after_files(self, now: float) -> None:
        """Notice what was removed under this writer, and put it right or leave."""
        if not self._presence.owns_directory():
            log.critical("leaving", problem="the data directory was removed or replaced")
            self._stopping.set()
            return
        self._presence.look_after_locks()
        missing = self._image_files.missing()
        if missing and now >= self._no_switch_before:
            self._switch(f"{missing[0]} {GONE}", now)
        missing = self._door_files.missing()
        if missing:
            # As if another writer had come: clients see the epoch, connect, and send what is unanswered.
            log.warning("file_gone", path=missing[0], problem=GONE, action="opening anew")
            mailbox, board = self._mailbox, self._board
            self._open_doors(self._epoch + 1)
            self._control.update(endpoint=self._mailbox.endpoint, epoch=self._epoch)
            mailbox.close()
            if board is not None:
                board.close()
            self._peers.clear()

    # --- timers ---------------------------------------------------------------------

    def _on_timer(self, now: float) -> None:
        self._control.words[CLOCK] = self._clock.follow_wall()
        self._control.words[DURABLE] = self._log.durable_version
        self._sweep()
        self._drive_checkpoint(now)
        self._relieve(now)
        if now >= self._next_watch:
            self._next_watch = now + _WATCH_S
            self._look_after_files(now)
        self._ticks.append((self._store.last_transaction(), now))
        if now >= self._next_slow:
            self._next_slow = now + _SLOW_TICK_S
            self._committer.sessions.expire(self._clock.now_us())
            self._sampler.forget()
            self._tell_refusals()
            self._forget_the_dead()
        self._store.free_dead_readers()
        if not self._foreground and self._presence.is_deserted(now, self._settings.linger_s):
            log.info("last_client_left")
            self._stopping.set()

    def _oldest_snapshot_age_s(self) -> float | None:
        """Since when the oldest open snapshot is not of the newest version; None without any."""
        pinned = self._store.oldest_pinned()
        if pinned is None:
            return None
        later = next((when for last, when in self._ticks if last > pinned), None)
        return 0.0 if later is None else time.monotonic() - later

    def _forget_the_dead(self) -> None:
        """A session ends with its process: nobody can ask for its outcomes any more."""
        dead = {pid for pid in set(self._peers.values()) if not Path(f"/proc/{pid}").exists()}
        if dead:
            self._peers = {peer: pid for peer, pid in self._peers.items() if pid not in dead}
            for session in self._slots.take_all(dead):
                self._committer.sessions.drop(session)

    def _tell_refusals(self) -> None:
        """What was refused since the last time, in one line however much it was."""
        counters = self._committer.counters
        counted = Counter(conflicts=counters.conflicts, failures=counters.failures - counters.conflicts)
        refused = self._refused + (counted - self._told)
        self._told = counted
        self._refused.clear()
        conflicts = refused.pop("conflicts", 0)
        if refused:
            log.info("refused", conflicts=conflicts, **refused)
        elif conflicts:  # part of every day's work
            log.debug("refused", conflicts=conflicts)

    def _sweep(self) -> None:
        try:
            swept = self._committer.sweep(self._clock.now_us(), SWEEP_LIMIT)
        except PublishError as error:
            log.warning("sweep_failed", error=error)
        except WalBrokenError:
            log.critical("log_broken", trace=True, problem=_NOT_DURABLE)
            os._exit(os.EX_IOERR)
        except OSError as error:
            log.warning("sweep_failed", error=error)
        else:
            if swept:
                self._control.words[VERSION] = self._committer.version

    def _sync_forever(self) -> None:
        """Buffered mode: an fsync begins at each interval, or when the one before has ended."""
        interval_s = pause_s = self._settings.fsync_interval_ms / 1000
        while not self._stopping.wait(pause_s):
            began = time.monotonic()
            try:
                self._log.sync()
                pause_s = max(0.0, interval_s - (time.monotonic() - began))
            except (WalBrokenError, ValueError):
                if self._stopping.is_set():
                    return
                log.critical("log_broken", trace=True, problem=_NOT_DURABLE)
                os._exit(os.EX_IOERR)
