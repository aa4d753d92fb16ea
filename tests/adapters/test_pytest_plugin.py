"""pytest's plugin, in runs of pytest of its own."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from pytest_runs import run_pytest


def run(scratch: Path, source: str, *options: str) -> tuple[int, str]:
    """Run a test file with nothing but the plugin; how it ended, and what it said."""
    place = scratch / "tests"
    place.mkdir()
    (place / "test_it.py").write_text("import inmem, os, pytest, sys\n" + textwrap.dedent(source))
    code, said = run_pytest(place, scratch, *options)
    left = [each.name for each in scratch.iterdir() if each.name.startswith("inmem-")]
    assert left == [], said
    return code, said


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_a_namespace_for_each_test_in_one_store(scratch: Path, options: tuple[str, ...]) -> None:
    code, said = run(scratch, """
        @pytest.mark.parametrize("n", range(60))
        def test_one(inmem_db, n):
            assert inmem_db.kv.get("run", "key") is None
            inmem_db.kv.put("run", "key", n)
            assert inmem_db.kv.get("run", "key") == n
            with open(os.environ["PIDS"], "a") as file:
                print(inmem_db.status().writer_pid, file=file)
    """.replace('os.environ["PIDS"]', repr(str(scratch / "pids"))), *options)  # fmt: skip
    assert code == 0 and "60 passed" in said, said
    assert len(set((scratch / "pids").read_text().split())) == 1  # one writer for all of them


def test_what_does_not_ask_for_a_store_imports_nothing(scratch: Path) -> None:
    code, said = run(scratch, """
        def test_one():
            assert "inmem.database" not in sys.modules
    """)
    assert code == 0, said


def test_a_clock_that_is_moved(scratch: Path) -> None:
    code, said = run(scratch, """
        from datetime import timedelta

        def test_one(inmem_fresh, inmem_clock):
            run = inmem_fresh.run("trip")
            run.kv.put_with_ttl("key", 1, 60)
            lease = run.leases.acquire("owner", ttl_s=30)
            run.queues.put("work", 1, delay_s=3600)
            inmem_clock.advance(20)
            assert run.kv.get("key") == 1 and run.queues.claim("work") is None
            inmem_clock.advance(41)
            assert run.kv.get("key") is None
            assert run.leases.acquire("owner", ttl_s=30).token > lease.token
            inmem_clock.advance(timedelta(hours=1))
            assert run.queues.claim("work").payload == 1
            before = inmem_clock.now()
            inmem_clock.advance(timedelta(days=30))
            assert 0 <= inmem_clock.now() - before - 30 * 86400 < 60

        def test_sessions_live_through_it(inmem_fresh, inmem_clock, inmem_writer):
            inmem_fresh.kv.put("run", "key", 1)
            inmem_clock.advance(10 * 86400)
            inmem_writer.kill()
            inmem_fresh.kv.put("run", "key", 2)
            assert inmem_fresh.kv.get("run", "key") == 2

        @pytest.mark.parametrize("seconds", [0, -1, "1", True, float("nan"), 1e10])
        def test_no_time(inmem_fresh, inmem_clock, seconds):
            with pytest.raises(inmem.InvalidInputError, match="seconds"):
                inmem_clock.advance(seconds)
    """)
    assert code == 0 and "8 passed" in said, said


def test_a_writer_that_fails(scratch: Path) -> None:
    code, said = run(scratch, """
        STEPS = ("logged", "published", "answering")

        def test_kill(inmem_fresh, inmem_writer):
            version = inmem_fresh.kv.put("run", "key", 1)
            first = inmem_writer.pid
            assert inmem_writer.kill() == first and inmem_writer.pid is None
            assert inmem_fresh.kv.get("run", "key") == 1  # readers need no writer
            inmem_fresh.kv.put("run", "key", 2)
            assert inmem_writer.pid not in (None, first)

        @pytest.mark.parametrize("step", STEPS)
        def test_kill_at(inmem_fresh, inmem_writer, step):
            inmem_fresh.kv.add("run", "n", 1)
            inmem_writer.kill_at(step, count=3)
            for n in range(2, 10):
                assert inmem_fresh.kv.add("run", "n", 1) == n  # each once, whoever was killed in between
            (flag,) = inmem_fresh.path.parent.glob("killed-*")

        def test_freeze(inmem_fresh, inmem_writer):
            inmem_fresh.kv.put("run", "key", 1)
            inmem_writer.freeze()
            assert inmem_fresh.kv.get("run", "key") == 1
            with pytest.raises(inmem.CommitUnknownError):
                with inmem_fresh.transaction("run", timeout_s=0.1) as txn:
                    txn.kv.put("key", 2)
            inmem_writer.thaw()
            inmem_fresh.kv.put("run", "key", 3)

        def test_leave(inmem_fresh, inmem_writer):
            inmem_fresh.kv.put("run", "key", 1)
            assert inmem_writer.leave() and inmem_writer.pid is None
            assert "pid=None" in repr(inmem_writer)

        def test_wrong(inmem_path, inmem_writer):
            with pytest.raises(inmem.InvalidInputError, match="step must be one of"):
                inmem_writer.kill_at("somewhere")
            with pytest.raises(inmem.InvalidInputError, match="count"):
                inmem_writer.kill_at("logged", count=0)
            with pytest.raises(inmem.InvariantError, match="no writer serves"):
                inmem_writer.kill()

        def test_what_was_set_is_not_set_any_more():
            assert "INMEM_FAILPOINT" not in os.environ and "INMEM_MOVED_CLOCK" not in os.environ
    """)
    assert code == 0 and "8 passed" in said, said


def test_what_is_left_open_fails_its_test(scratch: Path) -> None:
    code, said = run(scratch, """
        import subprocess, time

        kept = []

        def test_by_this_process(inmem_path):
            kept.append(inmem.open(inmem_path))

        def test_by_another(inmem_path):
            program = "import inmem, sys, time; db = inmem.open(sys.argv[1]); print('here', flush=True)"
            program += "; time.sleep(99)"
            kept.append(subprocess.Popen([sys.executable, "-c", program, inmem_path], stdout=subprocess.PIPE))
            assert kept[-1].stdout.readline() == b"here\\n"

        def test_what_nobody_has_any_more(inmem_path):
            with inmem.open(inmem_path) as db:
                db.kv.put("run", "key", 1)

        def test_the_end():
            kept[0].close()
            kept[1].kill()
            kept[1].wait()
            kept[1].stdout.close()
    """)
    assert code == 1 and "4 passed, 2 errors" in said, said
    assert "left open by this process" in said and "left open by process" in said


def test_an_environment_that_is_emptied_is_no_matter(scratch: Path) -> None:
    code, said = run(scratch, """
        def test_one(inmem_db):
            os.environ.clear()
            inmem_db.kv.put("run", "key", 1)

        def test_two(inmem_db):
            assert not [name for name in os.environ if name.startswith("INMEM")]
    """)
    assert code == 0 and "2 passed" in said, said


def test_no_directory_to_write_to(scratch: Path) -> None:
    code, said = run(scratch, """
        import tempfile

        def test_one(monkeypatch):  # to the end: as on a machine where nothing can be written
            def none():
                raise FileNotFoundError("no usable temporary directory")

            tempfile.gettempdir = none
    """)
    assert code == 0 and "1 passed" in said, said


def test_what_is_left_open_is_seen_behind_a_link(scratch: Path) -> None:
    (scratch / "real").mkdir()
    (scratch / "link").symlink_to(scratch / "real")
    code, said = run(scratch / "link", """
        kept = []

        def test_one(inmem_path):
            kept.append(inmem.open(inmem_path))
    """)
    assert code == 1 and "left open by this process" in said, said


def test_a_writer_that_is_killed_while_it_is_frozen_does_nothing_more(scratch: Path) -> None:
    code, said = run(scratch, """
        import threading

        def test_one(inmem_fresh, inmem_writer):
            inmem_fresh.kv.put("run", "key", 1)
            with inmem_fresh.pipeline() as sent:
                pid = inmem_writer.freeze()
                sent.kv.put("run", "key", 2)
                assert inmem_writer.kill() == pid
                assert inmem_writer.pid is None
                assert inmem_fresh.kv.get("run", "key") == 1
            assert inmem_fresh.kv.get("run", "key") == 2
    """)
    assert code == 0 and "1 passed" in said, said


def test_a_worker_that_dies_leaves_nothing(scratch: Path) -> None:
    code, said = run(scratch, """
        @pytest.mark.parametrize("n", range(4))
        def test_crash(inmem_db, n):
            inmem_db.kv.put("run", "key", n)
            if n == 1:
                os._exit(9)
    """, "-n", "2")  # fmt: skip
    assert code == 1 and "1 failed, 3 passed" in said, said


def test_a_run_that_is_interrupted_leaves_nothing(scratch: Path) -> None:
    code, said = run(scratch, """
        import signal

        def test_one(inmem_fresh, inmem_db):
            os.kill(os.getpid(), signal.SIGINT)
    """)
    assert code == 2 and "KeyboardInterrupt" in said, said
