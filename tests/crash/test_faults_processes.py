"""Processes that come, go, stop, fork, crowd and starve each other."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgpack
import pytest
import zmq
from committing import body, call
from fault_workers import RUN, flood, hold_snapshots, measured_adds, quantile, queue_up, visit
from raw_zmtp import frame, shake_hands
from support import (
    Workers,
    alive,
    control_state,
    epoch,
    kill,
    kill_writer,
    processes_of,
    stop_writer,
    wait_until,
    writer_pid,
)
from test_faults_hostile import HELLO, HOME, descriptors, memory_kib
from test_fork import in_child

import inmem
from inmem import wire
from inmem.config import MAX_IN_FLIGHT

SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
FORKS = int(os.environ.get("INMEM_TEST_FORKS", "40"))
TRIALS = int(os.environ.get("INMEM_TEST_TRIALS", "1"))
ROUNDS = int(os.environ.get("INMEM_TEST_ROUNDS", "3"))
MIB = 1 << 20
NORMAL = 8  # clients beside a greedy one
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")


# --- readers that die (row 12) ------------------------------------------------------------------------


def test_slots_of_a_hundred_killed_readers(
    store_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INMEM_MAX_READERS", "128")
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", "v")
        for part in range(2):
            workers.start(hold_snapshots, part * 50, 50, store_path)
        wait_until(lambda: workers.check() or all(workers.words[i] for i in range(100)), "all hold snapshots")
        views: list[inmem.Snapshot] = []
        with pytest.raises(inmem.BusyError):
            while len(views) < 128:
                views.append(db.snapshot(RUN))
        assert len(views) <= 28
        pids = [workers.words[i] for i in range(100)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        wait_until(lambda: not any(alive(pid) for pid in pids), "the readers are dead")

        def room() -> bool:
            try:
                while len(views) < 110:
                    views.append(db.snapshot(RUN))
            except inmem.BusyError:
                return False
            return True

        wait_until(room, "the slots are back")
        took = time.monotonic() - killed
        for view in views:
            assert view.kv.get("k") == "v"
            view.close()
        # Those that were freed are free for good: no slot leaked.
        views = [db.snapshot(RUN) for _ in range(120)]
        for view in views:
            view.close()
    assert took < 1.0 + 0.5, f"{took:.2f} s"  # a second, and the kills themselves on two busy cores
    print(f"100 readers killed: slots back after {took:.2f} s, leaked 0")


# --- forks (row 13) -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
@pytest.mark.timeout(120 + 2 * FORKS)
def test_forks_in_every_state(store_path: Path, workers: Workers) -> None:
    """Forked while idle, in a snapshot, in a transaction, beside a thread; every row is compared."""
    rng = random.Random(f"{SEED} forks")
    print(f"seed {SEED}")
    worker = workers.start(measured_adds, 0, store_path, 0.0)
    rows = {f"row-{n:03}": f"value {n} " * 20 for n in range(200)}
    outcomes = {"ok": 0, "ForkError": 0}
    compared = 0
    stop = threading.Event()
    wrong: list[BaseException] = []
    with inmem.open(store_path) as db:
        db.kv.put_many(RUN, rows)

        def read() -> None:
            try:
                while not stop.is_set():
                    key = f"row-{rng.randrange(200):03}"
                    assert db.kv.get(RUN, key) == rows[key]
                    time.sleep(0.001)
            except BaseException as error:
                wrong.append(error)

        thread = threading.Thread(target=read)
        for number in range(FORKS):
            if number == FORKS // 2:
                thread.start()  # from here on there is another thread
            state = ("idle", "snapshot", "transaction")[rng.randrange(3)]

            def work() -> None:
                assert dict(db.kv.list_with_values(RUN)) == rows
                assert db.kv.add("children", "n") > 0

            if state == "idle":
                said = in_child(work)
                compared += said == "ok"
            else:
                with db.snapshot(RUN) if state == "snapshot" else db.transaction(RUN) as view:
                    assert view.kv.get("row-000") == rows["row-000"]
                    said = in_child(work)
                    done = workers.words[0]
                    wait_until(lambda d=done: workers.check() or workers.words[0] > d + 5, "writes go on")
                    assert dict(view.kv.list_with_values()) == rows
                    compared += 1
                assert said == "ForkError", said
            outcomes[said] += 1
            assert dict(db.kv.list_with_values(RUN)) == rows
            compared += 1
        stop.set()
        thread.join()
        assert not wrong, wrong
        assert db.kv.get("children", "n", 0) == outcomes["ok"] > 0
        workers.words.stop()
        worker.result()
    print(f"{FORKS} forks: {outcomes}, {compared * len(rows)} rows compared, wrong rows 0")


def add_once(db: inmem.Database, name: str) -> None:
    db.kv.add("children", name)
    db.close()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_ways_to_start_a_child_inside_a_snapshot(db: inmem.Database, method: str) -> None:
    """Where a fork is refused these are not."""
    db.kv.put(RUN, "k", 1)
    context = multiprocessing.get_context(method)
    with db.snapshot(RUN) as view:
        child = context.Process(target=add_once, args=(db, method))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        child.close()
        assert view.kv.get("k") == 1 and db.kv.get("children", method) == 1


# --- writers (rows 14 and 15) -------------------------------------------------------------------------


@pytest.mark.timeout(120 + 10 * TRIALS)
def test_ten_writers_started_at_once(store_path: Path) -> None:
    """The writers themselves, without a launcher that lets only one start: one wins, the others say so."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 0)
    for trial in range(TRIALS):
        wait_until(lambda: not writer_pid(store_path) or stop_writer(store_path) is None, "no writer")
        before = epoch(store_path)
        some = [
            subprocess.Popen(
                [sys.executable, "-m", "inmem.writer", str(store_path)], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            for _ in range(10)
        ]
        try:
            losers = wait_until(
                lambda w=some: (found := [one for one in w if one.poll() is not None])
                and len(found) >= 9 and found, "nine give up",
            )
            assert len(losers) == 9
            for one in losers:
                assert one.returncode == 1 and one.stderr and "has a writer already" in one.stderr.read()
            winner = next(one for one in some if one not in losers)
            wait_until(lambda p=winner.pid: writer_pid(store_path) == p, "the one serves")
            assert epoch(store_path) == before + 1
            with inmem.open(store_path, autostart=False) as db:
                db.kv.put(RUN, "k", trial)
                assert db.status().writer_pid == winner.pid
            winner.send_signal((signal.SIGTERM, signal.SIGKILL)[trial % 2])
            winner.wait(10)
        finally:
            for one in some:
                if one.poll() is None:
                    one.kill()
                one.wait()
                assert one.stderr is not None
                one.stderr.close()
    print(f"{TRIALS} trials of ten writers, winners 1 each")


def test_a_writer_that_is_wedged(store_path: Path, workers: Workers) -> None:
    """Stopped under commits of every kind: each is told at its deadline, and resolved to one result."""
    rng = random.Random(f"{SEED} wedged")
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", "v")
        db.cells.init(RUN, "cell", 0)
        late: list[float] = []
        unknown: list[inmem.CommitUnknownError] = []
        wrong: list[BaseException] = []
        threads_ready = threading.Barrier(13)

        def work(index: int, timeout_s: float) -> None:
            try:
                db.kv.add(RUN, "n")  # its session is there before the writer stops
                threads_ready.wait(30)
                threads_ready.wait(30)
                began = time.monotonic()
                try:
                    with db.transaction(RUN, timeout_s=timeout_s) as txn:
                        if index % 3 == 0:
                            txn.kv.add("n")
                        elif index % 3 == 1:
                            txn.events.append("late", index)
                        else:
                            txn.cells.set(f"cell-{index}", index)
                except inmem.CommitUnknownError as error:
                    late.append(time.monotonic() - began - timeout_s)
                    unknown.append(error)
                threads_ready.wait(30)
                threads_ready.wait(30)  # a thread that ends would take its session with it
            except BaseException as error:
                wrong.append(error)
                threads_ready.abort()

        threads = [
            threading.Thread(target=work, args=(index, rng.uniform(0.1, 0.6))) for index in range(12)
        ]
        for thread in threads:
            thread.start()
        pid = writer_pid(store_path)
        threads_ready.wait(30)
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            threads_ready.wait(30)
            reads = 0
            while len(unknown) < 12 and time.monotonic() - began < 10:
                assert db.kv.get(RUN, "k") == "v" and db.kv.get(RUN, "n") == 12
                reads += 1
            assert not wrong, wrong
            threads_ready.wait(30)
        finally:
            os.kill(pid, signal.SIGCONT)
        for error in unknown:
            error.resend(timeout_s=20.0)
        threads_ready.wait(30)
        for thread in threads:
            thread.join(30)
        assert not wrong, wrong
        assert len({error.commit_id for error in unknown}) == 12
        assert db.kv.get(RUN, "n") == 12 + 4
        assert sorted(event.payload for event in db.events.iter(RUN)) == [1, 4, 7, 10]
        assert [db.cells.read(RUN, f"cell-{n}").value for n in (2, 5, 8, 11)] == [2, 5, 8, 11]
        assert writer_pid(store_path) == pid and reads > 100
    assert min(late) >= 0 and quantile(late, 0.99) < 0.5, late
    print(
        f"12 commits of a stopped writer: p99 {quantile(late, 0.99) * 1000:.0f} ms over the deadline, "
        f"{reads} reads meanwhile, each resolved once"
    )


# --- a full mailbox (row 16) --------------------------------------------------------------------------


@pytest.mark.timeout(120 + 5 * ROUNDS)
def test_what_waits_for_a_dead_writer_is_applied_once(store_path: Path, workers: Workers) -> None:
    """Stopped until all clients wait, then killed with their requests in its mailbox; again and again."""
    per_kill = 6
    count = ROUNDS * per_kill
    print(f"{ROUNDS} kills")
    with inmem.open(store_path) as db:
        for index in range(4):
            workers.start(queue_up, index, store_path, count)
        for number in range(ROUNDS):
            wait_until(
                lambda n=number: workers.check()
                or all(workers.words[i] >= min(n * per_kill + 1, count) for i in range(4)),
                "all work", 60.0,
            )
            pid = wait_until(lambda: writer_pid(store_path), "a writer serves")
            os.kill(pid, signal.SIGSTOP)
            # Once none of them gets on, each has its window in the mailbox.
            seen = [-1]

            def stuck(seen: list[int] = seen) -> bool:
                now = workers.words.total(4)
                same, seen[0] = now == seen[0], now
                time.sleep(0.05)
                return same

            wait_until(stuck, "all wait")
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda p=pid: writer_pid(store_path) not in (0, p), "another writer")
        results = workers.results()
        for index in range(4):
            assert db.kv.get("queued", f"n-{index}") == results[index]["added"] == count
            for half in range(2):
                numbers = [event.payload for event in db.events.iter(f"log-{index}-{half}")]
                assert numbers == list(range(half, count * 40, 2)), "each once, in order"
        assert db.check().problems == []
    print(f"{ROUNDS} writers killed with full mailboxes, {4 * count * 41} commits, lost 0, doubled 0")


# --- greed (rows 18 and 19) ---------------------------------------------------------------------------


def test_one_greedy_client_among_eight(store_path: Path, workers: Workers) -> None:
    """Small commits of eight clients with a flooder beside them, then with one of giant transactions."""
    with inmem.open(store_path) as db:
        normal = [workers.start(measured_adds, index, store_path, 0.005) for index in range(NORMAL)]

        def phase(number: int, what: str, commits: int) -> None:
            workers.words[200] = number
            before = [workers.words[i] for i in range(NORMAL)]
            wait_until(
                lambda: workers.check()
                or all(workers.words[i] >= before[i] + commits for i in range(NORMAL)), what, 60.0,
            )

        phase(0, "all have begun", 20)
        phase(1, "all work", 100)
        workers.start(flood, NORMAL, store_path, False)
        wait_until(lambda: workers.check() or workers.words[NORMAL], "the flood has begun")
        phase(2, "all make progress beside a flood", 60)
        workers.start(flood, NORMAL + 1, store_path, True)
        wait_until(lambda: workers.check() or workers.words[NORMAL + 1], "the giants have begun", 60.0)
        phase(3, "all make progress beside giants", 20)
        workers.words.stop()
        results = [worker.result() for worker in normal]
        greedy = workers.results()[NORMAL:]
        assert db.check().problems == []
    p99 = [max(r["phases"][str(n)]["p99"] for r in results) * 1000 for n in range(4)]
    worst = [max(r["phases"][str(n)]["max"] for r in results) * 1000 for n in range(4)]
    print(
        f"p99 of {NORMAL} normal clients: {p99[1]:.1f} ms alone, {p99[2]:.1f} ms beside a flood (ratio "
        f"{p99[2] / p99[1]:.1f}), {p99[3]:.1f} ms with giant transactions too (ratio "
        f"{p99[3] / p99[1]:.1f}); slowest {worst[1]:.0f}, {worst[2]:.0f} and {worst[3]:.0f} ms; "
        f"greedy clients {greedy}"
    )
    # Generous: the flooder has one of two cores to itself, and eight clients share what is left.
    assert p99[2] < max(100 * p99[1], 500.0)
    assert worst[3] < 10_000.0


def test_a_session_may_not_have_too_much_unanswered(store_path: Path) -> None:
    """The bound on commits in flight holds against a client that does not keep it itself."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
        state = control_state(store_path)
        context = zmq.Context()
        dealer = context.socket(zmq.DEALER)
        try:
            dealer.setsockopt(zmq.RCVTIMEO, 10_000)
            dealer.connect(state.endpoint)
            session = os.urandom(16)
            dealer.send(wire.hello(**HELLO | {
                "database": state.database_id, "session": session, "pid": os.getpid(),
            }))
            assert wire.parse_map(dealer.recv())["known"]
            add = body(call("kv.add", b"default/default/default/greedy\0\1n", 1, 0))
            for sequence in range(1, MAX_IN_FLIGHT + 50):
                dealer.send(wire.COMMIT_HEADER.pack(wire.COMMIT, 0, session, sequence, 1) + add)
            # Those that fit the ring are on the board; the first refusal comes through the socket.
            while True:
                data = dealer.recv()
                _, status, sequence, _ = wire.ANSWER_HEADER.unpack_from(data)
                if status == wire.REFUSED:
                    break
            code, message, _ = msgpack.unpackb(data[wire.ANSWER_HEADER.size :])
            assert code == "busy" and sequence == MAX_IN_FLIGHT + 1, (code, message, sequence)
        finally:
            context.destroy(0)
        assert db.kv.get("greedy", "n") == MAX_IN_FLIGHT
        assert writer_pid(store_path) == state.pid


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_client_that_never_reads_its_answers(store_path: Path, workers: Workers, size: str) -> None:
    """Its answers are dropped at a bound; the writer goes on, and holds no more for it."""
    with inmem.open(store_path):
        worker = workers.start(measured_adds, 0, store_path, 0.002)
        wait_until(lambda: workers.check() or workers.words[0] > 100, "another client works")
        state = control_state(store_path)
        before = peak = memory_kib(state.pid)
        workers.words[200] = 1
        session = os.urandom(16)
        asked = 0
        with shake_hands(state.endpoint.removeprefix("ipc://")) as some:
            some.settimeout(0.5)
            some.sendall(frame(wire.hello(**HELLO | {
                "database": state.database_id, "session": session, "pid": os.getpid(),
            })))
            if size == "small":
                pieces = [frame(wire.REQUEST_HEADER.pack(wire.STATUS, n)) for n in range(20_000)]
            else:
                create = body(call("run.create", HOME, "greedy", "", [], b"\x80"))
                update = body(call("run.update", HOME, "greedy", "", "x" * MIB, [], b"\x80"))
                header = wire.COMMIT_HEADER
                pieces = [
                    frame(header.pack(wire.COMMIT, 0, session, n, n) + (create if n == 1 else update))
                    for n in range(1, 3000)
                ]
            deadline = time.monotonic() + 20.0
            for piece in pieces:
                try:
                    some.sendall(piece)
                except OSError:
                    break  # nothing more is taken from it, which bounds it too
                asked += 1
                peak = max(peak, memory_kib(state.pid)) if asked % 20 == 0 or size == "large" else peak
                if time.monotonic() > deadline:
                    break
            progress = workers.words[0]
            wait_until(lambda: workers.check() or workers.words[0] > progress + 100, "others are served")
            peak = max(peak, memory_kib(state.pid))
        assert writer_pid(store_path) == state.pid
        workers.words.stop()
        phases = worker.result()["phases"]
    print(
        f"{asked} {size} answers that nobody reads: the writer has {before / 1024:.0f} MiB before and at "
        f"most {peak / 1024:.0f} MiB; others p99 {phases['0']['p99'] * 1000:.1f} ms before, "
        f"{phases['1']['p99'] * 1000:.1f} ms meanwhile"
    )
    # It is shut out when the writer holds too much, some time after that: half of what it asks for is
    # far beyond the bound.
    assert asked > 50 and peak < 1536 * 1024


# --- many clients (row 20) ----------------------------------------------------------------------------


def test_two_hundred_clients_come_and_go(store_path: Path, workers: Workers) -> None:
    """Four waves of fifty at once; each leaves politely, is killed, or just exits. Nothing is kept."""
    waves = 4
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
        pid = writer_pid(store_path)
        settled: list[tuple[int, int]] = []
        came = 0
        for wave in range(1, waves + 1):
            hosts = [workers.start(visit, part * 25, 25, store_path, wave) for part in range(2)]
            wait_until(
                lambda w=wave: workers.check() or all(workers.words[i] == w for i in range(50)),
                "all are here",
            )
            at_once = descriptors(pid)
            assert db.status().clients >= 50
            workers.words.open_gate(wave)
            came += sum(host.result() for host in hosts)
            wait_until(lambda: db.status().clients <= 1, "the dead are forgotten")
            wait_until(lambda n=at_once: descriptors(pid) < n - 40, "their connections are closed")
            settled.append((descriptors(pid), memory_kib(pid)))
        assert came == waves * 50 and db.kv.get("guests", "n") == came == db.events.len("guests")
        assert writer_pid(store_path) == pid
        files, memory = zip(*settled, strict=True)
        print(f"{came} clients in {waves} waves: descriptors {files}, RssAnon {memory} KiB after each")
        assert max(files) - min(files[1:]) <= 2, "no descriptor is kept"
        assert memory[-1] - memory[0] < 8 * 1024, "no memory is kept"


# --- open files (row 21) ------------------------------------------------------------------------------

FILES = """
import os, resource, sys, time
import inmem
path, limit = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
kept = []

def fill(leave):
    while limit - sum(int(n) < limit for n in os.listdir("/proc/self/fd")) > leave:
        kept.append(os.open("/dev/null", os.O_RDONLY))

def case(when, leave):
    if when == "open":
        fill(leave)
        inmem.open(path).kv.put("r", "k", 1)
        return
    db = inmem.open(path)
    db.kv.put("r", "k", 1)
    pid = db.status().writer_pid
    fill(leave)
    os.kill(pid, 9)  # so that there are no files for another connection
    db.kv.put("r", "k", 1)

for word in sys.argv[3:]:
    when, leave = word.split(":")
    if os.fork() == 0:  # each in a process that has not used the store
        try:
            case(when, int(leave))
            said = "ok"
        except inmem.InmemError as error:
            said = f"{type(error).__name__} {getattr(error, 'what', None)}"
        while kept:
            os.close(kept.pop())
        with inmem.open(path) as db:
            assert db.kv.put("r", "k", 2) and db.kv.get("r", "k") == 2
        print(word, said, flush=True)
        os._exit(0)
    status = os.wait()[1]
    if status:
        print(word, "ended with", status, flush=True)
"""


def test_a_client_that_runs_out_of_open_files(store_path: Path) -> None:
    """However few are left, at the start or later: an error that says so, no abort, and no wrong reason."""
    few = [2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 20, 30]
    cases = [f"open:{leave}" for leave in few] + [f"later:{leave}" for leave in (2, 5, 8, 14)]
    with inmem.open(store_path):
        done = subprocess.run(
            [sys.executable, "-c", FILES, str(store_path), "128", *cases, "open:48", "later:48"],
            capture_output=True, text=True, timeout=90, check=False,
        )
        assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr}"
        said = [line.split(" ", 1) for line in done.stdout.splitlines()]
        assert [what for _, what in said[-2:]] == ["ok", "ok"], done.stdout + done.stderr
        wrong = [line for line in said[:-2] if line[1] != "LimitError open files"]
        assert len(said) == len(cases) + 2 and not wrong, f"{wrong}\n{done.stderr}"
    print(f"{len(cases)} cases of too few open files: clear errors {len(cases)}, aborts 0")


# --- settings and users (rows 22d and 24) -------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "asked"),
    [("buffered", "memory"), ("buffered", "sync"), ("sync", "memory"), ("sync", "buffered")],
)
def test_a_respawned_writer_never_weakens_durability(
    store_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, asked: str
) -> None:
    """The client that starts the next writer has another durability in its environment."""
    with inmem.open(store_path, durability=stored) as db:
        monkeypatch.setenv("INMEM_DURABILITY", asked)
        kill_writer(store_path)
        version = db.kv.put(RUN, "k", 2)
        assert db.status().durability == stored
        if stored == "sync":
            assert db.status().durable_version >= version
        monkeypatch.delenv("INMEM_DURABILITY")
    assert f'"durability": "{stored}"' in (store_path / "settings.json").read_text()


INTRUDER = """
import os, sys, zmq
import inmem
from inmem import wire
with inmem.open(sys.argv[1]) as db:
    db.kv.put("r", "k", "secret")
    state = db.engine.attachment.control.read()
    socket = state.endpoint.removeprefix("ipc://")
    # Even where the directories are open to all, which they never are:
    os.chmod(os.path.dirname(socket), 0o755)
    os.chmod(socket, 0o777)
    read_fd, write_fd = os.pipe()
    for uid in (0, 65534):
        if os.fork() == 0:
            try:
                if uid:
                    os.setgroups([])
                    os.setresgid(uid, uid, uid)
                    os.setresuid(uid, uid, uid)
                said = b"?"
                some = zmq.Context().socket(zmq.DEALER)
                some.setsockopt(zmq.RCVTIMEO, 1000)
                some.connect(state.endpoint)
                some.send(wire.REQUEST_HEADER.pack(wire.STATUS, 1))
                try:
                    said = b"answered" if some.recv() else b"?"
                except zmq.Again:
                    said = b"nothing"
                for path in (sys.argv[1] + "/settings.json", state.image + "/data.mdb", state.image):
                    try:
                        os.open(path, os.O_RDONLY)
                        said += b" read"
                    except PermissionError:
                        said += b" denied"
                os.write(write_fd, said + b";")
            finally:
                os._exit(0)
        os.wait()
    print(os.read(read_fd, 1000).decode())
    os.chmod(os.path.dirname(socket), 0o700)
    os.kill(db.status().writer_pid, 15)
"""


@needs_root
def test_another_user_at_the_socket(store_path: Path, scratch: Path) -> None:
    """The same request is answered to the owner, and to nobody else, even through a socket open to all."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not installed")
    os.chmod(scratch, 0o755)
    done = subprocess.run(
        [unshare, "--mount", "sh", "-c", 'mount -t tmpfs -o mode=1777 tmpfs /dev/shm && exec "$@"', "sh",
         sys.executable, "-c", INTRUDER, str(store_path)],
        capture_output=True, text=True, cwd="/", timeout=60, check=False,
    )
    if "unshare failed" in done.stderr:
        pytest.skip(f"no mount namespace can be made here: {done.stderr.strip()}")
    owner, other, _ = done.stdout.strip().split(";")
    assert owner.startswith("answered read"), done.stdout + done.stderr
    assert other == "nothing denied denied denied", done.stdout + done.stderr
    wait_until(lambda: not processes_of(store_path), "its writer has left")


def test_a_kill_is_a_kill() -> None:
    """The helper of these tests does what it says: or else they would prove little."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    kill(child.pid)
    assert child.wait(5) == -signal.SIGKILL
