"""Where something ends: memory, disk, patience, trust. A typed error, and service goes on."""

from __future__ import annotations

import errno
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from crash_workers import RUN, fill, hold_open, read_slots, write_until_told
from support import Workers, control_state, epoch, kill, kill_writer, stop_writer, wait_until, writer_pid

import inmem
from inmem import wire
from inmem.config import FORMAT_VERSION, MAX_IN_FLIGHT, MAX_MESSAGE_BYTES, PROTOCOL_VERSION
from inmem.host.directory import DataDirectory
from inmem.primitives.events.rules import CHAIN_IDS
from inmem.primitives.server import PROCEDURES
from inmem.storage.environment import Table
from inmem.storage.store import Store
from inmem.storage.wal.files import Files
from inmem.storage.wal.log import Wal, WalBrokenError
from inmem.storage.wal.scan import rewrite_tail, scan
from inmem.wire import APPLIED
from inmem.writer.committer import Committer, Request
from inmem.writer.outcomes import Sessions

MIB = 1 << 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting and chown need root")


@contextmanager
def tmpfs(path: Path, size: int) -> Iterator[Path]:
    """A file system of a few MiB; goes when the block ends, after all stores in it were stopped."""
    path.mkdir(mode=0o700)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(path)],
        capture_output=True, text=True, check=False,
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        gc.collect()  # what an expected error still holds may have a file mapped
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def free_bytes(path: Path) -> int:
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


def ballast(path: Path, leave: int) -> Path:
    """A file that fills a file system but for so many bytes."""
    file = path / "ballast"
    with file.open("wb") as out:
        while (left := free_bytes(path) - leave) > 0:
            out.write(bytes(min(left, MIB)))
            out.flush()
    return file


# --- the quota --------------------------------------------------------------------------------------


def test_quota_reached_and_freed(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INMEM_QUOTA_BYTES", str(4 * MIB))
    with inmem.open(store_path) as db:
        written = 0
        with pytest.raises(inmem.StoreFullError) as caught:
            while written < 2000:
                db.kv.put(RUN, f"k{written:05}", os.urandom(20_000))
                written += 1
        assert 20 < written < 200
        error = caught.value
        assert error.quota_bytes == 4 * MIB and error.used_bytes <= 4 * MIB and error.hint
        assert db.kv.count(RUN) == written and len(db.kv.get(RUN, "k00000")) == 20_000
        before = epoch(store_path)
        for number in range(written):  # deletes have room of their own
            assert db.kv.delete(RUN, f"k{number:05}")
            if number == written // 2:
                db.kv.put(RUN, "again", os.urandom(20_000))
        db.events.append(RUN, "resumed")
        assert db.kv.list(RUN) == ["again"]
        assert db.check().problems == []
        status = db.status()
        assert status.image_bytes < 4 * MIB and epoch(store_path) == before


def test_a_full_store_refuses_writers_and_serves_readers(
    store_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INMEM_QUOTA_BYTES", str(4 * MIB))
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", "v")
        for index in range(3):
            workers.start(fill, index, store_path, 9_000)
        written = [(result["written"], result["code"], result["hint"]) for result in workers.results()]
        assert [(code, hint) for _, code, hint in written] == [("store_full", True)] * 3
        assert db.kv.get(RUN, "k") == "v"
        assert [db.kv.count(f"filler-{i}") for i in range(3)] == [count for count, _, _ in written]
        assert sum(count for count, _, _ in written) > 50
        kill_writer(store_path)  # full is no reason not to recover
        for index, (count, _, _) in enumerate(written):  # who came late found no room for even one
            assert db.kv.delete(f"filler-{index}", "k0") == (count > 0)
        assert db.check().problems == []


@needs_root
def test_shared_memory_really_full(
    scratch: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory behind the image ends before the quota: an error, no SIGBUS, neighbours unharmed."""
    path = scratch / "store"
    with tmpfs(scratch / "memory", 12 * MIB) as memory:
        monkeypatch.setenv("INMEM_IMAGE_DIR", str(memory))
        monkeypatch.setenv("INMEM_QUOTA_BYTES", str(8 * MIB))
        try:
            with inmem.open(path) as db:
                db.kv.put(RUN, "k", "v")
                for number in range(20):
                    db.kv.put(RUN, f"small-{number}", number)
                pid = writer_pid(path)
                # What readers need in memory beside the pages is there from the start.
                taken = ballast(memory, leave=300_000)
                with pytest.raises(inmem.StoreFullError), db.pipeline() as pipe:
                    for number in range(6):
                        # Runs in turn: six commits, sent at once; the giant is one of a group.
                        pipe.kv.put(f"run-{number}", "k", bytes(2 * MIB) if number == 3 else number)
                present = [number for number in range(6) if db.kv.exists(f"run-{number}", "k")]
                assert present == [0, 1, 2, 4, 5], "a giant does not fail its neighbours"
                ballast(memory, leave=0)
                for _ in range(3):
                    with pytest.raises(inmem.StoreFullError):
                        db.kv.put(RUN, "big", bytes(MIB))
                assert db.kv.get(RUN, "k") == "v" and db.kv.count(RUN, "small-") == 20
                # New readers need slots in a full memory: their process must not die of SIGBUS.
                reader = workers.start(read_slots, path, 200)
                workers.words.open_gate()
                assert reader.result() == 200
                taken.unlink()
                db.kv.put(RUN, "big", bytes(MIB))
                assert writer_pid(path) == pid, "the writer lived through it"
                assert db.check().problems == []
                taken = ballast(memory, leave=0)
                kill_writer(path)
                taken.unlink()
                assert len(db.kv.get(RUN, "big")) == MIB and db.kv.put(RUN, "after", 1)
        finally:
            stop_writer(path)


@needs_root
def test_an_image_dir_that_is_too_small_is_refused(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tmpfs(scratch / "memory", 2 * MIB) as memory:
        monkeypatch.setenv("INMEM_IMAGE_DIR", str(memory))
        with pytest.raises(inmem.StoreFullError, match="bytes free"):
            inmem.open(scratch / "store")
        assert os.listdir(memory) == []


SMALL_MACHINE = """
import os, sys, threading
import inmem
path = sys.argv[1]
with inmem.open(path) as db:
    image = db.engine.attachment.control.read().image
    assert image.startswith(path), image  # too small for the quota: the image is on the disk
    db.kv.put("r", "k", 1)
    pid = db.status().writer_pid
    with open("/dev/shm/ballast", "wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            pass
    wrong = []
    def work(n):
        try:
            assert db.kv.add("r", "n") > 0
            assert db.events.append("r", "e", n).sequence >= 0
            assert db.kv.get("r", "k") == 1
        except BaseException as error:
            wrong.append(error)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not wrong, wrong
    assert db.kv.get("r", "n") == 20 and db.events.len("r") == 20
    assert db.status().writer_pid == pid
    os.kill(pid, 9)
    assert db.kv.add("r", "n") == 21
    os.kill(db.status().writer_pid, 15)
print("served")
"""


@needs_root
def test_a_machine_with_hardly_any_shared_memory(store_path: Path) -> None:
    """A container's 64 MiB of /dev/shm, and then none at all: new sessions are served all the same."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not installed")
    mounting = 'mount -t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm && exec "$@"'
    done = subprocess.run(
        [unshare, "--mount", "sh", "-c", mounting, "sh", sys.executable, "-c", SMALL_MACHINE,
         str(store_path)],
        capture_output=True, text=True, cwd="/", timeout=60, check=False,
    )
    if "unshare failed" in done.stderr:
        pytest.skip(f"no mount namespace can be made here: {done.stderr.strip()}")
    assert done.stdout.strip() == "served", done.stdout + done.stderr


# --- the disk ---------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("durability", ["buffered", "sync"])
def test_disk_full(scratch: Path, workers: Workers, durability: str) -> None:
    with tmpfs(scratch / "disk", 6 * MIB) as disk:
        path = disk / "store"
        try:
            with inmem.open(path, durability=durability) as db:
                pid = writer_pid(path)
                db.kv.put(RUN, "k", "v")
                db.kv.add(RUN, "n")
                taken = ballast(disk, leave=100_000)
                written = 0
                with pytest.raises(inmem.StoreFullError) as caught:
                    while written < 2000:
                        db.kv.put(RUN, f"k{written}", os.urandom(5_000))
                        written += 1
                assert 0 < written < 100 and "disk" in caught.value.hint
                ballast(disk, leave=0)
                added = 1
                with pytest.raises(inmem.StoreFullError):
                    while added < 200:  # what is left of the log's last page takes a few
                        added = db.kv.add(RUN, "n")
                for _ in range(3):  # refused means: not there, and no trace in the numbers
                    with pytest.raises(inmem.StoreFullError):
                        db.kv.add(RUN, "n")
                with pytest.raises(inmem.StoreFullError):
                    db.events.append(RUN, "e", bytes(5000))
                assert db.kv.get(RUN, "n") == added and db.kv.count(RUN) == written + 2
                # A program that comes only now reads, and is told what is wrong when it writes.
                newcomer = workers.start(fill, 7, path, 9_000)
                assert newcomer.result(deadline_s=45.0)["code"] == "store_full"
                taken.unlink()
                assert db.kv.add(RUN, "n") == added + 1, "service resumes"
                assert db.events.append(RUN, "e").sequence == 0
                assert writer_pid(path) == pid
                kill_writer(path)
                assert db.kv.get(RUN, "n") == added + 1 and db.kv.count(RUN) == written + 2
                assert db.kv.add(RUN, "n") == added + 2
                assert db.check().problems == []
        finally:
            stop_writer(path)


class FailingSync(Files):
    """fdatasync that fails from a given call on."""

    def __init__(self) -> None:
        self.fail = False
        self.calls = 0

    def fdatasync(self, fd: int) -> None:
        self.calls += 1
        if self.fail:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().fdatasync(fd)


def test_a_failed_fsync_acknowledges_nothing(tmp_path: Path) -> None:
    """EIO in `sync` mode: no answer, nothing published, no second try; recovery finds a prefix."""
    files = FailingSync()
    database_id, session = bytes(range(16)), bytes(16)
    image = tmp_path / "image"
    image.mkdir(mode=0o700)
    store = Store(image, max_readers=8, quota_bytes=8 * MIB)
    log = Wal.create(tmp_path / "wal", database_id, segment_bytes=MIB, files=files)
    sessions = Sessions([], ttl_s=1e6, max_in_flight=16)
    committer = Committer(
        store, log, sessions, version=0, epoch=1, owner=(database_id, b"boot", 1, 2),
        chain=CHAIN_IDS["xxh3"], always_sync=True, procedures=PROCEDURES,
    )
    sessions.register(session, 1)

    def put(sequence: int) -> list[Any]:
        body = msgpack.packb((0, 0, [], [], [[0, b"a/b/c/run\0\x01key", b"%d" % sequence, 0]]))
        return committer.commit([Request(session, sequence, sequence, body)], sequence)

    assert put(1)[0].status == put(2)[0].status == APPLIED
    position = store.position
    files.fail = True
    calls = files.calls
    for sequence in (3, 3, 4):
        with pytest.raises(WalBrokenError):
            put(sequence)
        assert store.position == position, "nothing was published"
    with pytest.raises(WalBrokenError):
        log.sync()
    assert files.calls == calls + 1, "a failed fsync is never asked again"
    committed = [bytes(record)[-1:] for _, record in store.items(Table.DATA)]
    assert committed == [b"2"]
    log.close()
    store.close()
    result = scan(tmp_path / "wal", database_id)
    rewrite_tail(result)
    versions = [record.version for record in result.iter_records()]
    assert versions in ([1, 2], [1, 2, 3]), "at most the one that was never answered"


# --- messages ---------------------------------------------------------------------------------------


def garbage(rng: random.Random, database_id: bytes) -> list[bytes]:
    """Frames that no client sends: random, cut short, too deep, of wrong shape."""
    session = rng.randbytes(16)
    hello = {
        "protocol": PROTOCOL_VERSION, "format": FORMAT_VERSION, "database": database_id,
        "session": session, "pid": 1, "resume": False,
    }
    key = b"default/default/default/run\0\x01key"
    bodies = [
        b"", b"\xc1", msgpack.packb(None), msgpack.packb([]), msgpack.packb([0, 0, [], []]),
        msgpack.packb([-1, 0, [], [], []]), msgpack.packb([0, 0, [], [], [[9, key]]]),
        msgpack.packb([0, 0, [], [], [[0, key]]]), msgpack.packb([0, 0, [], [], [[0, b"no tag", b"", 0]]]),
        msgpack.packb([0, 0, [], [], [[0, key, b"x", -5]]]), msgpack.packb([0, 0, [[key]], [], []]),
        msgpack.packb([0, 0, [], [], [[2, "no.such", []]]]),
        msgpack.packb([0, 0, [], [], [[2, "kv.add", [1]]]]),
        msgpack.packb([0, 0, [], [], [[2, "kv.add", [key, "x", None]]]]),
        msgpack.packb([0, 0, [], [], [[2, "event.append", [b"p", [["a"]]]]]]),
        msgpack.packb([0, 0, [], [], [[2, "event.append", [b"a/b/c/d", [[1, 2, 3]]]]]]),
        msgpack.packb([0, 0, [], [[key, b"\xff" * 5000, 0]], []]),
        b"\x91" * 100_000 + b"\xc0", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff" + b"x",
        msgpack.packb([0, 0, [], [], [[0, key, b"x" * 100, 0]]])[:-50],
        msgpack.packb([0, 0, [], [], [[2, "event.append", [b"a\0b", [[b"t", b"x", 0]]]]]]),
    ]
    frames = [wire.hello(**hello)]
    for sequence, body in enumerate(bodies, 1):
        frames.append(wire.COMMIT_HEADER.pack(wire.COMMIT, 0, session, sequence, sequence) + body)
        frames.append(wire.COMMIT_HEADER.pack(wire.COMMIT, 255, rng.randbytes(16), sequence, 1 << 63) + body)
        frames.append(bytes([rng.randrange(256)]) + body)
    for name in hello:
        frames += [wire.hello(**hello | {name: wrong}) for wrong in (None, "x" * 1000, -1, [[]], 1 << 63)]
        frames.append(wire.hello(**{k: v for k, v in hello.items() if k != name}))
    for kind in range(24):
        frames += [bytes([kind]), bytes([kind]) + bytes(33), bytes([kind]) + rng.randbytes(40)]
    frames += [rng.randbytes(rng.randrange(1, 200)) for _ in range(300)]
    return frames


def test_garbage_on_the_socket(store_path: Path, workers: Workers, rng: random.Random) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", "v")
        state = control_state(store_path)
        worker = workers.start(write_until_told, 0, store_path)
        wait_until(lambda: workers.words[0], "another client works")
        frames = garbage(rng, state.database_id)
        rng.shuffle(frames)
        context = zmq.Context()
        try:
            sent = 0
            for part in range(3):
                socket = context.socket(zmq.DEALER)
                socket.setsockopt(zmq.LINGER, 0)
                socket.connect(state.endpoint)
                for frame in frames[part::3]:
                    socket.send(frame)
                    if rng.random() < 0.2:
                        socket.send_multipart([frame, b"", frame])
                        socket.send_multipart([b""] * rng.randrange(1, 50))
                    sent += 1
                # Told apart from silence: this one is well formed, and comes after all that.
                socket.send(wire.REQUEST_HEADER.pack(wire.STATUS, 77))
                replied = wait_until(lambda s=socket: status_reply(s, 77), "the writer answers after garbage")
                assert replied
                socket.close(0)
            flood = context.socket(zmq.DEALER)  # its peer only ever says hello, and never reads
            flood.setsockopt(zmq.LINGER, 0)
            flood.connect(state.endpoint)
            flood.send(bytes(MAX_MESSAGE_BYTES + 1))
            before = workers.words[0]
            wait_until(lambda: workers.words[0] > before + 50, "others are served")
            flood.close(0)
        finally:
            context.destroy(0)
        assert control_state(store_path) == state, "the same writer as before"
        workers.words.stop()
        assert worker.result() > 50
        assert db.kv.list(RUN) == ["k"] and db.kv.get(RUN, "k") == "v"
        assert db.events.len("run") == 0
        assert db.check().problems == []
    print(f"{sent} frames, crashes 0")


def status_reply(socket: Any, number: int) -> bool:
    try:
        frame = socket.recv(zmq.NOBLOCK)
    except zmq.Again:
        return False
    if frame[0] != wire.REPLY:
        return False
    return bool(wire.ANSWER_HEADER.unpack_from(frame)[2] == number)


def test_connections_that_never_say_hello(store_path: Path) -> None:
    """Raw connections with garbage for a handshake: the socket and the others go on."""
    import socket as plain

    with inmem.open(store_path) as db:
        db.kv.put(RUN, "n", 0)
        state = control_state(store_path)
        address = state.endpoint.removeprefix("ipc://")
        some = []
        try:
            for number in range(150):
                one = plain.socket(plain.AF_UNIX)
                one.connect(address)
                one.send(os.urandom(number % 70 + 1))
                some.append(one)
            assert db.kv.add(RUN, "n") == 1
        finally:
            for one in some:
                one.close()
        assert db.kv.add(RUN, "n") == 2 and writer_pid(store_path) == state.pid


# --- patience ---------------------------------------------------------------------------------------


def test_a_stopped_writer(store_path: Path) -> None:
    """Reads go on, a commit is unknown at its deadline, and resolves to one result."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", "v")
        db.kv.add(RUN, "n")
        pid = writer_pid(store_path)
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(inmem.CommitUnknownError) as caught, db.transaction(RUN, timeout_s=0.5) as txn:
                txn.kv.add("n")
                appended = txn.events.append("noted", "once")
            late = time.monotonic() - began - 0.5
            assert 0 <= late < 1.0, f"{late:.2f} s past the deadline"
            error = caught.value
            assert error.commit_id and error.hint
            for _ in range(1000):
                assert db.kv.get(RUN, "k") == "v"
            assert db.kv.get(RUN, "n") == 1 and db.events.len(RUN) == 0
            with pytest.raises(inmem.CommitUnknownError):
                error.resend(timeout_s=0.2)
        finally:
            os.kill(pid, signal.SIGCONT)
        error.resend(timeout_s=10.0)
        assert appended.sequence == 0 and txn.version
        assert db.kv.get(RUN, "n") == 2 and [e.payload for e in db.events.iter(RUN)] == ["once"]
        assert db.kv.add(RUN, "n") == 3, "the session goes on in order"
        assert writer_pid(store_path) == pid


def test_an_unknown_commit_that_nobody_asks_for_holds_up_nothing(store_path: Path) -> None:
    """Its outcome must not keep those of all later commits from being forgotten, until there are too many."""
    with inmem.open(store_path) as db:
        db.kv.add(RUN, "n")
        pid = writer_pid(store_path)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(inmem.CommitUnknownError) as caught, db.transaction(RUN, timeout_s=0.1) as txn:
                txn.kv.add("n")
        finally:
            os.kill(pid, signal.SIGCONT)
        for number in range(MAX_IN_FLIGHT + 100):
            db.kv.put(RUN, "k", number)
        assert db.kv.get(RUN, "n") == 2
        caught.value.resend()
        assert db.kv.get(RUN, "n") == 2 and txn.version


def test_an_unknown_commit_resolves_at_the_next_writer(store_path: Path) -> None:
    """Stopped, then killed with the request in its mailbox: one result at the writer after it."""
    with inmem.open(store_path) as db:
        db.kv.add(RUN, "n")
        pid = writer_pid(store_path)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(inmem.CommitUnknownError) as caught, db.transaction(RUN, timeout_s=0.2) as txn:
            total = txn.kv.add("n")
        kill(pid)
        caught.value.resend(timeout_s=20.0)
        assert total.value == 2 and db.kv.get(RUN, "n") == 2
        assert db.kv.add(RUN, "n") == 3


def test_a_snapshot_has_a_maximum_age(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INMEM_SNAPSHOT_MAX_AGE_S", "0.3")
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)

        def too_old(read: Any) -> bool:
            try:
                read()
            except inmem.SnapshotTooOldError as error:
                assert error.retryable
                return True
            return False

        with db.snapshot(RUN) as view:
            assert view.kv.get("k") == 1
            wait_until(lambda: too_old(lambda: view.kv.get("k")), "the snapshot ends", 5.0)
            assert too_old(lambda: view.kv.count()), "and says so as often as it is asked"
        txn = db.transaction(RUN)
        assert txn.kv.get("k") == 1
        wait_until(lambda: too_old(lambda: txn.kv.get("other")), "the transaction ends", 5.0)
        txn.abort()
        assert db.kv.get(RUN, "k") == 1, "the handle goes on"


# --- reader slots -----------------------------------------------------------------------------------


def test_three_hundred_snapshots_at_once(store_path: Path, workers: Workers) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", "v")
        readers = [workers.start(read_slots, store_path, 160) for _ in range(2)]
        workers.words.open_gate()
        while any(reader.process.poll() is None for reader in readers):
            db.kv.put("other", "n", 1)  # writes go on beside them
        assert [reader.result() for reader in readers] == [160, 160]


def test_slots_used_up_and_given_back(
    store_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INMEM_MAX_READERS", "8")
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", "v")
        views: list[inmem.Snapshot] = []
        with pytest.raises(inmem.BusyError) as caught:
            for _ in range(200):
                views.append(db.snapshot(RUN))
        assert 4 <= len(views) < 200 and caught.value.limit and caught.value.retryable
        for view in views:
            assert view.kv.get("k") == "v"
            view.close()
        assert db.kv.get(RUN, "k") == "v"
        for _ in range(3):  # readers that are killed leave no slot behind
            holder = workers.start(hold_open, 0, store_path)
            wait_until(lambda: workers.words[0], "the reader is there")
            kill(holder.pid)
            workers.words[0] = 0
        for _ in range(20):
            with db.snapshot(RUN) as view:
                assert view.kv.get("k") == "v"


# --- trust ------------------------------------------------------------------------------------------


def test_a_directory_that_others_can_enter_is_refused(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
    stop_writer(store_path)
    os.chmod(store_path, 0o755)
    with pytest.raises(inmem.PermissionDeniedError, match="0755"):
        inmem.open(store_path)
    os.chmod(store_path, 0o700)
    with inmem.open(store_path) as db:
        assert db.kv.get(RUN, "k") == 1


def test_all_files_are_private(store_path: Path) -> None:
    old = os.umask(0)
    try:
        with inmem.open(store_path) as db:
            db.kv.put(RUN, "k", 1)
            image = Path(control_state(store_path).image)
            endpoint = Path(control_state(store_path).endpoint.removeprefix("ipc://"))
            memory = [image, *image.rglob("*"), endpoint, image.parent]
            everything = [store_path, *store_path.rglob("*"), *memory]
            open_to_others = [p for p in everything if p.lstat().st_mode & 0o077]
    finally:
        os.umask(old)
    assert open_to_others == [] and len(everything) > 8


def test_a_symlink_is_refused(store_path: Path, scratch: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
    link = scratch / "link"
    link.symlink_to(store_path)
    with pytest.raises(inmem.PermissionDeniedError, match="symlink"):
        inmem.open(link)
    link.unlink()
    (scratch / "target").mkdir(mode=0o700)
    link.symlink_to(scratch / "target")
    with pytest.raises(inmem.PermissionDeniedError, match="symlink"):
        inmem.open(link)
    assert os.listdir(scratch / "target") == []


@needs_root
def test_a_directory_of_somebody_else_is_refused(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
    stop_writer(store_path)
    before = sorted(os.listdir(store_path))
    os.chown(store_path, 12345, 12345)
    try:
        with pytest.raises(inmem.PermissionDeniedError, match="12345"):
            inmem.open(store_path)
        assert sorted(os.listdir(store_path)) == before
    finally:
        os.chown(store_path, os.geteuid(), os.getegid())


@needs_root
def test_another_user_is_refused(store_path: Path, scratch: Path) -> None:
    os.chmod(scratch, 0o755)
    # Another user once everything is imported: the interpreter may be in a place only root can enter.
    code = """
import os, sys, inmem
open_database = inmem.open
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
try:
    open_database(sys.argv[1], timeout_s=5.0)
except inmem.PermissionDeniedError as error:
    print("refused:", error)
"""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
        done = subprocess.run(
            [sys.executable, "-c", code, str(store_path)],
            capture_output=True, text=True, cwd="/", timeout=60, check=False,
        )
        assert done.stdout.startswith("refused:"), done.stdout + done.stderr


@needs_root
def test_a_read_only_directory_is_refused(scratch: Path) -> None:
    with tmpfs(scratch / "disk", 4 * MIB) as disk:
        (disk / "empty").mkdir(mode=0o700)
        with inmem.open(disk / "store") as db:
            db.kv.put(RUN, "k", 1)
        stop_writer(disk / "store")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for name in ("empty", "store", "missing"):
            with pytest.raises(inmem.PermissionDeniedError, match=r"read-only|Read-only"):
                inmem.open(disk / name)


def test_a_directory_that_holds_other_things_is_left_alone(store_path: Path) -> None:
    store_path.mkdir()
    (store_path / "letter.txt").write_text("dear")
    mode = store_path.stat().st_mode
    with pytest.raises(inmem.InvalidInputError, match="not empty"):
        inmem.open(store_path)
    assert os.listdir(store_path) == ["letter.txt"] and store_path.stat().st_mode == mode


def test_another_format_version_is_refused(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
    stop_writer(store_path)
    settings = store_path / "settings.json"
    text = settings.read_text()
    settings.write_text(text.replace(f'"format": {FORMAT_VERSION}', '"format": 999'))
    with pytest.raises(inmem.FormatVersionError) as caught:
        inmem.open(store_path)
    assert (caught.value.found, caught.value.supported) == (999, FORMAT_VERSION)
    settings.write_text(text)
    control = DataDirectory(store_path).control()
    control.close()


def test_a_flood_of_threads_does_not_starve_another_client(store_path: Path, workers: Workers) -> None:
    """One process floods with pipelines; another's single commits stay within bounds."""
    stop = threading.Event()
    wrong: list[BaseException] = []

    with inmem.open(store_path) as db:
        def flood(index: int) -> None:
            try:
                while not stop.is_set():
                    with db.pipeline() as pipe:
                        for n in range(500):
                            pipe.kv.put(f"flood-{index}", f"k{n % 20}", n)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=flood, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        try:
            victim = workers.start(write_until_told, 0, store_path)
            wait_until(lambda: workers.check() or workers.words[0] >= 100, "the victim makes progress")
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        workers.words.stop()
        assert victim.result() >= 100
        assert wrong == []


