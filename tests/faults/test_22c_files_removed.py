"""Files that vanish under a living writer: it notices, and service goes on with one writer."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crash_workers import RUN, keep_reading, keep_working
from generation_workers import come_and_go, visit
from generations import image_of, images_left, log_of, running, verify
from support import (
    Workers,
    alive,
    control_state,
    epoch,
    processes_of,
    runtime_entries,
    wait_until,
    writer_pid,
)

import inmem

SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
NOTICED_S = 3.0  # the writer looks once a second
VANISHING = [("image", ".sock"), ("data.mdb", "writer.lock"), ("lock.mdb", ".answers"), ("clients.lock",)]


def socket_or_board(path: Path, ending: str) -> Path:
    (found,) = [entry for entry in runtime_entries(path) if entry.suffix == ending]
    return found


def vanish(path: Path, what: str) -> None:
    """Remove a file under the writer, or put another in its place."""
    if what == "image":
        shutil.rmtree(image_of(path))
    elif what in ("data.mdb", "lock.mdb"):
        (image_of(path) / what).unlink()
    elif what in (".sock", ".answers"):
        socket_or_board(path, what).unlink()
    elif what.startswith("another "):
        other = path / f"{what[8:]}.other"
        other.touch(mode=0o600)
        os.rename(other, path / what[8:])
    else:
        (path / what).unlink()


def is_locked(file: Path) -> bool:
    """Whether somebody holds a lock file alone."""
    try:
        fd = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def test_files_removed_under_work(store_path: Path, workers: Workers) -> None:
    """Four work, one reads, one comes and goes; every file that they share is removed, by ones and twos."""
    noticed: dict[str, float] = {}
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", 1)
        some = [workers.start(keep_working, index, store_path, SEED) for index in range(4)]
        visitor = workers.start(come_and_go, 4, store_path)
        reading = workers.start(keep_reading, store_path)
        wait_until(lambda: workers.check() or all(workers.words[i] for i in range(5)), "all have begun")
        pid = writer_pid(store_path)
        for some_files in VANISHING:
            told = log_of(store_path).count("was removed or replaced") + len(some_files)
            before = control_state(store_path)
            for what in some_files:
                vanish(store_path, what)
            began = time.monotonic()
            wait_until(
                lambda t=told: workers.check() or log_of(store_path).count("was removed or replaced") >= t,
                f"{some_files} are missed", NOTICED_S,
            )
            noticed[" and ".join(some_files)] = time.monotonic() - began
            wait_until(lambda: is_locked(store_path / "writer.lock"), "the lock is held", 5.0)
            so_far = [workers.words[i] for i in range(5)]
            wait_until(
                lambda b=so_far: workers.check() or all(workers.words[i] > n for i, n in enumerate(b)),
                "all go on, and new clients come in",
            )
            after = control_state(store_path)
            assert writer_pid(store_path) == pid
            image_gone = bool({"image", "data.mdb", "lock.mdb"} & set(some_files))
            assert after.generation - before.generation == image_gone
            assert after.epoch - before.epoch == bool({".sock", ".answers"} & set(some_files))
        serving = [p for p, line in processes_of(store_path) if "inmem.writer" in line and p != pid]
        wait_until(lambda: not any(alive(p) for p in serving), "all others were refused and have left", 5.0)
        workers.words.stop()
        acked = [worker.result() for worker in some]
        coming = visitor.result()
        views = reading.result()
        assert db.kv.get("visits", "of-4") == coming["visits"]
        verify(db, acked)
        assert writer_pid(store_path) == pid and db.status().writer_pid == pid
        assert images_left(store_path) == [image_of(store_path)]
    print(
        f"seed {SEED}: noticed after s {({what: round(s, 2) for what, s in noticed.items()})}; "
        f"{sum(workers.words[i] for i in range(4))} operations, {coming['visits']} visits, the slowest "
        f"{coming['slowest_s']:.2f} s, {views['reads']} reads; lost 0, doubled 0"
    )
    assert coming["slowest_s"] < NOTICED_S + 5.0


def second_writer(path: Path) -> str:
    """Start a writer by hand; why it was refused."""
    done = subprocess.run(
        [sys.executable, "-m", "inmem.writer", str(path)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
    )
    assert done.returncode == 1, done
    return done.stderr


def test_never_two_writers(store_path: Path, workers: Workers) -> None:
    """The lock file is removed, and others are started at once: by hand, and by clients that find no lock."""
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "k", "v")
        db.kv.add(RUN, "n")
        pid, first = writer_pid(store_path), epoch(store_path)
        (store_path / "writer.lock").unlink()
        # Which of its two reasons depends on who is sooner: it, or the writer that locks again.
        assert " has a writer" in second_writer(store_path)
        wait_until(lambda: is_locked(store_path / "writer.lock"), "the lock is held again", NOTICED_S)

        vanish(store_path, "another writer.lock")
        found = workers.start(visit, store_path, 20.0).result()
        assert found["writer"] == pid and found["value"] == "v"

        # The same while it cannot lock again: others wait in vain, and are told so in time.
        wait_until(lambda: is_locked(store_path / "writer.lock"), "the lock is held again", NOTICED_S)
        os.kill(pid, signal.SIGSTOP)
        with running(pid):
            (store_path / "writer.lock").unlink()
            coming = [workers.start(visit, store_path, 1.0) for _ in range(2)]
            assert "whose lock file was removed" in second_writer(store_path)
            with pytest.raises(inmem.CommitUnknownError) as unknown:  # noqa: SIM117
                with db.transaction(RUN, timeout_s=0.3) as txn:
                    txn.kv.add("n")
            assert db.kv.get(RUN, "k") == "v", "reads need no writer"
            for one in (worker.result() for worker in coming):
                assert one["code"] == "writer_unavailable" and one["seconds"] < 6.0, one
            assert alive(pid) and (writer_pid(store_path), epoch(store_path)) == (pid, first)
        unknown.value.resend(timeout_s=20.0)
        assert db.kv.get(RUN, "n") == 2
        wait_until(lambda: is_locked(store_path / "writer.lock"), "the lock is held again", NOTICED_S)
        assert workers.start(visit, store_path, 20.0).result()["writer"] == pid
        wait_until(
            lambda: [p for p, line in processes_of(store_path) if "inmem.writer" in line] == [pid],
            "the others have left", 5.0,
        )
        assert (writer_pid(store_path), epoch(store_path)) == (pid, first)
        assert db.check().problems == []
