"""Programs that know nothing of each other share a store, and agree on one writer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crash_workers import RUN, hold_open, leave_a_note
from support import (
    Workers,
    alive,
    control_state,
    epoch,
    kill,
    kill_writer,
    processes_of,
    runtime_entries,
    stop_writer,
    wait_until,
    writer_pid,
)

import inmem
from inmem.host.directory import DataDirectory
from inmem.host.files import FileLock

REAL_PROGRAMS = True  # how writers are started is what is tested

PROGRAMS = 10


WRITING = """
import sys, inmem
with inmem.open(sys.argv[1]) as db:
    db.kv.put("run-1", "greeting", ["hello", 1, b"bytes"])
    db.events.append("run-1", "greeted", {"by": "one"})
    print(db.status().writer_pid, flush=True)
    sys.stdin.read()
"""


READING = """
import sys, json, inmem
with inmem.open(sys.argv[1]) as db:
    value = db.kv.get("run-1", "greeting")
    assert value == ["hello", 1, b"bytes"], value
    event = db.events.head("run-1")
    n = db.kv.add("run-1", "visits")
    print(json.dumps([db.status().writer_pid, event.payload, n]))
"""


def program(code: str, path: Path, **more: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, cwd="/", **more,  # type: ignore[call-overload]
    )


def test_two_programs_share_a_store(store_path: Path) -> None:
    with program(WRITING, store_path) as first:
        assert first.stdin and first.stdout
        pid = int(first.stdout.readline())
        out, _ = program(READING, store_path).communicate(timeout=30)
        assert json.loads(out) == [pid, {"by": "one"}, 1]
        first.stdin.close()
    assert first.returncode == 0
    out, _ = program(READING, store_path).communicate(timeout=30)
    assert json.loads(out)[1:] == [{"by": "one"}, 2], "what the first wrote outlives it"


@pytest.mark.parametrize("trial", range(3))
def test_ten_started_at_once_agree_on_one_writer(store_path: Path, workers: Workers, trial: int) -> None:
    for index in range(PROGRAMS):
        workers.start(leave_a_note, index, store_path)
    wait_until(lambda: workers.words.total(PROGRAMS) == PROGRAMS, "all programs run")
    workers.words.open_gate()
    wait_until(
        lambda: workers.check() or all(workers.words[64 + i] for i in range(PROGRAMS)), "all have written"
    )
    serving = [pid for pid, line in processes_of(store_path) if "inmem.writer" in line]
    assert serving == [writer_pid(store_path)], "one writer process, and it is the one in the control file"
    lock = FileLock(store_path / "writer.lock")
    try:
        assert not lock.try_shared(), "the writer holds its lock"
    finally:
        lock.close()
    workers.words.open_gate(2)
    results = workers.results()
    assert {result["writer"] for result in results} == set(serving)
    assert {result["epoch"] for result in results} == {1}
    assert [result["notes"] for result in results] == [PROGRAMS] * PROGRAMS


def test_all_clients_of_a_killed_writer_agree_on_the_next(store_path: Path, workers: Workers) -> None:
    """Ten sessions find the writer dead in the same moment; one new writer serves all."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
        before = epoch(store_path)
        kill_writer(store_path)
        for index in range(PROGRAMS):
            workers.start(leave_a_note, index, store_path)
        wait_until(lambda: workers.words.total(PROGRAMS) == PROGRAMS, "all programs run")
        workers.words.open_gate()
        workers.words.open_gate(2)
        results = workers.results()
        assert len({result["writer"] for result in results}) == 1
        assert {result["epoch"] for result in results} == {before + 1}


def test_a_second_writer_leaves_the_first_alone(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        pid, before = writer_pid(store_path), epoch(store_path)
        for _ in range(3):
            second = subprocess.run(
                [sys.executable, "-m", "inmem.writer", str(store_path)],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
            )
            assert second.returncode == 1 and "has a writer already" in second.stderr
        db.kv.put(RUN, "k", 1)
        assert (writer_pid(store_path), epoch(store_path)) == (pid, before)


def test_stale_socket_and_pid_of_a_killed_writer(store_path: Path) -> None:
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
    state = control_state(store_path)
    kill(state.pid)
    stale = Path(state.endpoint.removeprefix("ipc://"))
    assert stale.is_socket() and control_state(store_path).pid == state.pid, "the kill left both"
    with inmem.open(store_path) as db:
        assert db.kv.get(RUN, "k") == 1
        assert db.kv.put(RUN, "k", 2) > 0
        assert writer_pid(store_path) not in (0, state.pid)
    assert not stale.exists()


def test_the_pid_of_a_killed_writer_belongs_to_another_process(store_path: Path) -> None:
    """The control file names a living process that is no writer: the lock tells the truth."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
    kill(control_state(store_path).pid)
    control = DataDirectory(store_path).control(writable=True)
    control.update(pid=os.getpid())
    control.close()
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 2)
        assert writer_pid(store_path) not in (0, os.getpid())
        assert db.kv.get(RUN, "k") == 2


def test_a_socket_that_somebody_else_bound_is_not_believed(store_path: Path) -> None:
    """The file under the endpoint's name belongs to another program, which answers nothing."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
    state = control_state(store_path)
    kill(state.pid)
    stale = Path(state.endpoint.removeprefix("ipc://"))
    stale.unlink()
    with socket.socket(socket.AF_UNIX) as impostor:
        impostor.bind(str(stale))
        impostor.listen()
        with inmem.open(store_path, timeout_s=10.0) as db:
            assert db.kv.put(RUN, "k", 2) and db.kv.get(RUN, "k") == 2


def test_a_forked_child_that_holds_the_client_lock_keeps_the_writer_only_while_it_lives(
    store_path: Path,
) -> None:
    monkey = {"INMEM_LINGER_S": "0.2"}
    os.environ.update(monkey)
    try:
        database = inmem.open(store_path)
    finally:
        for name in monkey:
            del os.environ[name]
    pid = writer_pid(store_path)
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write_fd)
        os.read(read_fd, 1)
        os._exit(0)
    database.close()
    # Twice the time after which it would leave, seen by the writer's own timer: it stays.
    deadline = time.monotonic() + 0.8
    while time.monotonic() < deadline:
        assert alive(pid), "the child may still use the store"
        time.sleep(0.05)
    os.close(write_fd)
    os.close(read_fd)
    os.waitpid(child, 0)
    wait_until(lambda: not alive(pid), "the writer leaves after its last client")
    assert runtime_entries(store_path) == []


def test_the_writer_leaves_after_the_last_client_was_killed(
    store_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INMEM_LINGER_S", "0.1")
    some = [workers.start(hold_open, index, store_path) for index in range(3)]
    wait_until(lambda: workers.words.total(3) == 3, "three clients hold the store open")
    pid = writer_pid(store_path)
    for worker in some:
        kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), "the writer leaves")
    assert runtime_entries(store_path) == []
    assert control_state(store_path).pid == 0


def test_launching_ends_when_writers_keep_dying(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that cannot live is told of within bounds, and is not started without end."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
    stop_writer(store_path)
    monkeypatch.setenv("INMEM_FAILPOINT", "replayed:1")
    started = epoch(store_path)
    with pytest.raises(inmem.WriterUnavailableError, match="died while it started"):
        inmem.open(store_path, timeout_s=10.0)
    assert epoch(store_path) == started
    assert processes_of(store_path) == []
    monkeypatch.delenv("INMEM_FAILPOINT")
    with inmem.open(store_path) as db:
        assert db.kv.get(RUN, "k") == 1
