"""A session expires between a commit and its answer: what it had done is not done again."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from crash_workers import RUN
from support import kill_writer, launches_held, wait_until, writer_pid

import inmem
from inmem.client.link import Link

# A writer that looks for idle sessions at each tick, and one of whose clocks is as far ahead as a file is
# long: that of the time since boot, by which sessions age, or the wall clock, by which they do not.
HURRIED = """
import os, sys
if "inmem.writer" in sys.orig_argv:
    import time
    _real = time.{clock}
    time.{clock} = lambda *which: _real(*which) + os.stat({path!r}).st_size * 10**9
    import inmem.writer.housekeeping
    assert inmem.writer.housekeeping.SESSIONS_EVERY_S
    inmem.writer.housekeeping.SESSIONS_EVERY_S = 0.1
"""


def store_time_us(db: inmem.Database) -> int:
    snapshot = db.engine.attachment.image.snapshot(30.0)
    try:
        return snapshot.now_us
    finally:
        snapshot.close()


def hurried_writers(scratch: Path, monkeypatch: pytest.MonkeyPatch, clock: str) -> Path:
    """What the writers that are started from now on take for the time; the file to lengthen."""
    ahead, site = scratch / "ahead", scratch / "site"
    ahead.touch()
    site.mkdir()
    (site / "sitecustomize.py").write_text(HURRIED.format(path=str(ahead), clock=clock))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("INMEM_SESSION_TTL_S", "600")
    return ahead


@pytest.mark.parametrize("writer", ["lives", "is killed after the leap", "is killed before the leap"])
def test_a_leap_of_the_wall_clock_ends_no_session(
    store_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    ahead = hurried_writers(scratch, monkeypatch, "time_ns")
    with inmem.open(store_path) as db:
        with db.pipeline() as pipe:  # a session that is connected, and idle meanwhile
            pipe.kv.put(RUN, "before", 1)
            pipe.flush()
            before = store_time_us(db)
            known = db.status().sessions
            if writer == "is killed before the leap":
                with launches_held(store_path):
                    kill_writer(store_path)
                    os.truncate(ahead, 3600)
            else:
                os.truncate(ahead, 3600)
                wait_until(lambda: store_time_us(db) - before > 3500 * 10**6, "the leap counts")
                db.kv.put(RUN, "k", 1)
                if writer == "is killed after the leap":
                    kill_writer(store_path)
            db.kv.put(RUN, "k", 2)
            assert store_time_us(db) - before > 3500 * 10**6
            time.sleep(1.0)  # several searches for idle sessions
            assert db.status().sessions == known
            pipe.kv.put(RUN, "after", 1)
        assert db.kv.get(RUN, "after") == 1


@pytest.mark.parametrize("answer", ["was lost", "is on the board"])
def test_a_session_that_expired_does_not_take_old_commits_along(
    store_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """What was applied under the old session, unknown to its caller, is not sent under the new one."""
    if answer == "was lost":
        monkeypatch.setattr(Link, "look", lambda self, sequence: None)
    ahead = hurried_writers(scratch, monkeypatch, "clock_gettime_ns")
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
