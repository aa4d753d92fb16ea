"""More connections than the writer may have files open: libzmq ends a process that cannot accept one."""

from __future__ import annotations

import resource
import select
import socket
from pathlib import Path

from crash_workers import RUN, hold_open
from fault_workers import measured_adds
from processes import descriptors
from support import Workers, alive, control_state, wait_until, writer_pid

import inmem

REAL_PROGRAMS = True  # what a writer has open is counted


def test_a_writer_that_runs_out_of_open_files(store_path: Path, workers: Workers) -> None:
    """More connections than it may have: it lives, those it has are served, and newcomers after them."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 0)
        pid = writer_pid(store_path)
        workers.start(measured_adds, 0, store_path, 0.002)
        wait_until(lambda: workers.check() or workers.words[0] > 50, "another client works")
        limit = descriptors(pid) + 400
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
        address = control_state(store_path).endpoint.removeprefix("ipc://")
        crowd = []
        try:
            for _ in range(18):
                # libzmq accepts what has connected while load shedding waits for its turn on a busy machine.
                # So each is greeted or shut before the next ones come: the spare suffices for one batch.
                crowd += (new := [connect(address) for _ in range(50)])
                wait_until(lambda new=new: not alive(pid) or not waiting(new), "all are greeted, or shut")
                # Sooner than libzmq gives up those that do not answer its greeting, after 30 s.
                wait_until(lambda: not alive(pid) or descriptors(pid) < limit - 80, "it keeps some free", 15)
                assert alive(pid), "libzmq has ended the writer"
            before = workers.words[0]
            wait_until(lambda: workers.check() or workers.words[0] > before + 100, "others are served")
            for number in range(20):
                assert db.kv.add(RUN, "k") == number + 1
            db.events.append(RUN, "e", "x" * 1000)
            assert db.status().writer_pid == pid
        finally:
            for one in crowd:
                one.close()
        newcomer = workers.start(hold_open, 1, store_path)
        wait_until(lambda: workers.check() or workers.words[1], "a newcomer is served once they have gone")
        workers.words.stop()
        newcomer.result()
        assert alive(pid) and writer_pid(store_path) == pid
        assert db.check().problems == []


def connect(address: str) -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    one.connect(address)
    return one


def waiting(crowd: list[socket.socket]) -> int:
    """How many have neither been greeted nor shut."""
    poll = select.poll()
    for one in crowd:
        poll.register(one, select.POLLIN)
    return len(crowd) - len(poll.poll(0))
