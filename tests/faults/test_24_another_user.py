"""Another user opens, connects or reads: refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from crash_workers import RUN
from support import processes_of, wait_until

import inmem

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")


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
