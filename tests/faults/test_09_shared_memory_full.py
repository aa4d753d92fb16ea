"""Shared memory is full or too small: a typed error, and no signal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from crash_workers import RUN, read_slots
from small_disks import MIB, ballast, needs_root, tmpfs
from support import Workers, kill_writer, stop_writer, writer_pid

import inmem


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
                        db.kv.put(RUN, "big", bytes(2 * MIB))
                assert db.kv.get(RUN, "k") == "v" and db.kv.count(RUN, "small-") == 20
                # New readers need slots in a full memory: their process must not die of SIGBUS.
                reader = workers.start(read_slots, path, 200)
                workers.words.open_gate()
                assert reader.result() == 200
                taken.unlink()
                db.kv.put(RUN, "big", bytes(2 * MIB))
                assert writer_pid(path) == pid, "the writer lived through it"
                assert db.check().problems == []
                taken = ballast(memory, leave=0)
                kill_writer(path)
                taken.unlink()
                assert len(db.kv.get(RUN, "big")) == 2 * MIB and db.kv.put(RUN, "after", 1)
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
    assert db.kv.get("r", "n") == 20 and db.events.count("r") == 20
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
