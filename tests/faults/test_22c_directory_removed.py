"""The data directory or the runtime directory is removed under a living writer."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crash_workers import RUN, hold_open
from generation_workers import visit
from generations import image_of, running
from small_disks import needs_root
from support import Workers, alive, control_state, wait_until, writer_pid
from test_22c_files_removed import NOTICED_S

import inmem


def test_the_data_directory_is_removed(store_path: Path, workers: Workers) -> None:
    with inmem.open(store_path), inmem.open(store_path, timeout_s=1.0) as db:
        db.kv.put(RUN, "k", "v")
        assert db.kv.get(RUN, "k") == "v", "this process has the image open"
        holding = workers.start(hold_open, 0, store_path)
        wait_until(lambda: workers.check() or workers.words[0], "another client is there")
        pid, image = writer_pid(store_path), image_of(store_path)
        stem = image.name.rpartition("-")[0]
        shutil.rmtree(store_path)
        began = time.monotonic()
        wait_until(lambda: not alive(pid), "the writer leaves", NOTICED_S)
        left_s = time.monotonic() - began
        assert list(image.parent.glob(f"{stem}-*")) == [], "nothing is left in memory"
        for call in (lambda: db.kv.add("elsewhere", "n"), lambda: db.kv.get(RUN, "k")):
            with pytest.raises(inmem.DatabaseGoneError, match="was removed"):
                call()
        workers.words.stop()
        holding.result()
        assert not store_path.exists()
    print(f"the writer of a removed directory left after {left_s:.2f} s")


def test_the_data_directory_is_removed_and_made_anew(store_path: Path, workers: Workers) -> None:
    """While the writer of the old one lives, another database begins at its path; neither sees the other."""
    with inmem.open(store_path), inmem.open(store_path, timeout_s=0.7) as db:
        db.kv.put(RUN, "k", "old")
        db.kv.put(RUN, "only-old", 1)
        assert db.kv.get(RUN, "k") == "old", "this process has the image open, and keeps it"
        old = control_state(store_path)
        os.kill(old.pid, signal.SIGSTOP)  # so that it does not notice before there is another
        with running(old.pid):
            shutil.rmtree(store_path)
            new = workers.start(hold_open, 0, store_path)
            wait_until(lambda: workers.check() or workers.words[0], "a new database is at the path")
            state = control_state(store_path)
            assert alive(old.pid) and state.pid != old.pid, "two databases, two writers"
            assert state.image != old.image and state.endpoint != old.endpoint
        try:
            db.kv.put(RUN, "k", "older")  # the old writer may still take it, the new one never
        except (inmem.CommitUnknownError, inmem.DatabaseGoneError):
            pass
        wait_until(lambda: not alive(old.pid), "the old writer leaves", NOTICED_S)
        assert alive(state.pid) and Path(state.image).is_dir() and not Path(old.image).exists()
        with pytest.raises(inmem.DatabaseGoneError):
            db.kv.put(RUN, "k", "lost")
        with pytest.raises(inmem.DatabaseGoneError):
            db.kv.get(RUN, "k")
        visitor = workers.start(visit, store_path, 20.0).result()
        assert visitor["writer"] == state.pid and visitor["value"] is None
        workers.words.stop()
        new.result()
    with inmem.open(store_path) as db:
        assert db.kv.get(RUN, "k") is None and db.kv.get(RUN, "only-old") is None
        assert db.kv.get(RUN, "here-0") is True and db.kv.get(RUN, "visited") == state.pid
        assert db.check().problems == []


NO_RUNTIME_DIRECTORY = """
import os, shutil, subprocess, sys, threading, time
import inmem

path = sys.argv[1]
visitor = "import sys, inmem\\nwith inmem.open(sys.argv[1]) as db: print(db.kv.add('r', 'visits'))"
with inmem.open(path) as db:
    stopping, wrong, done = threading.Event(), [], [0] * 4

    def work(index):
        try:
            while not stopping.is_set():
                assert db.kv.add("r", f"n-{index}") == done[index] + 1
                done[index] += 1
                assert db.kv.get("r", f"n-{index}") == done[index]
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads: thread.start()
    before = db.status()
    runtime = os.path.dirname(db.engine.attachment.control.read().image)
    assert runtime.startswith("/dev/shm/"), runtime
    for _ in range(1):
        generation, epoch = db.status().generation, db.status().epoch
        shutil.rmtree(runtime)
        began = time.monotonic()
        while db.status().epoch == epoch or db.status().generation == generation:
            assert time.monotonic() - began < 5, "not noticed"
            time.sleep(0.01)
        print("noticed after %.2f s" % (time.monotonic() - began))
        then = list(done)
        while not wrong and not all(a > b for a, b in zip(done, then)):
            assert time.monotonic() - began < 20, "no progress"
            time.sleep(0.01)
    stopping.set()
    for thread in threads: thread.join()
    assert not wrong, wrong
    assert [db.kv.get("r", f"n-{index}") for index in range(4)] == done
    found = subprocess.run([sys.executable, "-c", visitor, path], capture_output=True, text=True)
    assert found.stdout.strip() == "1", found
    after = db.status()
    assert after.writer_pid == before.writer_pid
    assert (after.generation, after.epoch) == (before.generation + 1, before.epoch + 1)
    assert db.check().problems == []
    os.kill(after.writer_pid, 15)
print("served")
"""


@needs_root
def test_the_whole_runtime_directory_is_removed(store_path: Path) -> None:
    """Image, socket and answers at once, under four threads at work; in a shared memory of its own."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not installed")
    done = subprocess.run(
        [unshare, "--mount", "sh", "-c", 'mount -t tmpfs -o mode=1777 tmpfs /dev/shm && exec "$@"', "sh",
         sys.executable, "-c", NO_RUNTIME_DIRECTORY, str(store_path)],
        capture_output=True, text=True, cwd="/", timeout=60, check=False,
    )
    if "unshare failed" in done.stderr:
        pytest.skip(f"no mount namespace can be made here: {done.stderr.strip()}")
    assert done.stdout.strip().endswith("served"), done.stdout + done.stderr
    print(done.stdout)
