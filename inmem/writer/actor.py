"""The writer: one process that owns the store and the log, and its mailbox.

Invariant: only the holder of the writer's lock touches store, log and control
file; messages are handled one group at a time; a message that does not parse
changes nothing. It knows procedures by name and no facades.

The loop: take what has arrived, bounded; decide and publish it as one group;
answer all. Under load groups form by themselves, so the cost of the log and
of publishing is shared (group commit).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgpack
import zmq

from inmem import board as board_module
from inmem import failpoints
from inmem.board import RESULT_BYTES, RING, Board, Slots
from inmem.clock import StoreClock
from inmem.commit.committer import Answer, Committer, Log, NoLog, Request
from inmem.commit.outcomes import Sessions
from inmem.config import (
    FORMAT_VERSION,
    MAX_BATCH_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_SOCKET_PATH,
    PROTOCOL_VERSION,
    SWEEP_LIMIT,
)
from inmem.control import CLOCK, DURABLE, GROUP, VERSION, boot_id, pid_namespace
from inmem.directory import DataDirectory, leave_runtime_directory, runtime_directory
from inmem.errors import (
    BusyError,
    FormatVersionError,
    InmemError,
    InvalidInputError,
    LimitError,
    StoreFullError,
    to_wire,
)
from inmem.files import FileLock, make_private_dir, private_umask
from inmem.model.event_log import CHAIN_IDS
from inmem.storage.environment import Table, remove_image
from inmem.storage.recovery import Recovered, recover
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

_TICK_S: Final = 0.2  # how late timers may be; expired keys go within a second
_SLOW_TICK_S: Final = 5.0  # dead readers, idle sessions, stale files
_TICKS: Final = 18_000  # an hour of ticks: the longest that a snapshot may be open
_SPIN: Final = 20  # yields before blocking: a client that was just answered often asks again at once
_GATHER: Final = 4  # yields for more messages to come in, where commits come together
_QUEUE: Final = 4096  # messages that the socket holds for one peer, each way

log = logging.getLogger("inmem.writer")


class Mailbox:
    """The ROUTER socket: who may connect, how much it holds, where answers go.

    Answers leave through here and nowhere else.
    """

    def __init__(self, path: Path) -> None:
        if len(str(path)) > MAX_SOCKET_PATH:
            raise LimitError(
                f"socket path {path} is too long", what="socket path",
                size=len(str(path)), limit=MAX_SOCKET_PATH,
            )
        self.path = path
        self.endpoint = f"ipc://{path}"
        self._context = zmq.Context()
        socket = self._socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.RCVHWM, _QUEUE)
        socket.setsockopt(zmq.SNDHWM, _QUEUE)
        socket.setsockopt(zmq.IPC_FILTER_UID, os.geteuid())
        socket.setsockopt(zmq.RCVTIMEO, int(_TICK_S * 1000))
        self._receive = socket.recv_multipart
        self._send = socket.send_multipart
        self._last = 0  # messages taken the last time
        self._look: Callable[[int], Any] = socket.getsockopt
        path.unlink(missing_ok=True)
        while True:
            try:
                with private_umask():
                    socket.bind(self.endpoint)
                return
            except FileNotFoundError:  # another database's writer removed the empty directory
                make_private_dir(path.parent)

    def take(self, limit: int) -> list[list[bytes]]:
        """What has arrived, at most `limit` messages; waits a tick if nothing has."""
        messages: list[list[bytes]] = []
        receive, look = self._receive, self._look
        size = 0
        spin = _SPIN
        # Where commits came together last time, more are on their way: a group costs little more than one.
        gather = min(_GATHER, 2 * (self._last - 1)) if self._last else 0
        while len(messages) < limit and size < MAX_BATCH_BYTES:
            # Looking is far cheaper than the exception of a receive that finds nothing.
            if not look(zmq.EVENTS) & zmq.POLLIN:
                if messages and not gather:
                    break
                if messages:
                    gather -= 1
                    os.sched_yield()
                    continue
                if spin:
                    spin -= 1
                    os.sched_yield()
                    continue
            try:
                message = receive()  # blocks, for a tick at most, only when nothing was there
            except zmq.Again:
                break
            messages.append(message)
            size += len(message[-1])
        self._last = len(messages)
        return messages

    def answer(self, peer: bytes, frame: bytes) -> None:
        """Send a frame; never blocks. A peer that does not read loses it, and may ask again."""
        try:
            self._send((peer, frame), zmq.NOBLOCK)
        except zmq.Again:
            log.warning("answer dropped peer=%s", peer.hex())

    def exists(self) -> bool:
        """Whether clients can still find the socket."""
        return self.path.exists()

    def close(self) -> None:
        """Close the socket and remove its file."""
        self._socket.close(0)
        self._context.term()
        self.path.unlink(missing_ok=True)


class Writer:
    """One incarnation of the writer. `start`, then `run`, then `stop`."""

    def __init__(self, directory: DataDirectory, lock: FileLock, *, foreground: bool) -> None:
        self.directory = directory
        self._lock = lock
        self._foreground = foreground
        self._stopping = threading.Event()
        self._peers: dict[bytes, int] = {}  # peer -> pid, for the status
        self._clients = FileLock(directory.clients_lock)
        self._idle_since: float | None = None
        self._next_slow = 0.0
        self._next_timer = 0.0
        self._ticks: deque[tuple[int, float]] = deque(maxlen=_TICKS)  # last transaction at each tick

    def start(self) -> None:
        """Recover, bind, and tell everybody through the control file."""
        directory = self.directory
        self._identity = identity = directory.identity()
        self._settings = settings = identity.settings
        self._control = control = directory.control(writable=True)
        old_offset = control.words[CLOCK] if (s := control.read()) and s.boot == boot_id() else None
        recovered = recover(directory, identity, control, failpoints.reached)
        self._recovered: Recovered = recovered
        report = recovered.report
        log.info(
            "recovered adopted=%s reason=%r checkpoint=%d replayed=%d seconds=%.3f version=%d epoch=%d "
            "generation=%d",
            report.adopted, report.reason, report.checkpoint, report.replayed, report.seconds,
            recovered.version, recovered.epoch, recovered.generation,
        )
        if report.torn:
            log.warning("torn tail cut: %s", report.torn)
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
            always_sync=settings.durability == "sync", reached=failpoints.reached,
        )
        # A first, empty group: the image says the new epoch, and has a position to be adopted by.
        sessions.must_write = True
        self._committer.commit([], self._clock.now_us())
        stem = directory.stem(identity)
        runtime = runtime_directory()
        for ending in ("sock", "answers"):
            for stale in runtime.glob(f"{stem}*.{ending}"):
                stale.unlink(missing_ok=True)
        self._mailbox = Mailbox(runtime / f"{stem}{recovered.epoch}.sock")
        self._board = (
            Board(runtime / f"{stem}{recovered.epoch}.answers", create=True)
            if board_module.SUPPORTED else None
        )
        self._slots = Slots(self._board)
        control.update(
            image=str(self._store.path), endpoint=self._mailbox.endpoint, boot=boot_id(),
            generation=recovered.generation, epoch=recovered.epoch, clock=self._clock.offset,
            version=self._committer.version, durable=self._log.durable_version,
            pid=os.getpid(), namespace=pid_namespace(),
        )
        control.flush()
        if settings.durability == "buffered":
            threading.Thread(target=self._sync_forever, name="fsync", daemon=True).start()
        log.info("serving pid=%d endpoint=%s", os.getpid(), self._mailbox.endpoint)

    def request_stop(self) -> None:
        """End `run` within a tick; safe in a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Serve until asked to stop, or until the last client has left for `linger_s`."""
        limit = self._settings.batch_limit
        while not self._stopping.is_set():
            messages = self._mailbox.take(limit)
            if messages:
                self._handle(messages)
            now = time.monotonic()
            if now >= self._next_timer:
                self._next_timer = now + _TICK_S
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
        log.info("stopped version=%d", self._committer.version)
        if self._identity.ephemeral:
            self.directory.remove()
        leave_runtime_directory()

    # --- messages -------------------------------------------------------------------

    def _handle(self, messages: list[list[bytes]]) -> None:
        requests: list[Request] = []
        peers: list[bytes] = []
        later: list[tuple[bytes, bytes]] = []  # frames that wait for the group
        for message in messages:
            if len(message) != 2 or not message[1]:
                continue  # no client of ours sends this: there is nobody to tell
            peer, frame = message
            kind = frame[0]
            if kind == COMMIT and len(frame) > COMMIT_HEADER.size:
                _, flags, session, sequence, answered_below = COMMIT_HEADER.unpack_from(frame)
                requests.append(Request(
                    session, sequence, answered_below, frame[COMMIT_HEADER.size :],
                    bool(flags & FLAG_SYNC),
                ))
                peers.append(peer)
            else:
                later.append((peer, frame))
        greeted = [(peer, self._greet(peer, frame)) for peer, frame in later if frame[0] == HELLO]
        if requests or self._committer.sessions.must_write:
            self._answer(requests, peers, self._commit(requests))
        for peer, greeting in greeted:
            self._welcome(peer, greeting)
        for peer, frame in later:
            self._reply(peer, frame)

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
            log.critical("the log cannot be made durable: stopping without an answer", exc_info=True)
            os._exit(os.EX_IOERR)
        words = self._control.words
        words[VERSION] = self._committer.version
        words[DURABLE] = self._log.durable_version
        words[GROUP] = len(requests)
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
            slot = self._slots.give(session, self._peers[peer]) if known else -1
            frame = welcome(
                epoch=self._recovered.epoch, known=known,
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
            log.critical("the log cannot be made durable: stopping without an answer", exc_info=True)
            os._exit(os.EX_IOERR)
        except InmemError as error:
            self._tell(peer, number, error)
        else:
            self._tell(peer, number, result)

    def _tell(self, peer: bytes, number: int, result: Any) -> None:
        """Answer a request that is no commit: with its result, or an error."""
        status, content = APPLIED, result
        if isinstance(result, InmemError):
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
            log.critical("the log cannot be made durable: stopping", exc_info=True)
            os._exit(os.EX_IOERR)
        except OSError as error:
            self._end_checkpoint(StoreFullError(f"no checkpoint can be begun: {error}"))

    def _end_checkpoint(self, result: dict[str, Any] | InmemError) -> None:
        if isinstance(result, InmemError):
            log.warning("checkpoint failed: %s", result)
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
            log.critical("the log cannot be made durable: stopping", exc_info=True)
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
            "epoch": self._recovered.epoch,
            "generation": self._recovered.generation,
            "version": self._committer.version,
            "durable_version": self._log.durable_version,
            "durability": self._settings.durability,
            "image_bytes": self._store.live_bytes,
            "image_file_bytes": self._store.file_bytes,
            "quota_bytes": self._store.quota_bytes,
            "wal_bytes": self._log.bytes,
            "clients": len(alive),
            "sessions": len(self._committer.sessions),
            "oldest_snapshot_age_s": self._oldest_snapshot_age_s(),
            "commits": counters.commits,
            "conflicts": counters.conflicts,
            "failures": counters.failures,
            "batches": counters.batches,
            "repeated": counters.repeated,
            "expired": counters.expired,
        }

    # --- timers ---------------------------------------------------------------------

    def _on_timer(self, now: float) -> None:
        self._control.words[CLOCK] = self._clock.follow_wall()
        self._control.words[DURABLE] = self._log.durable_version
        self._sweep()
        self._drive_checkpoint(now)
        self._ticks.append((self._store.last_transaction(), now))
        if now >= self._next_slow:
            self._next_slow = now + _SLOW_TICK_S
            self._committer.sessions.expire(self._clock.now_us())
            self._forget_the_dead()
        self._store.free_dead_readers()
        if not self._foreground:
            self._leave_if_idle(now)

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

    def _sweep(self) -> None:
        try:
            swept = self._committer.sweep(self._clock.now_us(), SWEEP_LIMIT)
        except PublishError as error:
            log.warning("sweeping expired keys failed: %s", error)
        except WalBrokenError:
            log.critical("the log cannot be made durable: stopping", exc_info=True)
            os._exit(os.EX_IOERR)
        except OSError as error:
            log.warning("sweeping expired keys failed: %s", error)
        else:
            if swept:
                self._control.words[VERSION] = self._committer.version

    def _leave_if_idle(self, now: float) -> None:
        if not self._clients.try_exclusive():
            self._idle_since = None
            return
        # Nobody else has it. While it is ours no client gets in.
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since >= self._settings.linger_s:
            log.info("last client left")
            self._stopping.set()
            return  # keep the lock: a client that comes now waits, and starts the next writer
        self._clients.release()

    def _sync_forever(self) -> None:
        """Buffered mode: an fsync at each interval, beside the loop."""
        interval_s = self._settings.fsync_interval_ms / 1000
        while not self._stopping.wait(interval_s):
            try:
                self._log.sync()
            except (WalBrokenError, ValueError):
                if self._stopping.is_set():
                    return
                log.critical("the log cannot be made durable: stopping", exc_info=True)
                os._exit(os.EX_IOERR)
