"""What one client may take from others, and what a connection that breaks costs: time, and nothing else."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from crash_workers import RUN
from support import Words, control_state, wait_until, writer_pid

import inmem
from inmem.client import session as session_module
from inmem.client.attachment import Attachment
from inmem.client.link import Link
from inmem.config import MAX_BATCH, MAX_IN_FLIGHT_BYTES
from inmem.errors import BusyError
from inmem.host import board as board_module
from inmem.host.board import Board
from inmem.host.control import ControlState
from inmem.host.files import python_environment
from inmem.writer import mailbox as mailbox_module
from inmem.writer.mailbox import Mailbox
from inmem.writer.shedding import LoadShedder
from inmem.writer.slots import Slots

MIB = 1 << 20
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
SHARE = mailbox_module._PEER_MESSAGES
PATIENCE_S = 0.1  # of the clients here; a second otherwise


# --- groups -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"a": [1] * 500}, False),  # alone it may have all
        ({"a": [MIB] * 60}, False),
        ({"a": [1] * (SHARE - 1), "b": [1]}, False),
        ({"a": [1] * SHARE, "b": [1]}, True),
        ({"a": [1] * (SHARE - 1), "b": [1] * (SHARE - 1), "c": [1] * (SHARE - 1)}, False),
        ({"a": [MIB // 2], "b": [MIB // 2]}, False),
        ({"a": [MIB], "b": [1]}, True),
        ({}, False),
    ],
)
def test_who_crowds_out_whom(sent: dict[str, list[int]], expected: bool) -> None:
    messages = [(peer.encode(), bytes(size)) for peer, sizes in sent.items() for size in sizes]
    assert mailbox_module._one_fills(messages) is expected


@contextmanager
def mailbox(path: Path) -> Iterator[Mailbox]:
    some = Mailbox(path, Slots(None))
    try:
        yield some
    finally:
        some.close()


@contextmanager
def peers(endpoint: str, count: int) -> Iterator[list[zmq.Socket[bytes]]]:
    """So many sockets that are connected."""
    context = zmq.Context()
    try:
        some = [context.socket(zmq.DEALER) for _ in range(count)]
        for one in some:
            one.setsockopt(zmq.SNDHWM, 0)
            one.connect(endpoint)
        yield some
    finally:
        context.destroy(0)


@pytest.mark.parametrize("size", [20, 300_000], ids=["many", "large"])
def test_a_group_has_something_of_each_that_waits(scratch: Path, size: int) -> None:
    """A flood fills groups only while nobody else is there; who comes late is in the next group."""
    flood = 6000 if size < 1000 else 500
    with mailbox(scratch / "s") as box, peers(box.endpoint, 4) as (loud, *quiet):
        for _ in range(flood):
            loud.send(b"f" * size)
        taken = len(box.take(MAX_BATCH))
        assert taken > 0
        for number, one in enumerate(quiet):
            one.send(b"q%d" % number)
        answered: dict[bytes, int] = {}
        deadline = time.monotonic() + 30.0
        while taken < flood + len(quiet):
            group = box.take(MAX_BATCH)
            taken += len(group)
            # From where the group has something of two on, it ends when it is seen that one has its share.
            first = {peer: at for at, (peer, _) in reversed(list(enumerate(group)))}
            if len(first) > 1:
                shared = [frame for _, frame in group[sorted(first.values())[1] :]]
                assert len(shared) <= 2 * SHARE, len(shared)
                assert sum(map(len, shared)) <= MIB + 2 * size, sum(map(len, shared))
            for _, frame in group:
                if frame.startswith(b"q"):
                    answered[frame] = taken
            assert time.monotonic() < deadline
        assert sorted(answered) == [b"q0", b"q1", b"q2"]
        assert max(answered.values()) < flood, "nobody waits until the flood is over"
        print(f"of {flood} messages of a flood, taken when the others' were: {sorted(answered.values())}")


# --- bytes in flight --------------------------------------------------------------------------------


def test_too_many_bytes_in_flight_are_refused_before_they_are_sent(store_path: Path) -> None:
    values = {f"part-{n}": os.urandom(13 * MIB) for n in range(3)}
    others = {f"other-{n}": value for n, value in enumerate(values.values())}
    with inmem.open(store_path, durability="memory") as db:
        db.kv.put(RUN, "k", 0)
        pid = writer_pid(store_path)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(inmem.CommitUnknownError) as unknown:  # noqa: SIM117
                with db.transaction(RUN, timeout_s=0.2) as txn:
                    txn.kv.put_many(values)
            began = time.monotonic()
            for _ in range(3):
                with pytest.raises(BusyError, match="too large") as busy, db.transaction(RUN) as txn:
                    txn.kv.put_many(others)
                assert (busy.value.what, busy.value.limit) == ("bytes in flight", MAX_IN_FLIGHT_BYTES)
                assert busy.value.retryable
            assert time.monotonic() - began < 10.0, "nobody was asked"
            with pytest.raises(inmem.CommitUnknownError) as small:  # noqa: SIM117
                with db.transaction(RUN, timeout_s=0.2) as txn:
                    txn.kv.add("n")
        finally:
            os.kill(pid, signal.SIGCONT)
        unknown.value.resend(timeout_s=30.0)
        small.value.resend(timeout_s=30.0)
        assert {key: db.kv.get(RUN, key) for key in values} == values and db.kv.get(RUN, "n") == 1
        assert db.kv.count(RUN, "other-") == 0, "what was refused was not applied"
        with db.transaction(RUN) as txn:  # and what was answered counts no more
            txn.kv.put_many(others)
        assert {key: db.kv.get(RUN, key) for key in others} == others and writer_pid(store_path) == pid


def test_a_pipeline_of_large_values_waits(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than may be in flight, in order, without an error."""
    count, size = 12, 8 * MIB
    base = os.urandom(size - 8)
    highest = 0
    monkeypatch.setenv("INMEM_PIPELINE_GROUP", "1")
    with inmem.open(store_path, durability="memory") as db:
        with db.pipeline() as pipe:
            pipe.kv.put("other-run", "first", 0)
            pipe.flush()
            waiting = pipe._batches._session.protocol.unanswered
            for number in range(count):
                pipe.kv.put(RUN, f"large-{number % 3}", base + number.to_bytes(8, "big"))
                pipe.kv.add(RUN, "n")
                highest = max(highest, sum(len(pending.body) for pending in waiting.values()))
        assert db.kv.get(RUN, "n") == count
        for number in range(count - 3, count):
            assert db.kv.get(RUN, f"large-{number % 3}") == base + number.to_bytes(8, "big")
    assert size < highest <= MAX_IN_FLIGHT_BYTES
    print(f"{count} values of {size // MIB} MiB, at most {highest / MIB:.0f} MiB in flight")


# --- load shedding --------------------------------------------------------------------------------------


GROWING = """
from inmem.writer.shedding import anonymous_bytes, return_free_memory
before = anonymous_bytes()
some = bytearray(b"x") * (64 << 20)
grown = anonymous_bytes() - before
small = [bytes(1000) for _ in range(20_000)]
del some, small
return_free_memory()
print(grown >> 20, anonymous_bytes() - before >> 20)
"""


def test_the_guard_sees_memory_of_its_own_kind() -> None:
    """In a process of its own, whose memory nothing else changes."""
    done = subprocess.run(
        [sys.executable, "-c", GROWING], capture_output=True, text=True, timeout=60, check=True,
        env=python_environment(),
    )
    grown_mib, left_mib = map(int, done.stdout.split())
    assert 60 <= grown_mib <= 70 and left_mib <= 8, done.stdout


def test_the_guard_shuts_who_sends_and_drastically_all(scratch: Path) -> None:
    """Only accepted connections of its own socket, and of those only where bytes wait."""
    other = scratch / "other"
    with socket.socket(socket.AF_UNIX) as theirs, mailbox(scratch / "s") as box:
        theirs.bind(str(other))
        theirs.listen()
        box._shedder.stop()  # what it does by itself must not mix with this
        silent, sending, foreign = (socket.socket(socket.AF_UNIX) for _ in range(3))
        with silent, sending, foreign:
            foreign.connect(str(other))
            accepted, _ = theirs.accept()
            with accepted:
                for one in (silent, sending):
                    one.connect(str(box.path))
                shedder = box._shedder
                wait_until(lambda: len(list(shedder._connections())) == 2, "both were accepted")
                names = {connection.getsockname() for connection in shedder._connections()}
                assert names == {str(box.path)}
                assert not any(shedder._shut(connection, False) for connection in shedder._connections())
                # Noise that libzmq takes in at once would not wait: more than its buffer does.
                sending.setblocking(False)
                stopped = False
                deadline = time.monotonic() + 10.0
                while not stopped and time.monotonic() < deadline:
                    try:
                        sending.send(b"\xff" + bytes(8) + b"\x7f" + bytes(1 << 16))
                    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                        pass
                    stopped = any(shedder._shut(connection, False) for connection in shedder._connections())
                    stopped = stopped or len(list(shedder._connections())) < 2
                assert stopped, "who sends is shut, by the guard or as a stranger by libzmq"
                assert silent.fileno() >= 0 and len(list(shedder._connections())) >= 1
                assert sum(shedder._shut(connection, True) for connection in shedder._connections()) >= 1
                silent.settimeout(5.0)
                while silent.recv(4096):
                    pass  # libzmq's greeting, then the end
                accepted.sendall(b"still there")
                assert foreign.recv(100) == b"still there"


def test_giants_within_the_limits_are_not_shut_out(store_path: Path) -> None:
    """Three commits of 39 MiB at once are no flood."""
    wrong: list[BaseException] = []
    with inmem.open(store_path, durability="memory", timeout_s=60.0) as db:
        db.kv.put(RUN, "k", 0)
        ready = threading.Barrier(3)

        def work(index: int) -> None:
            try:
                values = {f"part-{n}": os.urandom(1) * (13 * MIB) for n in range(3)}
                ready.wait(30)
                with db.transaction(f"giant-{index}") as txn:
                    txn.kv.put_many(values)
                    txn.kv.add("n")
                assert {key: db.kv.get(f"giant-{index}", key) for key in values} == values
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
        assert wrong == []
        assert [db.kv.get(f"giant-{index}", "n") for index in range(3)] == [1] * 3
        assert "shut" not in (store_path / "writer.log").read_text()
        print(f"three commits of 39 MiB at once: none shut out, {db.status().repeated} sent twice")


# --- connections that break ---------------------------------------------------------------------------


def shut_connections(pid: int, path: str) -> int:
    """Shut the connections that a process has accepted on a socket, as its guard would; how many."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    shut = 0
    pidfd = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                if not stat.S_ISSOCK(os.stat(f"/proc/{pid}/fd/{name}").st_mode):
                    continue
            except FileNotFoundError:
                continue
            fd = syscall(438, pidfd, int(name), 0)  # pidfd_getfd
            if fd < 0:
                if ctypes.get_errno() in (1, 38):
                    pytest.skip("another process's sockets cannot be reached here")
                continue
            with socket.socket(fileno=fd) as connection:
                try:
                    listens = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    if connection.getsockname() == path and not listens:
                        connection.shutdown(socket.SHUT_RDWR)
                        shut += 1
                except OSError:
                    continue
    finally:
        os.close(pidfd)
    return shut


def test_connections_shut_under_work(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the guard does it, again and again: clients connect anew, and what was on its way is sent again."""
    monkeypatch.setattr(session_module, "PATIENCE_S", PATIENCE_S)
    rounds = 8
    wrong: list[BaseException] = []
    stopping = threading.Event()
    done = [0] * 4
    with inmem.open(store_path, timeout_s=30.0) as db:
        large = os.urandom(2 * MIB)

        def adds(index: int) -> None:
            done[index] += 1
            assert db.kv.add(RUN, f"n-{index}") == done[index]

        def appends(index: int) -> None:
            assert db.events.append(RUN, "e", done[index]).sequence == done[index]
            done[index] += 1

        def giants(index: int) -> None:
            with db.transaction(RUN) as txn:
                txn.kv.put("large", large)
                txn.kv.add("giants")
            done[index] += 1

        def pipes(index: int) -> None:
            with db.pipeline() as pipe:
                for part in range(20):
                    pipe.events.append(f"{RUN}-{part % 2}", "p", [done[index], part])
            done[index] += 1

        def keep(work: Callable[[int], None], index: int) -> None:
            try:
                while not stopping.is_set():
                    work(index)
            except BaseException as error:
                wrong.append(error)

        threads = [
            threading.Thread(target=keep, args=(work, index))
            for index, work in enumerate((adds, appends, giants, pipes))
        ]
        for thread in threads:
            thread.start()
        try:
            shut = 0
            state = control_state(store_path)
            for _ in range(rounds):
                before = list(done)
                wait_until(
                    lambda b=before: wrong or all(a > c for a, c in zip(done, b, strict=True)), "all work"
                )
                shut += shut_connections(state.pid, state.endpoint.removeprefix("ipc://"))
            before = list(done)
            wait_until(lambda: wrong or all(a > b for a, b in zip(done, before, strict=True)), "all go on")
        finally:
            stopping.set()
            for thread in threads:
                thread.join(60)
        assert wrong == []
        assert db.kv.get(RUN, "n-0") == done[0] and db.kv.get(RUN, "giants") == done[2]
        assert [event.payload for event in db.events.iter(RUN)] == list(range(done[1]))
        for part in range(2):
            expected = [[n, p] for n in range(done[3]) for p in range(20) if p % 2 == part]
            assert [event.payload for event in db.events.iter(f"{RUN}-{part}")] == expected
        status = db.status()
        assert status.writer_pid == state.pid and status.epoch == 1
    assert shut >= rounds
    print(f"{shut} connections shut, {sum(done)} operations, {status.repeated} repeated; lost 0, doubled 0")


class Proxy:
    """Stands between a client and the writer, and breaks connections at given bytes of what is sent."""

    def __init__(self, path: Path, target: str) -> None:
        self.path = path
        self.endpoint = f"ipc://{path}"
        self._target = target
        self._budget: int | None = None  # bytes until the break
        self._swallow = False
        self._lock = threading.Lock()
        self.breaks = 0
        self.bytes = 0
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(0.05)
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def break_after(self, count: int, *, swallow: bool) -> None:
        """Break when so many bytes have come; the last of them are passed on, or `swallow`ed."""
        with self._lock:
            self._budget, self._swallow = count, swallow

    def _accept(self) -> None:
        while not self._stopping:
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            writer = socket.socket(socket.AF_UNIX)
            writer.connect(self._target)
            client.settimeout(0.05)
            writer.settimeout(0.05)
            self._start(self._pump, client, writer)

    def _pump(self, client: socket.socket, writer: socket.socket) -> None:
        """Both ways in one thread, so that a break is a break of both."""
        with client, writer:
            ways = ((client, writer, True), (writer, client, False))
            while not self._stopping:
                for source, sink, counted in ways:
                    try:
                        source.settimeout(0.001)
                        data = source.recv(65536)
                    except TimeoutError:
                        continue
                    except OSError:
                        return
                    if not data:
                        return
                    try:
                        sink.settimeout(5.0)
                        if counted and self._breaks_in(data, sink):
                            return
                        sink.sendall(data)
                    except OSError:
                        return

    def _breaks_in(self, data: bytes, sink: socket.socket) -> bool:
        with self._lock:
            self.bytes += len(data)
            if self._budget is None:
                return False
            if len(data) < self._budget:
                self._budget -= len(data)
                return False
            passed, self._budget = data[: self._budget], None
            self.breaks += 1
            if not self._swallow:
                sink.sendall(passed)
            return True

    def close(self) -> None:
        """End all connections."""
        self._stopping = True
        for thread in self._threads:
            thread.join()
        self._listener.close()


@pytest.fixture
def proxied(
    store_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[inmem.Database, Proxy]]:
    """A store that this process reaches through a proxy."""
    monkeypatch.setattr(session_module, "PATIENCE_S", PATIENCE_S)
    with inmem.open(store_path, timeout_s=20.0) as db:
        proxy = Proxy(scratch / "proxy", control_state(store_path).endpoint.removeprefix("ipc://"))
        original = Attachment.ensure_writer

        def through_proxy(self: Attachment, deadline: float) -> ControlState:
            return dataclasses.replace(original(self, deadline), endpoint=proxy.endpoint)

        monkeypatch.setattr(Attachment, "ensure_writer", through_proxy)
        try:
            yield db, proxy
        finally:
            proxy.close()


def test_a_greeting_that_is_lost_is_said_again(proxied: tuple[inmem.Database, Proxy]) -> None:
    """The connection breaks at every part of what a client says first."""
    db, proxy = proxied
    proxy.break_after(1, swallow=True)
    assert db.kv.add(RUN, "n") == 1  # the first thing that this thread sends
    assert proxy.breaks == 1 and proxy.bytes > 64
    # A greeting of ZMTP has 64 bytes, its READY 30, the session's hello about 90.
    offsets = (10, 64, 80, 120, 150, 180)
    for number, offset in enumerate(offsets):
        wrong: list[BaseException] = []

        def work(expected: int = number + 2, wrong: list[BaseException] = wrong) -> None:
            try:
                assert db.kv.add(RUN, "n") == expected
            except BaseException as error:
                wrong.append(error)

        proxy.break_after(offset, swallow=number % 2 == 1)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(20)
        assert wrong == [] and not thread.is_alive()
        assert proxy.breaks == number + 2
    assert db.kv.get(RUN, "n") == len(offsets) + 1


def test_a_connection_that_breaks_anywhere(proxied: tuple[inmem.Database, Proxy]) -> None:
    """Before, within and after a request; the request passed on, in part, or lost: one result each."""
    db, proxy = proxied
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    assert db.kv.add(RUN, "n") == 1
    count, rounds = 1, 0
    slowest = 0.0
    for _ in range(24):
        offset = rng.choice((1, rng.randrange(1, 60), rng.randrange(1, 200), rng.randrange(1, 3000)))
        proxy.break_after(offset, swallow=rng.random() < 0.5)
        broken = proxy.breaks
        began = time.monotonic()
        while proxy.breaks == broken:
            kind = rng.randrange(4)
            if kind == 0:
                count += 1
                assert db.kv.add(RUN, "n") == count
            elif kind == 1:
                with db.pipeline() as pipe:
                    for part in range(10):
                        pipe.events.append(f"{RUN}-{part % 2}", "p", [rounds, part])
                        count += 1
                        pipe.kv.add(RUN, "n")
                rounds += 1
            elif kind == 2:
                assert db.status().writer_pid
            else:
                db.sync()
        slowest = max(slowest, time.monotonic() - began)
    assert db.kv.add(RUN, "n", 0) == count
    for part in range(2):
        payloads = [event.payload for event in db.events.iter(f"{RUN}-{part}")]
        assert payloads == [[n, p] for n in range(rounds) for p in range(part, 10, 2)], "in order, once"
        assert db.events.verify_chain(f"{RUN}-{part}").is_valid
    assert db.status().epoch == 1
    print(
        f"{proxy.breaks} breaks, {count} additions, {db.status().repeated} repeated; lost 0, doubled 0; "
        f"the slowest took {slowest:.2f} s"
    )


def test_guard_type_is_what_the_mailbox_uses(scratch: Path) -> None:
    with mailbox(scratch / "s") as box:
        assert isinstance(box._shedder, LoadShedder) and box._shedder._thread.is_alive()
    assert not box._shedder._thread.is_alive()


# --- sessions that expire ---------------------------------------------------------------------------

# A writer that looks for idle sessions at each tick, and whose wall clock is as far ahead as a file is long.
HURRIED = """
import os, sys
if "inmem.writer" in sys.orig_argv:
    import time
    _real = time.time_ns
    time.time_ns = lambda: _real() + os.stat({path!r}).st_size * 10**9
    import inmem.writer.housekeeping
    assert inmem.writer.housekeeping.SESSIONS_EVERY_S
    inmem.writer.housekeeping.SESSIONS_EVERY_S = 0.1
"""


@pytest.mark.parametrize("answer", ["was lost", "is on the board"])
def test_a_session_that_expired_does_not_take_old_commits_along(
    store_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """What was applied under the old session, unknown to its caller, is not sent under the new one."""
    if answer == "was lost":
        monkeypatch.setattr(Link, "look", lambda self, sequence: None)
    ahead, site = scratch / "ahead", scratch / "site"
    ahead.touch()
    site.mkdir()
    (site / "sitecustomize.py").write_text(HURRIED.format(path=str(ahead)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("INMEM_SESSION_TTL_S", "600")
    with inmem.open(store_path) as db:
        assert db.kv.add(RUN, "n") == 1
        pid = writer_pid(store_path)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(inmem.CommitUnknownError) as unknown:  # noqa: SIM117
                with db.transaction(RUN, timeout_s=0.1) as txn:
                    txn.kv.add("n")
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: db.kv.get(RUN, "n") == 2, "it is applied, though nobody looks for the answer")
        os.truncate(ahead, 700)
        found: list[int] = []

        def count() -> None:  # with a session of its own, which goes with the thread
            found.append(db.status().sessions)

        def expired() -> bool:
            thread = threading.Thread(target=count)
            thread.start()
            thread.join()
            return found[-1] == 1

        wait_until(expired, "the session of this thread has expired")
        assert db.kv.add(RUN, "n") == 3, "the next commit has a session again, and it alone was sent"
        assert db.kv.get(RUN, "n") == 3
        if answer == "was lost":
            with pytest.raises(inmem.CommitUnknownError, match="no writer knows"):
                unknown.value.resend(timeout_s=1.0)
        else:
            unknown.value.resend(timeout_s=1.0)
        assert db.kv.add(RUN, "n") == 4 and writer_pid(store_path) == pid


# --- the board ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not board_module.SUPPORTED, reason="there is no board on this machine")
def test_no_answer_on_the_board_is_missed(scratch: Path) -> None:
    """Two processes, an answer to each question, no look beyond those around a sleep: all come, whole."""
    count, slot = 20_000, 3
    rng = random.Random(SEED)
    writer = Board(scratch / "board", create=True)
    asked = Words(scratch / "asked")
    assert writer.clear(slot)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for sequence in range(1, count + 1):
                while asked[0] < sequence:
                    os.sched_yield()
                writer.post(slot, sequence, sequence % 3, sequence * 7, sequence.to_bytes(4, "big") * 8)
                writer.wake([slot])
            status = 0
        finally:
            os._exit(status)
    client = Board(scratch / "board")
    late = 0
    try:
        for sequence in range(1, count + 1):
            asked[0] = sequence
            for _ in range(rng.randrange(4)):
                os.sched_yield()
            slept = 0
            while not client.look(slot, sequence, 0):
                client.sleep(slot, sequence, 0, 1000)
                slept += 1
                assert slept < 30_000, "the answer does not come"
            late += slept > 1
            expected = (sequence % 3, sequence * 7, sequence.to_bytes(4, "big") * 8)
            assert client.fetch(slot, sequence) == expected
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        client.close()
        writer.close()
    print(f"{count} answers, {late} came after more than one sleep")
